"""CPU time of a simulated client of a small model, in lwfed, in a bare torch loop and in pfl-research, in one run.

A ViT (6 x 96) and a DistilBERT (3 x 96) with their heads, 951,744 parameters; 100 or 1,000 clients of 8 examples take
one step each, all of them in every round. The bare loop loads weights, builds an AdamW, steps and adds up in float64,
with its batches in memory; pfl-research, if it is installed (see `beside_pfl.py`), gets the same module, loss and
batches. Both take the steps of 100 clients, after a round of lwfed. lwfed also reads examples, checks and commits, and
with `store.updates: keep` it hashes and writes each update. Evaluation is left out, but for lwfed's 16 test examples
where it has only two rounds. Run it: `python tests/bench/bench_clients.py`, or with a number of clients and `keep` or
`memory`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lwfed.data.batches import Batch, train_batches
from lwfed.launch.in_process import InProcess
from lwfed.models.build import skeleton
from lwfed.plan.stages import StagePlan
from lwfed.round.losses import batch_loss
from lwfed.round.workbench import Workbench, inputs_of
from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.run.tasks import Place
from lwfed.spec.load import load_spec
from lwfed.steps.experiment import run_stages
from lwfed.steps.prepare import draft, prepare
from lwfed.store import paths
from lwfed.store.blocks import read_block
from lwfed.store.checkpoint import read_checkpoint
from lwfed.store.manifest import block_key
from lwfed.store.opening import open_store
from tests.bench import beside_pfl
from tests.events import emit_to

BARE, EXAMPLES = 100, 8
ROUNDS = 6
AIM = 1.25


def measure(folder: Path, *, clients: int, updates: str, rounds: int = ROUNDS) -> dict[str, float]:
    """Measures rounds of both, in turns.

    Args:
        folder: Where the store goes.
        clients: Number of clients, all of which take part in each round.
        updates: `store.updates`.
        rounds: Number of rounds; lwfed's first is not counted, nor its last if there are more than two.

    Returns:
        Median CPU seconds per client and round (`lwfed`, `bare`, `pfl` if it is installed), and the `ratio` of the
        first two.
    """
    spec = load_spec(
        "shapes-end-to-end",
        overrides=[
            f"store.uri={folder}", f"store.updates={updates}", "tracking.uri=null", f"federation.num_clients={clients}",
            f"data.shapes.train={clients * EXAMPLES}", "data.shapes.test=16", "data.workers=0",
            f"stages.rounds=[{rounds},0,0]", "training.local_epochs=1", f"training.batch_size={EXAMPLES}",
            "training.threads=1", "evaluation.every=1000",
        ],
    )  # fmt: skip
    bench = Workbench(open_store(spec.store.uri))
    marks: list[float] = []
    others = {"bare": bare_round} if beside_pfl.missing() else {"bare": bare_round, "pfl": pfl_round}
    spent: dict[str, list[float]] = {name: [] for name in ("lwfed", *others)}

    def emit(kind: str, values: dict[str, Any]) -> None:
        if kind == "round":
            if 1 < values["round"] < max(rounds, 3):
                spent["lwfed"].append(time.process_time() - marks[-1])
                key = runs.read_run(bench.store, run.run_id).stages[-1].key
                for name, other in others.items():
                    spent[name].append(other(bench, key, values["round"]))
            marks.append(time.process_time())

    run = prepare(draft(spec, store=bench.store, options=Options()), store=bench.store, emit=lambda *_: None)
    launcher = InProcess(bench.store, in_memory=updates == "memory")
    run_stages(run, launcher=launcher, store=bench.store, emit=emit_to(emit), cache=None)
    asked = {"lwfed": clients}
    per_client = {
        name: statistics.median(values) / asked.get(name, min(clients, BARE)) for name, values in spent.items()
    }
    return {**per_client, "ratio": per_client["lwfed"] / per_client["bare"]}


def bare_round(bench: Workbench, key: str, server_round: int) -> float:
    """Takes as many steps of the same model with nothing but torch; returns their CPU seconds."""
    module, theta, batches = problem(bench, key, server_round)
    with one_thread():
        started = time.process_time()
        mean_of_clients(module, theta, batches, plan=bench.stage(key).plan)
        return time.process_time() - started


def pfl_round(bench: Workbench, key: str, server_round: int) -> float:
    """Takes as many steps of the same model in pfl-research; returns the CPU seconds of its second round."""
    module, theta, batches = problem(bench, key, server_round)
    module.load_state_dict(theta)
    plan = bench.stage(key).plan

    def loss(number: int) -> Tensor:
        return batch_loss(module, batches[number], model=plan.model, cut={}, last_block=plan.levers.last_block)

    with one_thread():
        return beside_pfl.rounds(beside_pfl.Problem(module, loss), num_clients=len(batches), num_rounds=2)[-1]


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs the body with one thread of torch's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problem(bench: Workbench, key: str, server_round: int) -> tuple[Any, dict[str, Tensor], list[Batch]]:
    """Returns the stage's module, a round's result, and the batches of 100 clients."""
    stage = bench.stage(key)
    checkpoint = read_checkpoint(bench.store, paths.round_checkpoint(key, server_round))
    assert checkpoint is not None
    theta = {
        name: tensor
        for block in checkpoint.blocks.values()
        for name, tensor in read_block(bench.store, block_key(block), block).items()
    }
    batches = [one_batch(bench, stage.plan, key, client) for client in stage.plan.cohort.clients[:BARE]]
    module = skeleton(stage.plan.model, depth=stage.plan.depth, num_classes=None).to_empty(device="cpu").train()
    return module, theta, batches


def one_batch(bench: Workbench, plan: StagePlan, key: str, client: str) -> Batch:
    """Reads a client's only batch of a round."""
    place = Place(device="cpu")
    examples, _ = bench.share(bench.stage(key), place, client)
    return next(
        train_batches(
            bench.data(bench.stage(key), place), examples=examples, settings=inputs_of(plan.model),
            batch_size=EXAMPLES, seed=plan.seed, first_view=0, augment=plan.data.augment, workers=0, num_batches=1,
        )
    )  # fmt: skip


def mean_of_clients(
    module: Any, theta: dict[str, Tensor], batches: Sequence[Batch], *, plan: StagePlan
) -> dict[str, Tensor]:
    """Trains every client and returns the mean of their tensors."""
    total = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in theta.items() if t.is_floating_point()}
    for batch in batches:
        module.load_state_dict(theta)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
        batch_loss(module, batch, model=plan.model, cut={}, last_block=plan.levers.last_block).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state = module.state_dict()
        for name, value in total.items():
            value.add_(state[name], alpha=EXAMPLES)
    return {name: value.div_(EXAMPLES * len(batches)).float() for name, value in total.items()}


def table(found: dict[str, float]) -> str:
    """Returns the figures as lines."""
    lines = [f"{name:>6} {s * 1e3:7.1f} ms of CPU per client and round" for name, s in found.items() if name != "ratio"]
    return "\n".join([*lines, f" ratio {found['ratio']:.2f} (aim {AIM})"])


@pytest.mark.bench
@pytest.mark.parametrize(("clients", "updates"), [(100, "keep"), (100, "memory"), (1000, "keep"), (1000, "memory")])
def test_a_simulated_client_costs_little_more_than_its_step(tmp_path: Path, clients: int, updates: str) -> None:
    found = measure(tmp_path, clients=clients, updates=updates, rounds=ROUNDS if clients <= BARE else 2)
    print(f"\n{clients} clients, updates: {updates}\n" + table(found))
    assert found["ratio"] < 2 * AIM, "a miss of the aim is noted in docs/results.md; this is a fault"


if __name__ == "__main__":
    number, ways = (int(sys.argv[1]), sys.argv[2:]) if len(sys.argv) > 1 else (BARE, [])
    for way in ways or ["memory", "keep"]:
        with tempfile.TemporaryDirectory() as scratch:
            found = measure(Path(scratch), clients=number, updates=way, rounds=ROUNDS if number <= BARE else 2)
        print(f"{number} clients, updates: {way}\n" + table(found), flush=True)
