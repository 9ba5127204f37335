"""Laws of reuse: equal work has equal keys, so it is done once; --fresh does it again and finds the same."""

from __future__ import annotations

from pathlib import Path

from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.steps.prepare import draft
from lwfed.store import paths
from lwfed.store.checkpoint import read_checkpoint
from lwfed.store.local import LocalStore
from lwfed.types.records import Parent
from tests.tiny import Finished, run_tiny, tensors_of, tiny_spec


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_second_run_of_the_same_spec_trains_nothing(tmp_path: Path) -> None:
    first = run_tiny(tmp_path, options=Options(run_id="first"))
    before = files(tmp_path)
    second = run_tiny(tmp_path, options=Options(run_id="second"))
    assert [stage["reused"] for stage in second.summary["stages"]] == [True, True]
    assert not second.reported("round_started") and not second.reported("client_started")
    assert second.digest == first.digest and second.keys == first.keys
    assert files(tmp_path) - before == {"runs/second/run.json", "runs/second/summary.json"}


def test_a_finished_run_is_found_whatever_decides_no_number(finished: Finished) -> None:
    root = finished.store.uri
    again = tiny_spec(
        root, "name=other", "launch={kind: subprocess, parallel: 2, device: cpu}", "data.workers=2",
        "federation.round_timeout_s=5", "store.keep_rounds=0", "tracking.uri=sqlite:///x.db",
    )  # fmt: skip
    assert runs.find_finished(finished.store, draft(again, store=finished.store, options=Options())) == (
        finished.run.run_id
    )
    for override in ("seed=1", "strategy=progressive", "stages.rounds=[2,1]", "training.batch_size=6"):
        other = draft(tiny_spec(root, override), store=finished.store, options=Options())
        assert runs.find_finished(finished.store, other) is None, override


def test_stages_that_are_equal_are_shared_by_different_runs(tmp_path: Path) -> None:
    first = run_tiny(tmp_path, options=Options(run_id="first"))
    other = run_tiny(tmp_path, "training.learning_rates={image: [1.25e-3, 3.0e-4]}", options=Options(run_id="other"))
    assert other.keys[0] == first.keys[0] and other.keys[1] != first.keys[1], "stage 1 has the rates it had"
    longer = run_tiny(tmp_path, "stages.rounds=[2,3]", options=Options(run_id="longer"))
    assert longer.keys[0] == first.keys[0] and longer.summary["stages"][0]["reused"]
    assert not longer.summary["stages"][1]["reused"]


def test_fresh_trains_again_under_other_keys_and_ends_in_the_same_digest(tmp_path: Path) -> None:
    first = run_tiny(tmp_path, options=Options(run_id="first"))
    fresh = run_tiny(tmp_path, options=Options(run_id="fresh", fresh=True))
    assert fresh.digest == first.digest
    assert not set(fresh.keys) & set(first.keys)
    assert len(fresh.reported("client_done")) == 8, "every client did train"
    assert [r["digest"] for r in fresh.reported("round")] == [r["digest"] for r in first.reported("round")]


def test_a_rerun_keeps_the_stages_before_it(tmp_path: Path) -> None:
    first = run_tiny(tmp_path, options=Options(run_id="first"))
    again = run_tiny(
        tmp_path, "training.learning_rate=1e-2", options=Options(run_id="again", parent=("first", 2))
    )  # fmt: skip
    assert again.keys[0] == first.keys[0] and again.keys[1] != first.keys[1]
    assert again.run.parent == Parent(run_id="first", stage=2)
    assert {v["stage"] for v in again.reported("client_done")} == {2}
    assert again.digest != first.digest
    assert run_tiny(tmp_path, options=Options(run_id="third")).digest == first.digest, "the parent stands"


def test_pruning_keeps_what_other_stages_name(tmp_path: Path) -> None:
    """Equal seeds give equal first blocks to different runs: pruning one must not take the other's."""
    run_tiny(tmp_path, "stages.rounds=[3,3]", "store.keep_rounds=1", options=Options(run_id="one"))
    run_tiny(tmp_path, "stages.rounds=[3,3]", "store.keep_rounds=1", "strategy=progressive",
             options=Options(run_id="two"))  # fmt: skip
    for run_id in ("one", "two"):
        store = LocalStore(tmp_path)
        for item in runs.read_run(store, run_id).stages:
            checkpoint = read_checkpoint(store, paths.stage_checkpoint(item.key))
            assert checkpoint is not None and tensors_of(store, checkpoint)


def test_pruning_bounds_what_a_stage_leaves(tmp_path: Path) -> None:
    kept = {}
    for keep, rounds in ((2, 3), (2, 6), (0, 6)):
        folder = tmp_path / f"{keep}-{rounds}"
        run_tiny(folder, f"stages.rounds=[{rounds},1]", f"store.keep_rounds={keep}")
        kept[keep, rounds] = len(list((folder / "blocks" / "sha256").iterdir()))
    assert kept[2, 3] == kept[2, 6] < kept[0, 6]
