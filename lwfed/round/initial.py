"""The initial blocks of a run's stages, drawn when the run is prepared so that the coordinator need not load torch."""

from __future__ import annotations

from collections.abc import Sequence

from lwfed.models.build import initial_tensors
from lwfed.params import by_unit
from lwfed.plan.stages import StagePlan
from lwfed.run import runs
from lwfed.store import paths
from lwfed.store.ahead import parallel_map
from lwfed.store.blocks import write_block
from lwfed.store.manifest import Block
from lwfed.store.protocol import Store
from lwfed.types.records import RunRecord


def draw(run: RunRecord, plan: StagePlan, *, units: Sequence[str], store: Store) -> dict[str, Block]:
    """Writes the blocks of units that a stage appends: pretrained if the spec names weights, else seeded.

    Args:
        run: The run.
        plan: The stage's plan.
        units: The units to write.
        store: The store to write to.

    Returns:
        Unit -> its block.

    Raises:
        DataError: Pretrained weights are missing, are a pickle, or have another architecture.
    """
    tensors = initial_tensors(
        runs.spec_of(run).model, units=units, depth=plan.depth, num_classes=run.num_classes, seed=plan.seed
    )
    members = by_unit(tensors)
    return dict(zip(members, parallel_map(lambda unit: write_block(store, members[unit]), members), strict=True))


def draw_all(run: RunRecord, *, store: Store) -> None:
    """Writes the blocks that a run's stages append, and a ref that lists them, unless the ref exists already."""
    ref = paths.initial(run.run_id)
    if store.has(ref):
        return
    plans = runs.plans_of(run)
    first = run.parent.stage if run.parent else 1
    blocks: dict[str, Block] = {}
    for plan in plans[first - 1 :]:
        before = plans[plan.stage - 2].present if plan.stage > 1 else ()
        blocks |= draw(run, plan, units=[unit for unit in plan.present if unit not in before], store=store)
    store.write_ref(ref, {unit: block.to_values() for unit, block in sorted(blocks.items())})
