"""Laws of runs on examples that lack a modality: wherever and however they train, they end alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lwfed.launch.subprocess import Subprocess
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from tests.holes import OBJECTIVES, on, write_holes
from tests.tiny import Finished, run_tiny, tensors_of

CACHED = "levers.prefix_cache=always"


@pytest.fixture(scope="module", params=OBJECTIVES)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp(f"run-{request.param}")
    write_holes(folder / "data")
    return run_tiny(folder / "store", *on(folder / "data", CACHED, *OBJECTIVES[request.param]))


def again(finished: Finished, folder: Path, *overrides: str, **choices: Any) -> Finished:
    spec = RunSpec.model_validate(finished.run.spec)
    kind = spec.model.objective.kind
    return run_tiny(folder / "store", *on(Path(spec.data.root or ""), CACHED, *OBJECTIVES[kind], *overrides), **choices)


def test_runs_train_all_modalities_and_end_alike_in_processes_of_their_own(finished: Finished, tmp_path: Path) -> None:
    before, after = finished.checkpoint(1, 0), finished.checkpoint(1)
    moved = tensors_of(finished.store, after)
    start = tensors_of(finished.store, before)
    for modality in ("audio", "image", "text"):
        assert any(not torch.equal(moved[n], start[n]) for n in moved if n.startswith(f"{modality}.blocks"))
    other = again(finished, tmp_path, launcher=_processes)
    assert other.digest == finished.digest and other.summary["metrics"] == finished.summary["metrics"]


def _processes(store: Store) -> Subprocess:
    return Subprocess(store, parallel=2, devices=1, retries=0)


def test_the_cache_changes_the_loss_only_by_rounding(finished: Finished, tmp_path: Path) -> None:
    computed = again(finished, tmp_path, "levers.prefix_cache=never")
    losses = [[r["metrics"]["train/loss"] for r in done.reported("round")] for done in (finished, computed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    states = [m["prefix"] for r in finished.reported("round") for m in r["clients"].values() if m.get("prefix")]
    assert states and all(state.keys() == {"audio", "image", "text"} for state in states)


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.step_in_backward=true",),
        ("training.activation_checkpointing=true",),
        ("data.workers=2",),
    ],
)
def test_how_it_is_computed_changes_no_bit(finished: Finished, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    assert again(finished, tmp_path, *overrides).digest == finished.digest


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.moments=int8", "training.proximal_mu=0.1"),
        ("training.gradient_accumulation=2", "training.clip_norm=1.0"),
        ("data.length_buckets=true", "training.batch_size=3"),
        ("exchange={upload: int8, download: int8}",),
    ],
)
def test_every_way_of_training_copes(finished: Finished, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    done = again(finished, tmp_path, *overrides)
    assert all(0 < r["metrics"]["train/loss"] < 10 for r in done.reported("round"))
