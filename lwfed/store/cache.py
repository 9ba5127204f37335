"""A client's own cache of blocks: what does not change, or is made from what came before, is not fetched again."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from lwfed.store.blocks import file_chunks, read_block
from lwfed.store.counting import CountingStore
from lwfed.store.local import LocalStore
from lwfed.store.manifest import Block, block_key
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError, LwfedError


class BlockCache:
    """Blocks kept in a folder that outlives the client's process; without a folder nothing is kept."""

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = Path(folder) if folder else None

    @property
    def keeps_nothing(self) -> bool:
        """Whether it has no folder."""
        return self._folder is None

    def read(self, store: Store, block: Block) -> dict[str, Tensor]:
        """Reads a block into fresh tensors; only one that is not kept yet is asked of the store.

        A damaged copy is dropped. Where the folder cannot be written or is full, the block is not
        kept and comes from the store each time.

        Raises:
            CheckpointError: The store's own is missing or damaged.
        """
        path = self._keep(store, block)
        if path is None:
            return read_block(store, block_key(block), block)
        try:
            return read_block(LocalStore(path.parent), path.name, block)
        except CheckpointError:
            path.unlink(missing_ok=True)
        return read_block(store, block_key(block), block)

    def hold(self, store: Store, block: Block) -> None:
        """Keeps a block whose tensors this process has already, as a process of the client's own would."""
        if self._folder is None and isinstance(store, CountingStore):
            store.count_as_read(block.nbytes)
        self._keep(store, block)

    def has(self, block: Block) -> bool:
        """Whether a block is kept, going by its length."""
        path = None if self._folder is None else self._folder / _name(block)
        return path is not None and path.is_file() and path.stat().st_size == block.nbytes

    def held(self, block: Block) -> dict[str, Tensor] | None:
        """Reads a block that is kept and whole; the store is not asked."""
        if self._folder is None:
            return None
        try:
            return read_block(LocalStore(self._folder), _name(block), block)
        except CheckpointError:
            return None

    def add(self, block: Block, tensors: Mapping[str, Tensor]) -> None:
        """Keeps a block that this client made itself; one that finds no room is not kept."""
        if self._folder is None:
            return
        path = self._folder / _name(block)
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                for chunk in file_chunks(tensors):
                    file.write(chunk)
            temporary.replace(path)
        except OSError:
            _remove(temporary)

    def keep_only(self, blocks: Collection[Block]) -> None:
        """Removes what is not among some blocks, so that the cache does not grow over the stages."""
        if self._folder is None or not self._folder.is_dir():
            return
        wanted = {_name(block) for block in blocks}
        for path in self._folder.iterdir():
            if path.name not in wanted:
                path.unlink(missing_ok=True)

    def _keep(self, store: Store, block: Block) -> Path | None:
        """Returns the kept file of a block, fetched if need be; None where it cannot be kept."""
        if self._folder is None:
            return None
        path = self._folder / _name(block)
        if path.is_file() and path.stat().st_size == block.nbytes:
            return path
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # of a process that was killed
            store.fetch(block_key(block), to=temporary)
            temporary.replace(path)
        except LwfedError:
            _remove(temporary)
            raise
        except OSError:
            _remove(temporary)
            return None
        return path


def _name(block: Block) -> str:
    return f"{block.digest}.safetensors"


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
