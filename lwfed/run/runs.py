"""Runs: small records that list an experiment's stages by key."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from lwfed.plan.groups import untrained
from lwfed.plan.stages import StagePlan, plan_stages, stage_key
from lwfed.spec.load import build_spec
from lwfed.spec.model import ModelSpec
from lwfed.spec.run import RunSpec
from lwfed.spec.stored import stored_values
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.store.refs import damaged, read_object, read_record
from lwfed.types.errors import CheckpointError, NotFoundError, SpecError
from lwfed.types.records import DataRecord, RunRecord, StageKey, StageRecord
from lwfed.types.round_records import RoundRecord


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run.

    Attributes:
        run_id: Its id; None for a new one.
        fresh: Train again, even if equal work is committed.
        parent: The run it starts from, and the first stage it trains itself.
    """

    run_id: str | None = None
    fresh: bool = False
    parent: tuple[str, int] | None = None


def new_run_id(spec: RunSpec, *, now: datetime) -> str:
    """Returns a run id made of the spec's name and the time."""
    return f"{spec.name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def find_run(store: Store, run_id: str) -> RunRecord | None:
    """Reads a run, or None if there is none."""
    return read_record(store, paths.run(run_id), RunRecord)


def read_run(store: Store, run_id: str) -> RunRecord:
    """Reads a run. Raises NotFoundError, with the nearest known id, if there is none."""
    run = find_run(store, run_id)
    if run is None:
        known = list(run_ids(store))
        near = difflib.get_close_matches(run_id, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "see `lwfed list`"
        raise NotFoundError(f"there is no run `{run_id}` in {store.uri}", remedy=hint)
    return run


def run_ids(store: Store) -> Iterator[str]:
    """Yields the ids of all runs, sorted."""
    for key in store.list("runs/"):
        if key.endswith("/run.json"):
            yield key.split("/")[1]


def spec_of(run: RunRecord, *, overrides: Sequence[str] = ()) -> RunSpec:
    """Returns a run's spec, with overrides.

    Raises:
        SpecError: An override does not fit.
        CheckpointError: The stored spec is damaged, or was written by a version of lwfed with other keys.
    """
    values = stored_values(run.spec)
    try:
        return build_spec(values, overrides=overrides)
    except SpecError as error:
        if not overrides:
            raise damaged(paths.run(run.run_id), f"its spec: {error.problem}") from None
        spec_of(run)  # if it is the stored spec that is wrong
        raise


def with_counted_clients(spec: RunSpec, *, store: Store, run_id: str) -> RunSpec:
    """Returns a run's spec with the number of its clients, if only the data tell it and the run has been prepared."""
    run = find_run(store, run_id) if spec.federation.num_clients is None else None
    return spec if run is None else spec.model_copy(update={"federation": spec_of(run).federation})


def plans_of(run: RunRecord) -> tuple[StagePlan, ...]:
    """Returns the plans of all stages of a run, with complete encoder settings in place of names of weights."""
    try:
        spec = spec_of(run).model_copy(update={"model": ModelSpec.model_validate(run.model)})
        return plan_stages(spec, depths=run.depths, fitted=run.fitted, lacks=lacked(run.data))
    except (ValidationError, LookupError) as error:
        raise damaged(paths.run(run.run_id), " ".join(str(error).split())[:300]) from None


def lacked(data: DataRecord) -> dict[str, tuple[str, ...]]:
    """Returns the modalities that too few of a client's examples have to train them; see `untrained`."""
    return untrained(data.lacks, sizes=data.clients)


def key_of(run: RunRecord, plan: StagePlan, *, input_digest: str) -> str:
    """Returns the key of a stage of a run."""
    return stage_key(plan, input_digest=input_digest, code_version=run.code_version, data_version=data_version_of(run))


def data_version_of(run: RunRecord) -> str:
    """Returns the data version that enters a run's stage keys; each `--fresh` run has its own."""
    return f"{run.data.version}:{run.salt}" if run.salt else run.data.version


def stage_key_of(run: RunRecord, stage: int) -> str | None:
    """Returns the key that a run recorded for a stage, or None."""
    return next((item.key for item in run.stages if item.stage == stage), None)


def note_stage(store: Store, run: RunRecord, stage: int, key: str) -> RunRecord:
    """Records a stage's key in a run. Returns the changed run."""
    others = [item for item in run.stages if item.stage != stage]
    stages = sorted([*others, StageKey(stage=stage, key=key)], key=lambda item: item.stage)
    noted = run.changed(stages=stages)
    store.write_ref(paths.run(run.run_id), noted.to_values())
    return noted


def note_committed(store: Store, run: RunRecord, *, before: int) -> RunRecord:
    """Records the keys of committed stages before `before` that the run did not train itself.

    Args:
        store: The store that holds the run.
        run: The run.
        before: The stage whose predecessors are recorded.

    Returns:
        The changed run.
    """
    for plan in plans_of(run)[: before - 1]:
        if stage_key_of(run, plan.stage) is None:
            key = key_of(run, plan, input_digest=input_digest_of(store, run, plan.stage))
            if not store.has(paths.stage_checkpoint(key)):
                break
            run = note_stage(store, run, plan.stage, key)
    return run


def input_digest_of(store: Store, run: RunRecord, stage: int) -> str:
    """Returns the digest of the checkpoint that a stage starts from; empty for the first stage.

    Raises:
        CheckpointError: The previous stage is not committed.
    """
    if stage == 1:
        return ""
    before = stage_key_of(run, stage - 1)
    committed = None if before is None else read_object(store, paths.stage_checkpoint(before), digest=str)
    if committed is None:
        raise CheckpointError(
            f"stage {stage - 1} of run {run.run_id} is not committed",
            remedy=f"run it first: lwfed run --run-id {run.run_id}",
        )
    return committed["digest"]


def find_finished(store: Store, run: RunRecord) -> str | None:
    """Returns the id of the run that committed the last stage if all stages are committed, else None."""
    digest, maker = "", None
    for plan in plans_of(run):
        key = key_of(run, plan, input_digest=digest)
        committed = read_object(store, paths.stage_checkpoint(key), digest=str)
        if committed is None:
            return None
        digest, maker = committed["digest"], committed.get("made_by")
    return maker if maker is not None and store.has(paths.summary(maker)) else None


def history(store: Store, run: RunRecord) -> tuple[list[StageRecord], list[RoundRecord]]:
    """Reads a run's committed records.

    Returns:
        StageRecords and RoundRecords, in order.
    """
    stages, rounds = [], []
    for item in run.stages:
        record = read_record(store, paths.stage_record(item.key), StageRecord)
        if record is not None:
            made_by = (read_object(store, paths.stage_checkpoint(item.key)) or {}).get("made_by")
            stages.append(record.changed(reused=made_by != run.run_id))
        rounds += rounds_of(store, item.key)
    return stages, rounds


def rounds_of(store: Store, key: str) -> list[RoundRecord]:
    """Reads the committed records of a stage's rounds, in order."""
    rounds: list[RoundRecord] = []
    while (done := read_record(store, paths.round_record(key, len(rounds) + 1), RoundRecord)) is not None:
        rounds.append(done)
    return rounds
