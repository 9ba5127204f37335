"""A client's cache of blocks: blocks that do not change, or that the client made itself, are not fetched again."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
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
    """Blocks in a folder that outlives the client's process; without a folder it keeps nothing."""

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = Path(folder) if folder else None

    @property
    def is_disabled(self) -> bool:
        """Whether it has no folder, so that it keeps nothing."""
        return self._folder is None

    def read(self, store: Store, block: Block) -> dict[str, Tensor]:
        """Reads a block into new tensors; it comes from the store only if it is not cached yet.

        A damaged copy is deleted. If the folder is full or not writable, the block is not cached and comes from the
        store each time.

        Raises:
            CheckpointError: The store's own copy is missing or damaged.
        """
        self._fetch(store, block)
        cached = self.read_cached(block)
        return read_block(store, block_key(block), block) if cached is None else cached

    def hold(self, store: Store, block: Block) -> None:
        """Caches a block whose tensors this process already has, as a process of the client's own would."""
        if self._folder is None and isinstance(store, CountingStore):
            store.count_as_read(block.nbytes)
        self._fetch(store, block)

    def has(self, block: Block) -> bool:
        """Whether a block is cached, judging by its length."""
        return self._folder is not None and LocalStore(self._folder).size(_name(block)) == block.nbytes

    def read_cached(self, block: Block) -> dict[str, Tensor] | None:
        """Reads a block from the cache alone; returns None if it is missing, or damaged and hence deleted."""
        if self._folder is None:
            return None
        try:
            return read_block(LocalStore(self._folder), _name(block), block)
        except CheckpointError:
            _remove(self._folder / _name(block))
            return None

    def add(self, block: Block, tensors: Mapping[str, Tensor]) -> None:
        """Caches a block that this client made itself; skips it if there is no space."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.writelines(file_chunks(tensors))

        self._keep(block, write)

    def keep_only(self, blocks: Collection[Block]) -> None:
        """Deletes all other blocks, so that the cache does not grow from stage to stage."""
        if self._folder is None or not self._folder.is_dir():
            return
        wanted = {_name(block) for block in blocks}
        for path in self._folder.iterdir():
            if path.name not in wanted:
                path.unlink(missing_ok=True)

    def _fetch(self, store: Store, block: Block) -> None:
        """Fetches a block that is not cached yet."""
        if not self.has(block):
            self._keep(block, lambda path: store.fetch(block_key(block), to=path))

    def _keep(self, block: Block, write: Callable[[Path], object]) -> None:
        """Caches a block, completely or not at all, whose file `write` makes; skips it if there is no space."""
        if self._folder is None:
            return
        path = self._folder / _name(block)
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # left by a process that was killed
            write(temporary)
            temporary.replace(path)
        except OSError as error:
            if isinstance(error, LwfedError):  # of the store
                raise
        finally:
            _remove(temporary)


def _name(block: Block) -> str:
    return f"{block.digest}.safetensors"


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
