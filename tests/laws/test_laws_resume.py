"""Laws of resuming: stopped anywhere and started again, a run ends in the uninterrupted digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.errors import ResumeError
from tests.tiny import Finished, Stopped, prepared, run_tiny, stop_at, tiny_spec

RUN = Options(run_id="again")


def rounds(done: Finished) -> dict[int, str]:
    """Global round -> digest, of the reported rounds."""
    return {record["global_round"]: record["digest"] for record in done.reported("round")}


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *[("round", k) for k in (1, 2, 3, 4)],
        ("stage_started", 2), ("round_started", 3), ("client_started", 4), ("client_step", 1), ("client_step", 5),
        ("client_done", 1), ("client_done", 6), ("aggregating", 2), ("aggregating", 4), ("stage", 1), ("stage", 2),
    ],
)  # fmt: skip
def test_stopped_anywhere_a_run_ends_in_the_same_digest(
    finished: Finished, tmp_path: Path, kind: str, count: int
) -> None:
    with pytest.raises(Stopped):
        run_tiny(tmp_path, options=RUN, emit=stop_at(kind, count))
    done = run_tiny(tmp_path, options=RUN)
    assert done.digest == finished.digest
    assert done.keys == finished.keys
    assert rounds(done).items() <= rounds(finished).items()


def test_stopped_at_every_event_a_run_still_ends_in_the_same_digest(finished: Finished, tmp_path: Path) -> None:
    """Each attempt dies at the first event that no attempt before it has seen, and so makes a step of progress."""
    seen: set[tuple[Any, ...]] = set()

    steps = ("stage_started", "round_started", "client_done", "aggregating", "round", "stage")

    def emit(kind: str, values: dict[str, Any]) -> None:
        place = (kind, *(values.get(key) for key in ("stage", "round", "client", "step")))
        if kind in steps and place not in seen:
            seen.add(place)
            raise Stopped

    attempts = 0
    done = None
    while done is None and attempts < 100:
        attempts += 1
        try:
            done = run_tiny(tmp_path, options=RUN, emit=emit)
        except Stopped:
            continue
    assert done is not None and attempts == len(seen) + 1
    most = 1 + 2 * (1 + 2 * (1 + 2 + 1 + 1) + 1)
    assert most - 4 <= attempts <= most, "stages, rounds, clients, as many deaths; one client may commit untold"
    assert done.digest == finished.digest


def test_what_is_committed_is_not_done_again(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run_tiny(tmp_path, options=RUN, emit=stop_at("client_done", 5))  # the first client of stage 2
    done = run_tiny(tmp_path, options=RUN)
    assert [(v["stage"], v["reused"]) for v in done.reported("stage_started")] == [(1, True), (2, False)]
    trained = [(v["stage"], v["round"], v["client"]) for v in done.reported("client_done")]
    left = [(2, 1, "client-001"), (2, 2, "client-000"), (2, 2, "client-001")]
    assert trained in (left, left[1:]), "the client after it may have committed before its news was heard"


def test_an_accepted_set_is_kept_though_the_coordinator_died_before_aggregating(
    finished: Finished, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        run_tiny(tmp_path, options=RUN, emit=stop_at("aggregating", 1))
    store = LocalStore(tmp_path)
    key = runs.stage_key_of(runs.read_run(store, "again"), 1)
    assert key is not None
    accepted = store.read_ref(paths.accepted(key, 1))
    done = run_tiny(tmp_path, options=RUN)
    assert store.read_ref(paths.accepted(key, 1)) == accepted is not None
    assert [v["client"] for v in done.reported("client_done")][:1] == ["client-000"]
    assert done.reported("client_done")[0]["round"] == 2, "nobody trains round 1 again"
    assert done.digest == finished.digest


def test_a_commit_that_lost_its_record_is_picked_up(finished: Finished, tmp_path: Path) -> None:
    """Killed between the commit of a round's checkpoint and the writing of its record, and the same for a stage."""
    run_tiny(tmp_path, options=RUN)
    store = LocalStore(tmp_path)
    first, second = (item.key for item in runs.read_run(store, "again").stages)
    store.delete(paths.round_record(second, 2))
    store.delete(paths.stage_record(second))
    store.delete(paths.stage_checkpoint(second))
    store.delete(paths.summary("again"))
    done = run_tiny(tmp_path, options=RUN)
    assert done.digest == finished.digest and not done.reported("client_done")
    assert rounds(done).items() <= rounds(finished).items() and {3, 4} <= rounds(done).keys()
    assert store.has(paths.stage_record(first))


def test_a_run_is_not_resumed_with_another_plan(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run_tiny(tmp_path, options=RUN, emit=stop_at("round", 1))
    store = LocalStore(tmp_path)
    with pytest.raises(ResumeError, match=r"started with another spec: training differ\(s\) from stage 1") as caught:
        other = tiny_spec(tmp_path, "training.learning_rate=1e-3", "launch.retries=3", "evaluation.batch_size=64")
        prepared(other, store=store, options=RUN)
    assert "--run-id" in caught.value.remedy
    with pytest.raises(ResumeError, match=r"stages differ\(s\) from stage 2 on"):
        prepared(tiny_spec(tmp_path, "stages.rounds=[2,3]"), store=store, options=RUN)
    again = prepared(tiny_spec(tmp_path, "launch.retries=3", "federation.round_timeout_s=9"), store=store, options=RUN)
    assert again.run_id == "again", "how fast it is done may change"
