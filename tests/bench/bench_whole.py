"""Whole runs of full-size models on a CPU, layer-wise with the defaults and end to end: what a user waits and pays for.

A reduced schedule with everything included: imports, preparation, filling, reading, steps, exchange, aggregation,
evaluation at the stages' ends, the report. Each row is a process of its own on one thread; its CPU seconds are split by
part (`parts`). ADVANCE end to end is one round; the others are added from its measured parts, and the row says so.
Finished rows are kept in OUT/rows.jsonl and not measured again. Run it:

    taskset -c 1 python tests/bench/bench_whole.py --rows coco-layerwise --examples 20 --out DIR
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bench import whole_data
from tests.bench.parts import MEASURING, PARTS, REST, STARTS, Clock, peak_bytes, started

DATA = Path(__file__).parents[2].parent / "shared/data/coco-mini"
ROUNDS = [0, 0, 0, 1, 3, 5]
CLIENTS = 4
AIMS = {"coco": 8.0, "advance": 40.0}
"""Times less CPU time than end to end, in process."""
EACH_ROUND = ("loading", "training steps", "exchange", "aggregation")
"""Parts that an extrapolated run has in every round."""
TEST = {"coco": None, "advance": 26}
"""Test examples; None: all pictures there are."""
TINY = (
    "model.encoders.image.config={img_size: 32, patch_size: 8, embed_dim: 24, num_heads: 2}",
    "model.projection.hidden=32",
)
TINY_OF = {
    "coco": (*TINY, "model.encoders.text.config={dim: 24, hidden_dim: 48, n_heads: 2, vocab_size: 300}"),
    "advance": (
        *TINY,
        "model.encoders.audio.config={num_hidden_layers: 6, hidden_size: 24, intermediate_size: 48, "
        "num_attention_heads: 2, num_mel_bins: 32, max_length: 64}",
    ),
}
"""Makes the models tiny, to try the bench."""


@dataclass(frozen=True)
class Row:
    """A run to measure.

    Attributes:
        task: `coco` or `advance`.
        strategy: `layerwise` or `end_to_end`.
        launcher: `in_process` or `subprocess`.
        rounds: Rounds of each stage.
        times: The row stands for so many times its rounds; more than 1 is extrapolated.
    """

    task: str
    strategy: str = "layerwise"
    launcher: str = "in_process"
    rounds: tuple[int, ...] = tuple(ROUNDS)
    times: int = 1


ROWS = {
    "coco-layerwise": Row("coco"),
    "coco-layerwise-subprocess": Row("coco", launcher="subprocess"),
    "coco-end-to-end": Row("coco", "end_to_end"),
    "advance-layerwise": Row("advance"),
    "advance-layerwise-subprocess": Row("advance", launcher="subprocess"),
    "advance-end-to-end": Row("advance", "end_to_end", rounds=(1, 0, 0, 0, 0, 0), times=sum(ROUNDS)),
}


@dataclass(frozen=True)
class Size:
    """How much there is to do.

    Attributes:
        examples: Per client.
        test: Test examples; None: see `TEST`.
        tiny: Whether the models are tiny.
    """

    examples: int
    test: int | None = None
    tiny: bool = False

    @property
    def name(self) -> str:
        """A name for folders."""
        return f"{self.examples}{'' if self.test is None else f'-{self.test}'}{'-tiny' if self.tiny else ''}"


def overrides_of(row: Row, size: Size, *, data: Path, store: Path) -> list[str]:
    """Returns what a row's spec changes in its preset."""
    return [
        f"strategy={row.strategy}", f"stages.rounds={list(row.rounds)}", f"data.root={data}", f"store.uri={store}",
        "tracking.uri=null", f"federation.num_clients={CLIENTS}", "federation.fraction_fit=1.0",
        "federation.partition={kind: contiguous}", "training.local_epochs=3", f"evaluation.every={sum(ROUNDS)}",
        f"launch.kind={row.launcher}", *(TINY_OF[row.task] if size.tiny else ()),
    ]  # fmt: skip


def run_row(row: Row, size: Size, *, data: Path, folder: Path) -> dict[str, Any]:
    """Runs a row in this process, which it splits by part.

    Args:
        row: The row.
        size: How much there is to do.
        data: The task's data.
        folder: Where the store and the figures of worker processes go.
    """
    clock = Clock()
    clock.install()
    from lwfed import environment
    from lwfed.launch import subprocess as launcher_module
    from lwfed.launch.launchers import make_launcher
    from lwfed.run.events import RoundDone
    from lwfed.run.runs import Options
    from lwfed.run.tasks import RunTask
    from lwfed.spec.load import load_spec
    from lwfed.steps import prepare
    from lwfed.steps.experiment import place_of, run_stages
    from lwfed.store.opening import open_store
    from tests.bench import whole_worker

    environment.quiet()
    started(clock)
    workers = folder / "workers"
    workers.mkdir(parents=True)
    os.environ[whole_worker.FOLDER] = str(workers)
    launcher_module.worker = whole_worker  # type: ignore[assignment]  # its name is the module that is run
    spec = load_spec(f"{row.task}-layerwise", overrides=overrides_of(row, size, data=data, store=folder / "store"))
    store, rounds, marks = open_store(spec.store.uri), [], list[float]()

    def emit(event: Any) -> None:
        if isinstance(event, RoundDone):
            rounds.append(event.record)
            marks.append(time.process_time())
            print(f"{marks[-1]:8.1f} CPU s  stage {event.record.stage} round {event.record.round}", flush=True)

    run = prepare.draft(spec, store=store, options=Options())
    run = prepare.prepare(run, store=store, emit=emit, cache=folder / "digests")
    launcher = make_launcher(spec, store=store, run_id=run.run_id)
    summary = run_stages(run, launcher=launcher, store=store, emit=emit, cache=folder / "cache")
    launcher.server("finish", RunTask(store=store.uri, run_id=run.run_id, place=place_of(run, cache=None)), emit=emit)
    launcher.close()
    own = [json.loads(file.read_text(encoding="utf-8")) for file in workers.iterdir()]
    parts = Counter(clock.split())
    for one in own:
        parts.update(one["parts"])
    moved = [
        getattr(client, name, None) or 0
        for record in rounds
        for client in record.clients.values()
        for name in ("bytes_up", "bytes_down", "bytes_down_frozen")
    ]
    return {
        "parts": dict(parts),
        "round_ends_cpu_s": marks,
        "bytes_moved": sum(moved),
        "peak_bytes": max(peak_bytes(), *(one["peak_bytes"] for one in own), 0),
        "digest": summary.digest,
        "metrics": summary.metrics,
    }


def extrapolated(found: dict[str, Any], *, times: int) -> dict[str, Any]:
    """Returns what a run of `times` the rounds costs: the parts of each round times so many, the others once."""
    parts = {name: value * (times if name in EACH_ROUND else 1) for name, value in found["parts"].items()}
    more = sum(parts.values()) - sum(found["parts"].values())
    return {
        **found, "parts": parts, "cpu_s": found["cpu_s"] + more, "wall_s": found["wall_s"] + more,
        "bytes_moved": found["bytes_moved"] * times, "extrapolated": times,
    }  # fmt: skip


def measured(name: str, size: Size, *, data: Path | None, out: Path) -> dict[str, Any]:
    """Measures a row in a fresh process on one thread; its store is deleted afterwards.

    Raises:
        RuntimeError: The run failed; its log is in `out`.
    """
    row, log = ROWS[name], out / f"{name}-{size.name}.log"
    root = out / f"{row.task}-{size.name}"
    test = TEST[row.task] if size.test is None else size.test
    whole_data.make(row.task, root, data=data, train=CLIENTS * size.examples, test=test)
    folder = out / f".{name}-{size.name}"
    subprocess.run(["rm", "-rf", folder], check=True)
    command = [sys.executable, "-m", "tests.bench.bench_whole", "--child", json.dumps([name, vars(size), str(root)])]
    here = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "LWFED_CPUS": "1"}
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as lines:
        child = subprocess.Popen(
            [*command, "--out", str(folder)], stdout=lines, stderr=lines, env={**os.environ, **here}
        )
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{name} ended with {child.returncode}: see {log}")
    found = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    found |= {"wall_s": time.monotonic() - began, "cpu_s": usage.ru_utime + usage.ru_stime}
    found["parts"][REST] += found["cpu_s"] - sum(found["parts"].values())
    subprocess.run(["rm", "-rf", folder], check=True)
    return {"row": name, **vars(size), **(found if row.times == 1 else extrapolated(found, times=row.times))}


def measure(names: Sequence[str], size: Size, *, data: Path | None, out: Path) -> list[dict[str, Any]]:
    """Measures rows that OUT/rows.jsonl does not have yet, and adds them to it; returns them all."""
    out.mkdir(parents=True, exist_ok=True)
    file, found = out / "rows.jsonl", []
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for name in names:
        done = [row for row in known if row["row"] == name and vars(size).items() <= row.items()]
        if not done:
            done = [measured(name, size, data=data, out=out)]
            with file.open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(done[-1]) + "\n")
            print(table(done), flush=True)
        found.append(done[-1])
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Writes the figures for people."""
    lines = []
    for row in rows:
        extra = f", extrapolated from one round of {row['extrapolated']}" if "extrapolated" in row else ""
        lines.append(
            f"{row['row']}, {row['examples']} examples per client{extra}: {row['wall_s']:.0f} s, "
            f"{row['cpu_s']:.0f} CPU s, {row['bytes_moved'] / 1e9:.2f} GB moved, "
            f"{row['peak_bytes'] / 1e9:.2f} GB at the peak"
        )
        order = [STARTS, *PARTS, MEASURING, REST]
        lines.append("    " + ", ".join(f"{name} {row['parts'].get(name, 0.0):.1f}" for name in order))
    seconds = {row["row"]: row["cpu_s"] for row in rows}
    for task, aim in AIMS.items():
        if {f"{task}-layerwise", f"{task}-end-to-end"} <= seconds.keys():
            ratio = seconds[f"{task}-end-to-end"] / seconds[f"{task}-layerwise"]
            lines.append(f"{task}: layer-wise takes {ratio:.1f} times less CPU time (aim: {aim:g})")
    return "\n".join(lines)


def missing(data: Path) -> str | None:
    """Returns why a folder cannot be used, or None."""
    absent = [
        f for f in ("captions_train2017.json", "captions_val2017.json") if not (data / "annotations" / f).exists()
    ]
    return f"{data} has no annotations/{absent[0]}" if absent else None


@pytest.mark.bench
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.strategy == "layerwise"])
def test_whole_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if (why := missing(DATA)) is not None:
        pytest.skip(why)
    found = measure([name], Size(examples=20), data=DATA, out=tmp_path)
    with capsys.disabled():
        print("\n" + table(found))


def main() -> None:
    """Measures the rows that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=[*ROWS])
    parser.add_argument("--examples", type=int, default=20, help="per client, 2 to 256")
    parser.add_argument("--test", type=int, help="test examples; the default is all there are")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the bench")
    parser.add_argument("--data", type=Path, help="captioned images in COCO's layout; without them pictures are drawn")
    parser.add_argument("--out", type=Path, required=True, help="for data, logs and rows.jsonl")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child is not None:
        name, size, data = json.loads(asked.child)
        print(json.dumps(run_row(ROWS[name], Size(**size), data=Path(data), folder=asked.out)))
        return
    if not 2 <= asked.examples <= 256:
        parser.error("--examples is 2 to 256")
    data = asked.data or (DATA if missing(DATA) is None else None)
    if asked.data is not None and (why := missing(asked.data)) is not None:
        print(f"skipped: {why}")
        return
    print(table(measure(asked.rows, Size(asked.examples, asked.test, asked.tiny), data=data, out=asked.out.absolute())))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2])]
    main()
