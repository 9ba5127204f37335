"""What keeping the outputs of frozen blocks costs, beside an epoch that computes them again; full-size models.

Stages 5 and 6 of COCO's layer-wise run, one epoch each: stage 5 fills the cache from the inputs, through four stages'
blocks, and stage 6 through the one that was frozen last. Run it: `python -m tests.bench.bench_fill`, or on a GPU
`python -m tests.bench.bench_fill --device cuda --batch 256 --examples 4096`, which draws its scenes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pytest

from lwfed import environment
from lwfed.launch.in_process import InProcess
from lwfed.round.workbench import Workbench
from lwfed.run.events import Event
from lwfed.run.runs import Options
from lwfed.spec.load import load_spec
from lwfed.steps.experiment import run_stages
from lwfed.steps.prepare import draft, prepare
from lwfed.store.opening import open_store
from tests.events import plain

DATA = Path(__file__).parents[2].parent / "shared/data/coco-mini"
AIM = 1.0
VARIANTS = {
    "computed again": ("levers.prefix_cache=never",),
    "kept, 1 view": ("levers.prefix_cache=always", "levers.views=1"),
    "kept, 4 views": ("levers.prefix_cache=always", "levers.views=4"),
}


def measure(
    folder: Path, *, device: str = "cpu", batch: int = 32, examples: int | None = None
) -> dict[str, list[dict[str, float]]]:
    """Measures all variants.

    Args:
        folder: Where the stores go.
        device: Where to compute.
        batch: Examples of a step.
        examples: Scenes to draw; None takes COCO's images.

    Returns:
        Variant -> for stages 5 and 6 the mean over clients of seconds an `epoch` takes and `fill` took before it, its
        `steps`, and `mb` kept.
    """
    data = [f"data.root={DATA}", "data.workers=0"]
    if examples is not None:
        data = ["data.source=shapes", "data.root=null", f"data.shapes.train={examples}", "data.shapes.test=64"]
        data += ["data.shapes.image_size=224", "data.workers=8"]
    found: dict[str, list[dict[str, float]]] = {}
    for number, (name, levers) in enumerate(VARIANTS.items()):
        store = folder / str(number)
        spec = load_spec(
            "coco-layerwise",
            overrides=[
                *data, *levers, f"store.uri={store}", "tracking.uri=null", "federation.num_clients=2",
                "stages.rounds=[0,0,0,0,1,1]", f"training.batch_size={batch}", "training.local_epochs=1",
                "evaluation.every=1000", f"launch.device={device}",
            ],
        )  # fmt: skip
        bench = Workbench(open_store(spec.store.uri))
        seen: list[dict[str, Any]] = []

        def note(event: Event, seen: list[dict[str, Any]] = seen) -> None:
            kind, values = plain(event)
            if kind == "round":
                seen.append(values)

        run = prepare(draft(spec, store=bench.store, options=Options()), store=bench.store, emit=lambda *_: None)
        run_stages(
            run, launcher=InProcess(bench.store), store=bench.store, cache=store / "cache",
            emit=note,
        )  # fmt: skip
        found[name] = [
            {
                "epoch": _mean(record, "wall_s"),
                "fill": _mean(record, "prefix_fill_s"),
                "steps": _mean(record, "steps"),
                "mb": _mean(record, "prefix_cache_bytes") / 1e6,
            }
            for record in seen
        ]
    return found


def _mean(record: dict[str, Any], name: str) -> float:
    return statistics.fmean(client.get(name, 0.0) for client in record["clients"].values())


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Writes the figures for people."""
    lines = [f"filling the cache; the aim is under {AIM:g} epochs computed again"]
    for name, stages in found.items():
        for stage, row, again in zip((5, 6), stages, found["computed again"], strict=True):
            lines.append(
                f"{name:14} stage {stage}   epoch {row['epoch']:7.2f} s ({row['epoch'] / row['steps']:.4f} s a step)   "
                f"fill {row['fill']:7.2f} s = {row['fill'] / again['epoch']:.2f} epochs computed again   "
                f"{row['mb']:.0f} MB kept"
            )
    return "\n".join(lines)


@pytest.mark.bench
def test_fill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not DATA.is_dir():
        pytest.skip(f"needs captioned images in {DATA}")
    found = measure(tmp_path)
    with capsys.disabled():
        print("\n" + table(found))


if __name__ == "__main__":
    environment.quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--examples", type=int, help="scenes to draw; without it, COCO's images")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Path(scratch), device=chosen.device, batch=chosen.batch, examples=chosen.examples)
        print(table(figures))
