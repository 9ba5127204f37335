"""Removal of superseded rounds' weights, except those that another checkpoint still needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from lwfed.plan.gates import Progress, rounds_read
from lwfed.plan.stages import ImprovementGate
from lwfed.run.stage import Stage
from lwfed.store import paths
from lwfed.store.checkpoint import read_checkpoint
from lwfed.store.manifest import block_key
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError


def prune_rounds(stage: Stage, *, store: Store, keep_rounds: int, server_round: int, stands: Progress) -> None:
    """Removes the blocks of the round that a commit supersedes or, at a stage's last round, of all but its result.

    Round 0 is kept: its seeded blocks are shared by all runs with the same seed, and its other blocks are the previous
    stage's result. So are the round that would be the stage's result, and those that its gate reads.

    Args:
        stage: The stage.
        store: Its store.
        keep_rounds: Number of latest rounds whose weights stay while the stage runs; 0 keeps all.
        server_round: The round that was committed.
        stands: Where the stage stands after it.
    """
    if not keep_rounds:
        return
    keep_rounds = max(keep_rounds, rounds_read(stage.plan))
    latest = () if stands.over else range(server_round - keep_rounds + 1, server_round + 1)
    kept = {0, stands.result, *latest}
    oldest = 1 if isinstance(stage.plan.gate, ImprovementGate) else max(1, server_round - keep_rounds)
    superseded = [r for r in range(oldest, server_round + 1) if r not in kept]
    candidates = _blocks(store, [paths.round_checkpoint(stage.key, r) for r in superseded])
    if not candidates:
        return
    needed = _blocks(store, [paths.round_checkpoint(stage.key, r) for r in kept])
    needed |= _blocks(store, _refs_of_others(store, mine=stage.key))
    for key in candidates - needed:
        store.delete(key)


def _refs_of_others(store: Store, *, mine: str) -> Iterator[str]:
    """Yields the checkpoints of other stages: result and round 0 of a finished one, all rounds of one still running."""
    for key in store.folders(paths.STAGES):  # not all keys: each round leaves one per client
        if key == mine:
            continue
        if store.has(result := paths.stage_checkpoint(key)):
            yield from (result, paths.round_checkpoint(key, 0))
        else:
            numbers = [int(name) for name in store.folders(paths.rounds(key)) if name.isdecimal()]
            yield from (paths.round_checkpoint(key, number) for number in numbers)


def _blocks(store: Store, refs: Sequence[str] | Iterator[str]) -> set[str]:
    """Returns the keys of checkpoints' blocks; a missing or damaged checkpoint adds none and raises no error."""
    found: set[str] = set()
    for ref in refs:
        with suppress(CheckpointError):
            checkpoint = read_checkpoint(store, ref)
            if checkpoint is not None:
                found |= {block_key(block) for block in checkpoint.all_blocks()}
    return found
