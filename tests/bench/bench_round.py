"""Time of a round in lwfed against a bare torch loop that takes the same steps on the same batches.

The last stage of a layer-wise run with full-size encoders, clients one after another on one thread. Evaluation is left
out of both; reading, checking, hashing, writing and aggregating are lwfed's own.
Run it: `python tests/bench/bench_round.py`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from lwfed import environment
from lwfed.data.batches import epoch_length, train_batches
from lwfed.launch.in_process import InProcess
from lwfed.models.build import load, set_trained, skeleton
from lwfed.plan.stages import StagePlan
from lwfed.round.batching import tensors_of
from lwfed.round.losses import batch_loss
from lwfed.round.train_client import parameter_groups
from lwfed.round.workbench import Workbench
from lwfed.run.runs import Options
from lwfed.run.stage import Stage
from lwfed.run.tasks import Place
from lwfed.spec.load import load_spec
from lwfed.steps.experiment import place_of, run_stages
from lwfed.steps.prepare import draft, prepare
from lwfed.store import paths
from lwfed.store.blocks import read_block
from lwfed.store.checkpoint import read_checkpoint
from lwfed.store.manifest import block_key
from lwfed.store.opening import open_store
from lwfed.types.clients import client_ids
from tests.events import emit_to

DATA = Path(__file__).parents[2].parent / "shared/data/coco-mini"
ROUNDS = 5
AIM = 1.10


def measure(folder: Path, *, data: Path = DATA) -> dict[str, Any]:
    """Measures rounds of both.

    Args:
        folder: Where the store goes.
        data: Captioned images in COCO format.

    Returns:
        Median seconds of a round (`lwfed`, `bare`), their `ratio`, and lwfed's seconds by part.
    """
    spec = load_spec(
        "coco-layerwise",
        overrides=[
            f"data.root={data}", f"store.uri={folder}", "tracking.uri=null", "federation.num_clients=4",
            f"stages.rounds=[0,0,0,0,0,{ROUNDS}]", "training.batch_size=8", "evaluation.every=1000", "data.workers=0",
            "levers.prefix_cache=never",
        ],
    )  # fmt: skip
    bench = Workbench(open_store(spec.store.uri))
    seen: list[dict[str, Any]] = []
    bare: list[float] = []

    def emit(kind: str, values: dict[str, Any]) -> None:
        if kind == "round":
            seen.append(values)
            if values["round"] in (2, 4):  # between rounds, so that both meet the same machine
                key = bench.store.read_ref(paths.run(run.run_id))["stages"][-1]["key"]
                bare.append(_bare_round(bench.stage(key), bench, place_of(run, cache=None), values["round"]))

    run = prepare(draft(spec, store=bench.store, options=Options()), store=bench.store, emit=lambda *_: None)
    run_stages(run, launcher=InProcess(bench.store), store=bench.store, emit=emit_to(emit), cache=None)
    rounds = [record for record in seen if 2 <= record["round"] < ROUNDS]  # the first counts FLOPs, the last evaluates
    lwfed = statistics.median(record["wall_s"]["round"] for record in rounds)
    steps = statistics.median(sum(c["wall_s"] for c in record["clients"].values()) for record in rounds)
    aggregate = statistics.median(record["wall_s"]["aggregate"] for record in rounds)
    plain = statistics.median(bare)
    return {
        "lwfed_s": lwfed,
        "bare_s": plain,
        "ratio": lwfed / plain,
        "steps_s": steps,
        "aggregate_s": aggregate,
        "other_s": lwfed - steps - aggregate,
    }


def _bare_round(stage: Stage, bench: Workbench, place: Place, server_round: int) -> float:
    """Takes the same steps on the same batches with nothing but torch; returns the seconds of all clients."""
    plan = stage.plan
    checkpoint = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, server_round))
    assert checkpoint is not None
    tensors = {}
    for block in checkpoint.blocks.values():
        tensors |= read_block(bench.store, block_key(block), block)
    module = load(skeleton(plan.model, depth=plan.depth, num_classes=None), tensors)
    set_trained(module, trained=plan.trained)
    before = torch.get_num_threads()
    torch.set_num_threads(plan.training.threads)
    started = time.perf_counter()
    for client in client_ids(plan.cohort.num_clients):
        _bare_client(module, stage, plan, bench, place, client, server_round)
    seconds = time.perf_counter() - started
    torch.set_num_threads(before)
    return seconds


def _bare_client(
    module: Any, stage: Stage, plan: StagePlan, bench: Workbench, place: Place, client: str, server_round: int
) -> None:
    examples, _ = bench.share(stage, place, client)
    steps = plan.training.local_epochs * epoch_length(len(examples), plan.training.batch_size)
    optimizer = torch.optim.AdamW(
        [
            {"params": members, "lr": rates.learning_rate, "weight_decay": rates.weight_decay}
            for members, rates in parameter_groups(module, trained=plan.trained, rates=plan.rates)
        ],
        fused=True,
    )
    batches = train_batches(
        bench.data(stage, place), examples=examples, settings=bench.inputs(stage), num_batches=steps,
        batch_size=plan.training.batch_size, seed=plan.seed, workers=0, augment=plan.data.augment,
        first_view=server_round * plan.training.local_epochs,
    )  # fmt: skip
    with closing(batches):
        for batch in batches:
            loss = batch_loss(module, batch, model=plan.model, cut=plan.cut, last_block=plan.levers.last_block)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            assert tensors_of(batch)


def table(found: dict[str, Any]) -> str:
    """Writes the figures for people."""
    return "\n".join(
        [
            f"a round of 4 clients   lwfed {found['lwfed_s']:.2f} s   bare loop {found['bare_s']:.2f} s   "
            f"ratio {found['ratio']:.3f} (aim: under {AIM})",
            f"lwfed: steps {found['steps_s']:.2f} s, aggregation {found['aggregate_s']:.2f} s, reading, checking, "
            f"hashing and writing {found['other_s']:.2f} s",
        ]
    )


@pytest.mark.bench
def test_round_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not DATA.is_dir():
        pytest.skip(f"needs captioned images in {DATA}")
    found = measure(tmp_path)
    with capsys.disabled():
        print("\n" + table(found))


if __name__ == "__main__":
    environment.quiet()
    with tempfile.TemporaryDirectory() as scratch:
        print(table(measure(Path(scratch))))
