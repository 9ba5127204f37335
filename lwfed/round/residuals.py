"""Residuals: the rounding error of a client's upload, kept in its own folder and added to its next upload.

Each update has one residual, stored under the update's digest and never overwritten. A residual counts only if its
update was accepted: a round's `round.json`, which every client can read, names each client's last accepted update. So
the residual of an update that arrived too late is never used, and the one before it still is. The residual of an update
that stays in memory is stored under its round: if a kill loses the round, it runs again from the last one that counted,
and writes the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lwfed import environment
from lwfed.round.context import ClientContext
from lwfed.store import paths
from lwfed.store.blocks import read_block, write_block
from lwfed.store.local import LocalStore
from lwfed.store.manifest import Block
from lwfed.types.encoded import is_lossless
from lwfed.types.errors import CheckpointError, DiskFullError, UnreachableError

IN_MEMORY = "update"
"""Names the residual of an update that stays in memory, instead of the update's digest."""
State = Literal["fresh", "used", "lost"]
"""State of the previous residual: there was none, it was added to the upload, or it is missing."""


@dataclass(frozen=True)
class Residuals:
    """A client's residuals at the start of a round.

    Attributes:
        store: The client's own folder; None if it has none, or if the codec is lossless.
        stage_key: The stage.
        server_round: The round.
        last: Round of the client's last accepted update, and its digest unless it stayed in memory; None if there is
            none in this stage.
        blocks: Unit -> block of that update's residual; None if there is none or it is lost.
    """

    store: LocalStore | None
    stage_key: str
    server_round: int
    last: Mapping[str, Any] | None
    blocks: Mapping[str, Block] | None

    @property
    def state(self) -> State:
        """The residual's state, as far as known before it is read."""
        if self.last is None:
            return "fresh"
        return "lost" if self.blocks is None else "used"

    def read(self, unit: str) -> dict[str, Tensor] | None:
        """Reads a unit's residual; empty if there is none, None if it is lost."""
        if self.last is None:
            return {}
        if self.store is None or self.blocks is None or unit not in self.blocks:
            return None
        block = self.blocks[unit]
        try:
            return read_block(self.store, _file(self.stage_key, self.last["round"], block), block)
        except (CheckpointError, OSError):
            return None

    def write(self, tensors: Mapping[str, Tensor]) -> Block | None:
        """Writes a unit's residual of this round. Returns None if there is no room for it."""
        if self.store is None:
            return None
        try:
            return write_block(self.store, tensors, key=_folder(self.stage_key, self.server_round))
        except (DiskFullError, UnreachableError, OSError):
            return None

    def commit(self, blocks: Mapping[str, Block | None], *, digest: str | None) -> bool:
        """Records which blocks are an update's residual. Returns whether all of them were written.

        Args:
            blocks: Unit -> what `write` returned.
            digest: The update's digest; None: the update stays in memory.
        """
        kept = {unit: block.to_values() for unit, block in blocks.items() if block is not None}
        if self.store is None or len(kept) < len(blocks):
            return False
        try:
            ref = _manifest(self.stage_key, self.server_round, digest)
            self.store.write_ref(ref, kept, if_absent=digest is not None)
        except (DiskFullError, UnreachableError, OSError):
            return False
        return True

    def prune(self, stages_before: Iterator[str]) -> None:
        """Removes residuals that can no longer count: earlier stages, and all rounds but this and the last accepted."""
        if self.store is None:
            return
        wanted = {f"{self.server_round:03d}", f"{self.last['round']:03d}" if self.last else ""}
        with suppress(OSError):
            for folder in (self.store.root / self.stage_key).iterdir():
                if folder.name not in wanted:
                    shutil.rmtree(folder, ignore_errors=True)
        for key in stages_before:
            if key != self.stage_key:
                shutil.rmtree(self.store.root / key, ignore_errors=True)


def open_residuals(ctx: ClientContext) -> Residuals:
    """Finds the residual of a client's last accepted update.

    Args:
        ctx: The client's part of the round.

    Raises:
        CheckpointError: The round has not started.
    """
    last = None
    lossless = is_lossless(ctx.plan.exchange.upload)
    if ctx.server_round > 1 and not lossless:  # each stage starts without residuals
        ref = paths.round_task(ctx.key, ctx.server_round)
        task = ctx.store.read_ref(ref)
        if task is None or "counted" not in task:
            raise CheckpointError(f"{ref} is not committed", remedy=environment.resume_hint())
        last = task["counted"].get(ctx.client)
    path = ctx.folder("residuals")
    folder = None if path is None or lossless else LocalStore(path)
    blocks = None
    if folder is not None and last is not None:
        with suppress(CheckpointError, OSError):
            values = folder.read_ref(_manifest(ctx.key, last["round"], last.get("digest")))
            blocks = None if values is None else {unit: Block.from_values(item) for unit, item in values.items()}
    return Residuals(folder, ctx.key, ctx.server_round, last, blocks)


def _folder(key: str, server_round: int) -> str:
    return f"{key}/{server_round:03d}"


def _file(key: str, server_round: int, block: Block) -> str:
    return f"{_folder(key, server_round)}/{block.digest}.safetensors"


def _manifest(key: str, server_round: int, digest: str | None) -> str:
    return f"{_folder(key, server_round)}/{digest or IN_MEMORY}.json"
