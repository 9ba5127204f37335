"""An experiment as a chain of tasks, each on its own, is the experiment in one piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lwfed.drive import tasks
from lwfed.plan.stages import plan_stages
from lwfed.run import runs
from lwfed.run.specs import pack_spec
from lwfed.spec.load import build_spec
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.canonical import digest_of
from lwfed.types.errors import CheckpointError, SpecError
from lwfed.types.records import Parent
from tests.tiny import DEPTHS, GATED, VALUES, Finished, run_tiny


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return build_spec({**VALUES, "store": {"uri": str(tmp_path / "store")}})


@pytest.fixture
def store(spec: RunSpec) -> LocalStore:
    return LocalStore(spec.store.uri)


def named(monkeypatch: pytest.MonkeyPatch, run_id: str) -> None:
    monkeypatch.setenv("LWFED_RUN_ID", run_id)


def plan_digest(spec: RunSpec, stage: int) -> str:
    return digest_of(plan_stages(spec, depths=DEPTHS)[stage - 1].model_dump(mode="json"))


def chain(
    spec: RunSpec, store: LocalStore, *, stages: tuple[int, ...] = (1, 2), **prepare: Any
) -> tuple[list[str], tasks.Reported]:
    """Runs the tasks as a pipeline chains them: only strings go from one to the next."""
    common = {"spec": pack_spec(spec, store=store), "store": store.uri}
    prepared = tasks.prepare(**common, **prepare)
    digests, digest = [], prepared.input_digest
    for stage in stages:
        done = tasks.train_stage(
            **common,
            stage=stage,
            plan_digest=plan_digest(spec, stage),
            input_digest=digest,
            data_version=prepared.data_version,
            code_version=prepared.code_version,
        )
        assert done.html.startswith("<!doctype html>") and done.metrics
        digest = done.digest
        digests.append(digest)
    last = stages[-1]
    assert tasks.evaluate(**common, stage=last, digest=digest).metrics.keys() >= {"test/loss", "test/t2i/R@1"}
    return digests, tasks.report(**common, stage=last, digest=digest)


def test_stages_that_a_gate_ends_are_chained_and_evaluated_at_their_best_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks know the rounds only from the stages' records: a gate ended the stages before their last round."""
    whole = run_tiny(tmp_path / "whole", *GATED)
    named(monkeypatch, "r")
    spec = build_spec(VALUES | {"store": {"uri": str(tmp_path / "store")}}, overrides=GATED)
    store = LocalStore(spec.store.uri)
    digests, _ = chain(spec, store)
    assert digests == [stage["digest"] for stage in whole.summary["stages"]]
    last = whole.summary["stages"][-1]
    assert last["result_round"] < last["rounds"] < spec.stages.rounds[-1]
    common = {"spec": pack_spec(spec, store=store), "store": store.uri}
    evaluated = tasks.evaluate(**common, stage=2, digest=digests[-1]).metrics
    assert {name: last["metrics"][name] for name in evaluated} == evaluated


def test_a_chain_of_tasks_ends_in_the_digest_of_a_run(
    spec: RunSpec, store: LocalStore, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, "r")
    digests, reported = chain(spec, store)
    assert digests[-1] == finished.summary["digest"]
    summary = store.read_ref(paths.summary("r"))
    assert summary["status"] == "finished" and summary["digest"] == digests[-1]
    key = runs.read_run(store, "r").stages[-1].key
    assert reported.model["store_uri"] == f"file://{store.uri}/{paths.stage_checkpoint(key)}"
    assert reported.model["digest"] == digests[-1]
    assert store.has(paths.report("r")) and "Text to image recall" in reported.html

    named(monkeypatch, "again")  # all is committed: nothing is trained
    again, _ = chain(spec, store)
    assert again == digests
    assert all(record.reused for record in runs.history(store, runs.read_run(store, "again"))[0])

    named(monkeypatch, "skipping")  # the platform skips stage 1, whose strings are those of the run before
    common = {"spec": pack_spec(spec, store=store), "store": store.uri}
    prepared = tasks.prepare(**common)
    done = tasks.train_stage(
        **common, stage=2, plan_digest="", input_digest=digests[0],
        data_version=prepared.data_version, code_version=prepared.code_version,
    )  # fmt: skip
    assert done.digest == digests[1]

    named(monkeypatch, "rerun")
    rerun, _ = chain(spec, store, stages=(2,), parent="r:2")
    assert rerun == digests[1:]
    assert runs.read_run(store, "rerun").parent == Parent(run_id="r", stage=2)

    named(monkeypatch, "fresh")
    fresh, _ = chain(spec, store, fresh=True)
    records, _ = runs.history(store, runs.read_run(store, "fresh"))
    assert fresh == digests and not any(record.reused for record in records)


def test_strings_that_do_not_fit_the_run_are_refused(
    spec: RunSpec, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, "r")
    common = {"spec": pack_spec(spec, store=store), "store": store.uri}
    prepared = tasks.prepare(**common)
    right = {
        "plan_digest": plan_digest(spec, 1),
        "input_digest": "",
        "data_version": prepared.data_version,
        "code_version": prepared.code_version,
    }
    for name, what in (("plan_digest", "the plan"), ("data_version", "the data"), ("code_version", "the code")):
        with pytest.raises(SpecError, match=what):
            tasks.train_stage(**common, stage=1, **{**right, name: "0" * 64})
    with pytest.raises(SpecError, match="the input"):
        tasks.train_stage(**common, stage=1, **{**right, "input_digest": "0" * 64})
    with pytest.raises(CheckpointError, match="stage 1 of run r is not committed"):
        tasks.train_stage(**common, stage=2, **right)
    with pytest.raises(CheckpointError, match="is not committed with digest"):
        tasks.report(**common, stage=2, digest="0" * 64)
    with pytest.raises(SpecError, match="RUN:STAGE"):
        tasks.prepare(**common, parent="r")
