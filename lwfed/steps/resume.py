"""What a run may be resumed with, and what it takes over from its parent; anything else is refused before any work."""

from __future__ import annotations

from lwfed.run import runs
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.errors import ResumeError, SpecError
from lwfed.types.records import Parent, RunRecord


def with_stages_of(run: RunRecord, parent: tuple[str, int], *, store: Store) -> RunRecord:
    """Returns the run with its parent's stages before the first stage that it trains itself."""
    parent_id, first = parent
    other = runs.read_run(store, parent_id)
    total = len(runs.plans_of(run))
    if not 1 <= first <= total:
        raise ResumeError(f"{parent_id} has no stage {first}", remedy=f"name a stage from 1 to {total}")
    taken = [item for item in other.stages if item.stage < first]
    run = run.changed(stages=taken, parent=Parent(run_id=parent_id, stage=first))
    runs.input_digest_of(store, run, first)
    return run


def refuse_another_plan(run: RunRecord, *, store: Store) -> None:
    """Raises ResumeError if a run of this id exists with another parent, plan, data or code."""
    existing = runs.find_run(store, run.run_id)
    if existing is None:
        return
    if existing.salt != run.salt and run.salt:
        raise ResumeError(f"the run {run.run_id} exists already", remedy="omit --fresh, or choose another --run-id")
    if run.parent is not None and existing.parent != run.parent:
        raise ResumeError(f"the run {run.run_id} exists and has another parent", remedy="choose another --run-id")
    before = runs.plans_of(existing)
    now = runs.plans_of(run.changed(data=existing.data))  # whose version is compared below
    if before != now:
        stage = next((b.stage for b, n in zip(before, now, strict=False) if b != n), min(len(before), len(now)) + 1)
        names = ", ".join(_differing(existing, run))
        raise ResumeError(
            f"the run {run.run_id} was started with another spec: {names} differ(s) from stage {stage} on",
            remedy="use the spec it was started with, or omit --run-id to start another run",
        )
    if existing.data.version != run.data.version:
        raise ResumeError(
            f"the data of run {run.run_id} have changed since it was started",
            remedy="restore them, or omit --run-id to start another run",
        )
    if existing.code_version != run.code_version:
        raise ResumeError(
            f"the run {run.run_id} was started by another version of the code or of its libraries",
            remedy="install that version, or omit --run-id to start another run",
        )


def resumed(run: RunRecord, *, store: Store) -> RunRecord | None:
    """Returns the stored run, updated with the settings that a resume may change (places, deadlines ...)."""
    existing = runs.find_run(store, run.run_id)
    if existing is None:
        return None
    refuse_another_plan(run, store=store)
    changed = existing.changed(spec=run.spec)
    if changed != existing:
        store.write_ref(paths.run(run.run_id), changed.to_values())
    return changed


def _differing(existing: RunRecord, run: RunRecord) -> list[str]:
    """Returns the sections of the spec that make another plan; others, such as `store`, may differ in a resume."""
    keys = [key for key in run.spec if existing.spec.get(key) != run.spec[key]]
    found = []
    for key in keys:
        changed = existing.changed(spec={**existing.spec, key: run.spec[key]})
        if key == "model":
            changed = changed.changed(model=run.model, depths=run.depths)
        try:
            same = runs.plans_of(changed) == runs.plans_of(existing)
        except SpecError:  # it fits other sections that differ as well
            same = False
        if not same:
            found.append(key)
    return sorted(found) or ["the plan"]
