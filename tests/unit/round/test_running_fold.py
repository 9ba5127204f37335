"""Laws of folding while clients train: the fold equals that of the stored updates, or it is not used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lwfed.federated.aggregator import GlobalModel
from lwfed.federated.aggregators.weighted_mean import WeightedMean
from lwfed.launch.in_process import InProcess
from lwfed.round import updates
from lwfed.round.senders import Weights
from lwfed.round.updates import RunningFold
from lwfed.run.tasks import ClientTask
from lwfed.types.tensors import TensorSpec
from tests.tiny import run_tiny

EXCHANGES = ((), ("exchange.upload=int8",), ("exchange.upload=bf16", "exchange.download=int8"))


class Forgetful(InProcess):
    """A launcher that folds nothing and holds no model: updates are read from the store."""

    holds_model = False

    def _begin_fold(self, tasks: Sequence[ClientTask]) -> None:
        return None


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Notes at each aggregation whether the sum was there."""
    seen: list[bool] = []
    take = RunningFold.take

    def noted(self: RunningFold, stage_key: str, server_round: int, **accepted: Any) -> object:
        found = take(self, stage_key, server_round, **accepted)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(RunningFold, "take", noted)
    return seen


@pytest.mark.parametrize("exchange", EXCHANGES, ids=["fp32", "int8", "bf16 and int8"])
def test_it_has_the_bits_of_the_sum_of_the_stored_updates(
    tmp_path: Path, taken: list[bool], exchange: tuple[str, ...]
) -> None:
    overrides = (*exchange, "federation.num_clients=3", "data.shapes.train=31", "stages.rounds=[3,2]")
    summed = run_tiny(tmp_path / "a", *overrides)
    assert taken == [True, True, True], "from the second round of each stage on: then the weights are known"
    read = run_tiny(tmp_path / "b", *overrides, launcher=Forgetful)
    assert len(taken) == 3, "nothing was summed up"
    assert summed.digest == read.digest


@pytest.mark.parametrize("absent", ["client-000", "client-001", "client-002"])
def test_a_client_that_fails_is_not_in_it(
    tmp_path: Path, taken: list[bool], monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    """Whoever is expected and does not come, be it the last, ends the summing; what is accepted is read."""
    begin = updates.begin_fold
    seen: list[RunningFold | None] = []

    def noted(*args: object, **kwargs: object) -> RunningFold | None:
        seen.append(begin(*args, **kwargs))  # type: ignore[arg-type]  # passed on as it came
        return seen[-1]

    monkeypatch.setattr("lwfed.launch.in_process.begin_fold", noted)
    digests = set()
    for launcher in (InProcess, Forgetful):
        taken.clear()

        class Lossy(launcher):  # type: ignore[misc, valid-type]  # one of the two
            def _train(self, task, **kwargs):  # type: ignore[no-untyped-def]  # as the launcher's
                if task.server_round == 2 and task.client == absent:
                    raise RuntimeError("its data are gone")
                return super()._train(task, **kwargs)

        overrides = ("federation.num_clients=3", "federation.min_fit_clients=2", "data.shapes.train=31")
        done = run_tiny(tmp_path / launcher.__name__, *overrides, launcher=Lossy)
        digests.add(done.digest)
        failed = [record["failed"] for record in done.reported("round")]
        assert [bool(one) for one in failed] == [False, True, False, True]
        assert not any(taken)
    assert len(digests) == 1


def test_a_large_model_is_not_summed_in_memory(
    tmp_path: Path, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    summed = run_tiny(tmp_path / "a")
    assert any(taken)
    taken.clear()
    monkeypatch.setattr(updates, "MAX_BYTES", 1000)
    assert run_tiny(tmp_path / "b").digest == summed.digest
    assert taken == []


def weighted(num_examples: Mapping[str, int]) -> dict[str, Weights]:
    return {client: Weights(weight=count, by_unit={"image.norm": count}) for client, count in num_examples.items()}


def folding(num_examples: Mapping[str, int]) -> RunningFold:
    specs = {"image.norm.w": TensorSpec(shape=(2,), dtype="F32")}
    model = GlobalModel(specs=specs, codec="fp32", start={}.__getitem__)
    return RunningFold("key", 2, aggregator=WeightedMean(), model=model, weights=weighted(num_examples))


def test_what_was_accepted_elsewhere_is_not_taken() -> None:
    for accepted, taken in (({"client-000": "d"}, True), ({"client-000": "other"}, False)):
        running = folding({"client-000": 3})
        running.add("client-000", {"image.norm.w": torch.ones(2)}, digest="d")
        weights = weighted({"client-000": 3})
        assert (running.take("key", 2, accepted=accepted, weights=weights) is not None) is taken
        assert running.take("key", 2, accepted=accepted, weights=weights) is None, "it is taken once"


def test_a_fold_with_other_weights_is_not_taken() -> None:
    """A file that changed between the rounds leaves a client with fewer examples than it had."""
    running = folding({"client-000": 3})
    running.add("client-000", {"image.norm.w": torch.ones(2)}, digest="d")
    assert running.take("key", 2, accepted={"client-000": "d"}, weights=weighted({"client-000": 2})) is None


def test_a_fold_over_fewer_than_expected_is_not_taken() -> None:
    """Its weights, 4 and 2 of 4, 2 and 1, are not those of the two alone: 2 and 1."""
    running = folding({"a": 8, "b": 4, "c": 2})
    for client in ("a", "b"):
        running.add(client, {"image.norm.w": torch.ones(2)}, digest=client)
    assert running.take("key", 2, accepted={"a": "a", "b": "b"}, weights=weighted({"a": 2, "b": 1})) is None


def test_a_held_model_is_neither_read_again_nor_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first round of a run the launcher's process reads nothing that is trained from the store."""
    read: list[str] = []
    from lwfed.round import workbench

    real = workbench.read_block

    def noted(store: object, key: str, block: object) -> dict[str, Tensor]:
        read.append(key)
        return real(store, key, block)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(workbench, "read_block", noted)
    held = run_tiny(tmp_path / "a", "stages.rounds=[3,0]")
    assert 0 < len(read) == len(held.plans[0].trained), "the start of the stage, once for all clients"
    forgetful = run_tiny(tmp_path / "b", "stages.rounds=[3,0]", launcher=Forgetful)
    assert held.digest == forgetful.digest
    bytes_down = [[c["bytes_down"] for c in r["clients"].values()] for r in held.reported("round")]
    assert bytes_down == [[c["bytes_down"] for c in r["clients"].values()] for r in forgetful.reported("round")]
