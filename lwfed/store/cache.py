"""A client's own cache of frozen blocks: what does not change is fetched once, not every round."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from lwfed.store.blocks import Block, block_key, read_file
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError


class BlockCache:
    """Blocks kept in a folder that outlives the client's process; without a folder nothing is kept."""

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = Path(folder) if folder else None

    def fetch(self, store: Store, block: Block) -> Path:
        """Gives a local file of a block; only a block that is not here yet is asked of the store.

        Where the folder cannot be written or is full, the block is not kept and comes from the store each time.
        """
        if self._folder is None:
            return store.fetch(block_key(block))
        path = self._folder / f"{block.digest}.safetensors"
        if path.is_file() and path.stat().st_size == block.nbytes:
            return path
        source = store.fetch(block_key(block))
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, temporary)
            except OSError:  # another file system
                shutil.copyfile(source, temporary)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            return source
        return path

    def read(self, path: Path, block: Block, *, store: Store) -> dict[str, Tensor]:
        """Reads what `fetch` gave; a damaged copy is dropped and fetched again. Raises CheckpointError."""
        try:
            return read_file(path, block)
        except CheckpointError:
            if path.parent != self._folder:  # it is the store's own
                raise
            path.unlink(missing_ok=True)
            return read_file(self.fetch(store, block), block)

    def keep_only(self, blocks: Collection[Block]) -> None:
        """Removes what is not among some blocks, so that the cache does not grow over the stages."""
        if self._folder is None or not self._folder.is_dir():
            return
        wanted = {f"{block.digest}.safetensors" for block in blocks}
        for path in self._folder.iterdir():
            if path.name not in wanted:
                path.unlink(missing_ok=True)
