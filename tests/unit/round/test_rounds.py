"""Laws of a round: the quorum, who takes part, and what happens to those who fail."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lwfed.launch.in_process import InProcess
from lwfed.run import runs
from lwfed.run.launcher import Emit, Outcome
from lwfed.run.runs import Options
from lwfed.run.tasks import ClientTask
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError, QuorumError
from tests.tiny import Finished, Stopped, run_tiny

THREE = ("federation.num_clients=3", "stages.rounds=[1,1]")
RUN = Options(run_id="r")


class Without(InProcess):
    """The launcher of this process, from which some clients cannot be reached."""

    def __init__(self, store: Store, absent: Collection[str]) -> None:
        super().__init__(store)
        self._absent = absent

    def clients(
        self, step: str, tasks: Sequence[ClientTask], *, deadline_s: float, emit: Emit, need: int | None = None
    ) -> Iterator[Outcome]:
        for task in tasks:
            if task.client in self._absent:
                yield Outcome(task.client, 137, "killed by signal 9: out of memory")
        there = [task for task in tasks if task.client not in self._absent]
        yield from super().clients(step, there, deadline_s=deadline_s, emit=emit, need=need)


def without(*absent: str) -> Callable[[Store], Without]:
    return lambda store: Without(store, absent)


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of three clients of which one never answers."""
    return run_tiny(tmp_path_factory.mktemp("partial"), *THREE, launcher=without("client-001"))


def test_a_round_with_a_quorum_goes_on_and_says_who_failed(partial: Finished) -> None:
    for record in partial.reported("round"):
        assert record["cohort"] == ["client-000", "client-001", "client-002"]
        assert set(record["clients"]) == {"client-000", "client-002"}
        assert record["failed"] == {"client-001": "killed by signal 9: out of memory"}
    failed = [v for v in partial.reported("client_done") if v["failed"]]
    assert {v["client"] for v in failed} == {"client-001"} and all(v["metrics"] is None for v in failed)


def test_equal_sets_of_accepted_updates_end_in_the_same_digest(partial: Finished, tmp_path: Path) -> None:
    again = run_tiny(tmp_path / "a", *THREE, launcher=without("client-001"))
    assert again.digest == partial.digest
    other = run_tiny(tmp_path / "b", *THREE, launcher=without("client-002"))
    assert other.digest != partial.digest


def test_a_round_below_quorum_fails_by_name_and_resumes_once_fixed(tmp_path: Path) -> None:
    with pytest.raises(QuorumError) as caught:
        run_tiny(tmp_path, *THREE, options=RUN, launcher=without("client-000", "client-002"))
    message = str(caught.value)
    assert "round 1 of stage 1 has 1 of 3 updates and needs 2" in message
    assert "(client-000, client-002: killed by signal 9" in message and "--run-id" in message
    store = LocalStore(tmp_path)
    key = runs.stage_key_of(runs.read_run(store, "r"), 1)
    assert key is not None
    assert not store.has(paths.round_checkpoint(key, 1)), "old weights are never kept in silence"
    assert not store.has(paths.accepted(key, 1))
    done = run_tiny(tmp_path, *THREE, options=RUN)
    assert [v["client"] for v in done.reported("client_done") if v["stage"] == 1] == ["client-000", "client-002"]
    assert done.digest == run_tiny(tmp_path / "whole", *THREE).digest


def test_a_deadline_that_passes_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match=r"client-000, client-001: not started before the deadline of 1e-09 s"):
        run_tiny(tmp_path, "federation.round_timeout_s=1e-9")


def test_diverging_clients_are_named_with_their_errors(tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match=r"client-000: .*(loss is (nan|inf)|not finite after training)"):
        run_tiny(tmp_path, "training.learning_rate=1e30", "training.local_epochs=3")


def test_a_damaged_store_ends_the_stage_whatever_the_quorum(tmp_path: Path) -> None:
    """It is not the client's fault, and the next would meet it too."""

    def damage(kind: str, values: dict[str, object]) -> None:
        if kind == "round_started":
            for path in (tmp_path / "blocks" / "sha256").iterdir():
                path.write_bytes(b"")

    with pytest.raises(CheckpointError, match="corrupted"):
        run_tiny(tmp_path, "federation.min_fit_clients=1", emit=damage)


def test_only_the_sampled_clients_train(tmp_path: Path) -> None:
    done = run_tiny(
        tmp_path, "federation={num_clients: 4, fraction_fit: 0.5}", "stages.rounds=[4,0]", "training.local_steps=1"
    )  # fmt: skip
    cohorts = [tuple(record["cohort"]) for record in done.reported("round")]
    assert all(len(cohort) == 2 for cohort in cohorts) and len(set(cohorts)) > 1
    for record in done.reported("round"):
        assert list(record["clients"]) == record["cohort"]
        trained = [v["client"] for v in done.reported("client_done") if v["round"] == record["round"]]
        assert sorted(trained) == record["cohort"]


def test_records_say_what_happened(finished: Finished) -> None:
    for record in finished.reported("round"):
        clients = record["clients"].values()
        loss = sum(m["num_examples"] * m["loss"] for m in clients) / sum(m["num_examples"] for m in clients)
        assert record["metrics"]["train/loss"] == pytest.approx(loss)
        assert set(record["wall_s"]) >= {"round", "train", "aggregate", "evaluate"}
        assert record["wall_s"]["round"] >= record["wall_s"]["train"] > 0
        assert record["failed"] == {}
    for number, stage in enumerate(finished.reported("stage"), start=1):
        assert stage["digest"] == finished.checkpoint(number).digest
        assert stage["input_digest"] == ("" if number == 1 else finished.checkpoint(number - 1).digest)
        assert stage["ledger"]["predicted"]["stage"] == number and not stage["reused"]
    summary = finished.summary
    assert summary["status"] == "finished" and summary["digest"] == finished.checkpoint(2).digest
    assert summary == finished.store.read_ref(paths.summary(finished.run.run_id))
    assert summary["metrics"] == finished.reported("round")[-1]["metrics"]
    sent = sum(m["bytes_up"] for r in finished.reported("round") for m in r["clients"].values()) / 2
    assert summary["ledger"]["measured"]["bytes_up"] == pytest.approx(sent), "of one client over all rounds"


def test_updates_are_dropped_once_they_are_aggregated(finished: Finished) -> None:
    left = [key for key in finished.store.list("stages/") if "/updates/" in key]
    assert left and not [key for key in left if key.endswith(".safetensors")]
    assert len([key for key in left if key.endswith("update.json")]) == 8, "who took part stays written down"


def test_a_clients_cache_is_gone_when_the_run_is_over(finished: Finished) -> None:
    assert not (Path(finished.store.uri) / "cache" / finished.run.run_id).exists()


def test_while_it_runs_a_clients_cache_holds_the_frozen_blocks_and_nothing_else(tmp_path: Path) -> None:
    held: list[set[str]] = []

    def look(kind: str, values: dict[str, Any]) -> None:
        if kind == "client_done" and values["stage"] == 2:
            (folder,) = (tmp_path / "cache").glob(f"*/{values['client']}/0")
            held.append({path.name for path in folder.iterdir()})
            (folder / "left-by-a-kill.4711").write_bytes(b"x")

    done = run_tiny(tmp_path, "levers.prefix_cache=never", emit=look)
    start = done.checkpoint(2, 0)
    frozen = {f"{start.blocks[unit].digest}.safetensors" for unit in done.plans[1].frozen}
    assert len(held) == 4 and all(names == frozen for names in held)


SPARE = ("federation.num_clients=4", "federation.fraction_fit=0.5", "stages.rounds=[2,1]", "data.shapes.train=32")


def accepted(done: Finished) -> list[list[str]]:
    return [sorted(record["clients"]) for record in done.reported("round")]


def test_a_round_goes_on_as_soon_as_it_has_the_updates_it_needs(tmp_path: Path) -> None:
    plain = run_tiny(tmp_path / "plain", *SPARE)
    done = run_tiny(tmp_path / "spare", *SPARE, "federation.oversample=2")
    assert done.digest == plain.digest and accepted(done) == accepted(plain), "in order, and nobody failed"
    assert done.keys != plain.keys
    for record in done.reported("round"):
        assert len(record["cohort"]) == 4 and record["failed"] == {} and len(record["clients"]) == 2
    assert len(done.reported("client_started")) == len(plain.reported("client_started")) == 6, "no spare started"


def test_a_spare_takes_the_place_of_a_client_that_fails(tmp_path: Path) -> None:
    plain = run_tiny(tmp_path / "plain", *SPARE)
    missing = accepted(plain)[0][0]
    done = run_tiny(tmp_path / "spare", *SPARE, "federation.oversample=1.5", launcher=without(missing))
    first = done.reported("round")[0]
    assert set(first["failed"]) == {missing} and set(first["clients"]) == set(first["cohort"]) - {missing}
    assert len(first["cohort"]) == 3


def test_equal_accepted_sets_of_an_oversampled_round_end_in_the_same_digest(tmp_path: Path) -> None:
    """Stopped once two of four are accepted, the run goes on with these two."""
    options = (*SPARE, "federation.oversample=2")
    whole = run_tiny(tmp_path / "whole", *options)

    def stop(kind: str, values: dict[str, Any]) -> None:
        if kind == "aggregating":
            raise Stopped

    with pytest.raises(Stopped):
        run_tiny(tmp_path / "stopped", *options, options=RUN, emit=stop)
    assert run_tiny(tmp_path / "stopped", *options, options=RUN).digest == whole.digest


def test_sampled_by_size_the_updates_have_the_weights_that_this_needs(tmp_path: Path) -> None:
    options = ("federation.num_clients=4", "stages.rounds=[1,1]", "data.shapes.train=32")
    whole = run_tiny(tmp_path / "all", *options, "federation.sampling=by_size")
    assert whole.digest == run_tiny(tmp_path / "plain", *options).digest, "with all clients it is FedAvg"
    half = run_tiny(tmp_path / "half", *options, "federation.sampling=by_size", "federation.fraction_fit=0.5")
    values = half.store.read_ref(paths.accepted(half.keys[0], 1))
    assert values is not None and len(values["clients"]) == 2
    assert len({item["weight"] for item in values["clients"].values()}) == 1, "drawn by chance, they weigh the same"
