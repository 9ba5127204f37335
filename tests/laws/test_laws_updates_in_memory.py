"""Laws of `store.updates: memory`: digests are those of stored updates, whatever happens; no update is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lwfed.federated.aggregators.clipped import Clipped
from lwfed.launch import in_process
from lwfed.run.runs import Options
from lwfed.run.tasks import ClientTask
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.errors import QuorumError, SpecError
from tests.laws.test_laws_blending import BLENDED, MEASURED
from tests.laws.test_laws_lacking import settings
from tests.tiny import MOVING, Finished, Stopped, run_tiny, stop_at, tiny_spec

MEMORY = "store.updates=memory"
INT8 = "exchange.upload=int8"
UNEVEN = ("federation.num_clients=3", "federation.min_fit_clients=2", "data.shapes.train=31")
RUN = Options(run_id="again")


def digests(done: Finished) -> list[str]:
    """Returns the digests of all rounds."""
    return [record["digest"] for record in done.reported("round")]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (INT8,),
        (*UNEVEN, "exchange.upload=bf16", "exchange.download=int8"),
        (*UNEVEN, "federation.aggregators=[{kind: clipped, max_norm: 0.05}]", "federation.server={kind: fedadam}"),
        ("federation.num_clients=5", "federation.fraction_fit=0.6", "data.shapes.train=43"),
        (*UNEVEN, "federation.sampling=by_size", "federation.fraction_fit=0.7"),
        (*UNEVEN, "federation.groups=[{name: weak, clients: [client-001], max_blocks: 0}]", "stages.rounds=[1,2]"),
        (*MOVING, "stages.rounds=[3,1]", "federation.server={kind: fedavgm, momentum: 0.5}"),
        (BLENDED, *MEASURED),
    ],
    ids=["fp32", "int8", "bf16 and int8", "clipped", "sampled", "by size", "groups", "gate", "blending"],
)
def test_it_ends_in_the_digests_of_stored_updates(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    kept = run_tiny(tmp_path / "kept", *overrides)
    held = run_tiny(tmp_path / "held", *overrides, MEMORY)
    assert digests(held) == digests(kept) and held.keys == kept.keys
    assert held.summary["ledger"]["measured"] == kept.summary["ledger"]["measured"]
    metrics = [record["metrics"] for record in held.reported("round")]
    assert metrics == [record["metrics"] for record in kept.reported("round")]


@pytest.mark.parametrize("unsent", [(), ("federation.modality_quorum={audio: 2}", "federation.unsent=keep")])
def test_clients_that_lack_a_modality_count_for_what_they_have(tmp_path: Path, unsent: tuple[str, ...]) -> None:
    chosen = settings(
        tmp_path, "stages.rounds=[2,1]", "evaluation.federated_every=1", "evaluation.holdout_fraction=0.25", *unsent
    )
    kept, held = run_tiny(tmp_path / "kept", *chosen), run_tiny(tmp_path / "held", *chosen, MEMORY)
    assert digests(held) == digests(kept)
    assert [record.get("kept_units") for record in held.reported("round")] == [
        record.get("kept_units") for record in kept.reported("round")
    ]


def test_no_update_is_written_and_the_accepted_set_names_clients_without_digests(tmp_path: Path) -> None:
    seen: list[bool] = []
    store = LocalStore(tmp_path)

    def look(kind: str, values: dict[str, Any]) -> None:
        if kind == "aggregating":
            written = list(store.list("stages/"))
            assert not any("/updates/" in key for key in written)
            seen.append(any(key.endswith(f"{values['round']:03d}/accepted.json") for key in written))

    done = run_tiny(tmp_path, "stages.rounds=[1,0]", MEMORY, emit=look)
    assert seen == [False], "it is written with the result"
    accepted = store.read_ref(paths.accepted(done.keys[0], 1))
    assert accepted is not None
    assert {client: one["num_examples"] for client, one in accepted["clients"].items()} == {
        "client-000": 12, "client-001": 12,
    }  # fmt: skip
    assert not any("digest" in one for one in accepted["clients"].values())


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_stopped_at_every_event_a_run_still_ends_in_the_same_digest(tmp_path: Path, codec: str) -> None:
    """Each attempt dies at the first event that no attempt before it has seen; every other one has stored updates."""
    overrides = (f"exchange.upload={codec}", "stages.rounds=[3,1]")
    kinds = ("stage_started", "round_started", "client_started", "client_done", "aggregating", "round", "stage")
    seen: set[tuple[Any, ...]] = set()

    def emit(kind: str, values: dict[str, Any]) -> None:
        place = (kind, *(values.get(key) for key in ("stage", "round", "client")))
        if kind in kinds and place not in seen:
            seen.add(place)
            raise Stopped

    done = None
    while done is None:
        assert len(seen) < 100
        try:
            done = run_tiny(tmp_path / "stopped", *overrides, MEMORY, options=RUN, emit=emit)
        except Stopped:
            continue
    assert len(seen) >= 2 + 4 * 4, "two stages, four rounds with two clients that begin and end"
    assert done.digest == run_tiny(tmp_path / "whole", *overrides).digest
    assert not any("lost_residuals" in record for record in done.reported("round"))


@pytest.mark.parametrize("codec", ["fp32", "int8"])
@pytest.mark.parametrize("first", ["keep", "memory"])
@pytest.mark.parametrize(("kind", "count"), [("client_done", 3), ("aggregating", 2)])
def test_a_stopped_run_goes_on_in_the_other_way(tmp_path: Path, codec: str, first: str, kind: str, count: int) -> None:
    overrides = (f"exchange.upload={codec}", "stages.rounds=[3,0]")
    with pytest.raises(Stopped):
        run_tiny(tmp_path / "a", *overrides, f"store.updates={first}", options=RUN, emit=stop_at(kind, count))
    other = "memory" if first == "keep" else "keep"
    done = run_tiny(tmp_path / "a", *overrides, f"store.updates={other}", options=RUN)
    assert done.digest == run_tiny(tmp_path / "b", *overrides).digest


class Dying(LocalStore):
    """A store whose process dies at a write: before it, or just after."""

    def __init__(self, root: Path, *, suffix: str, after: bool) -> None:
        super().__init__(root)
        self.suffix, self.after = suffix, after

    def write_ref(self, key: str, value: Any, *, if_absent: bool = False) -> bool:
        dies = key.endswith(self.suffix)
        if dies and not self.after:
            raise Stopped
        wrote = super().write_ref(key, value, if_absent=if_absent)
        if dies:
            raise Stopped
        return wrote


@pytest.mark.parametrize("then", ["keep", "memory"])
@pytest.mark.parametrize(
    ("suffix", "after"),
    [("002/accepted.json", False), ("002/accepted.json", True), ("002/checkpoint.json", True)],
)
def test_an_accepted_set_counts_with_its_result(tmp_path: Path, suffix: str, after: bool, then: str) -> None:
    overrides = (INT8, "stages.rounds=[3,0]")
    dying = Dying(tmp_path / "a", suffix=suffix, after=after)
    with pytest.raises(Stopped):
        run_tiny(tmp_path / "a", *overrides, MEMORY, options=RUN, store=dying)
    done = run_tiny(tmp_path / "a", *overrides, f"store.updates={then}", options=RUN)
    whole = run_tiny(tmp_path / "b", *overrides)
    assert done.digest == whole.digest
    again = {values["client"] for values in done.reported("client_done") if values["round"] == 2}
    assert again == (set() if suffix.endswith("checkpoint.json") else {"client-000", "client-001"})


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Clients that fail in the second round of a stage; to be filled."""
    absent = set[str]()
    train = in_process.train_locally

    def fails(task: ClientTask, **options: Any) -> Any:
        if task.server_round == 2 and task.client in absent:
            raise RuntimeError("its data are gone")
        return train(task, **options)

    monkeypatch.setattr(in_process, "train_locally", fails)
    return absent


@pytest.mark.parametrize(
    ("absent", "again"),
    [(("client-000",), 0), (("client-003",), 3), (("client-001", "client-003"), 2)],
)
def test_whoever_fails_the_mean_is_that_of_the_others(
    tmp_path: Path, failing: set[str], absent: tuple[str, ...], again: int
) -> None:
    """With 18, 9, 9 and 8 examples: without the last client the weights have another odd factor, so all begin again."""
    shares = ("data.shapes.train=44", "federation.partition={kind: dirichlet, alpha: 2, min_size: 4}")
    overrides = (INT8, "federation.num_clients=4", *shares, "stages.rounds=[3,0]")
    failing.update(absent)
    kept = run_tiny(tmp_path / "kept", *overrides)
    held = run_tiny(tmp_path / "held", *overrides, MEMORY)
    assert digests(held) == digests(kept)
    assert [set(record["failed"]) for record in held.reported("round")] == [set(), set(absent), set()]
    assert sorted(held.run.data.clients.values()) == [8, 9, 9, 18]
    assert len(held.reported("client_started")) - len(kept.reported("client_started")) == again


@pytest.mark.parametrize("absent", ["client-000", "client-003", "client-005"])
def test_a_spare_takes_the_place_of_a_client_that_fails(tmp_path: Path, failing: set[str], absent: str) -> None:
    """Each of the spares has an id before or after that of a client that was drawn, or fewer examples."""
    overrides = (
        "federation.num_clients=6", "federation.fraction_fit=0.5", "federation.oversample=1.6",
        "data.shapes.train=71", "stages.rounds=[2,0]",
    )  # fmt: skip
    failing.add(absent)
    kept = run_tiny(tmp_path / "kept", *overrides)
    held = run_tiny(tmp_path / "held", *overrides, MEMORY)
    assert digests(held) == digests(kept)
    cohort = kept.reported("round")[1]["cohort"]
    assert len(cohort) == 5 and len(kept.reported("round")[1]["clients"]) == 3


def test_too_few_updates_fail_the_round_and_it_goes_on(tmp_path: Path, failing: set[str]) -> None:
    overrides = ("stages.rounds=[2,0]",)
    failing.add("client-001")
    with pytest.raises(QuorumError, match="client-001: RuntimeError"):
        run_tiny(tmp_path, *overrides, MEMORY, options=RUN)
    failing.clear()
    done = run_tiny(tmp_path, *overrides, MEMORY, options=RUN)
    assert done.digest == run_tiny(tmp_path / "whole", *overrides).digest


def test_processes_of_their_own_cannot_keep_updates_in_memory(tmp_path: Path) -> None:
    for kind in ("subprocess", "kubernetes", "agents"):
        with pytest.raises(SpecError, match=rf"`store.updates: memory` .* `launch.kind: {kind}`.*store.updates=keep"):
            tiny_spec(tmp_path, MEMORY, f"launch.kind={kind}", "kubernetes.image=lwfed")


def test_an_aggregator_that_needs_all_updates_at_once_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clipped, "one_by_one", False)
    with pytest.raises(SpecError, match=r"`federation.aggregators` \(clipped\) needs all .*store.updates=keep"):
        run_tiny(tmp_path, "federation.aggregators=[{kind: clipped, max_norm: 1.0}]", MEMORY)
