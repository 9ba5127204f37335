"""Laws of a client's cache of frozen blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lwfed.store.blocks import write_block
from lwfed.store.cache import BlockCache
from lwfed.store.counting import CountingStore
from lwfed.store.local import LocalStore
from lwfed.store.manifest import Block, block_key


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(LocalStore(tmp_path / "store"))


def block_of(store: CountingStore, value: float) -> Block:
    return write_block(store, {"image.blocks.0.w": torch.full((100,), value)})


def test_a_block_is_fetched_once(store: CountingStore, tmp_path: Path) -> None:
    block = block_of(store, 1.0)
    for _ in range(3):
        read = BlockCache(tmp_path / "cache").read(store, block)  # a new process each time
        assert torch.equal(read["image.blocks.0.w"], torch.ones(100))
        assert store.bytes_read == block.nbytes


def test_without_a_folder_nothing_is_kept(store: CountingStore) -> None:
    block = block_of(store, 1.0)
    for times in (1, 2):
        assert BlockCache(None).read(store, block)
        assert store.bytes_read == times * block.nbytes
    BlockCache(None).keep_only([])


def test_what_the_store_has_lost_the_cache_still_has(store: CountingStore, tmp_path: Path) -> None:
    block = block_of(store, 1.0)
    cache = BlockCache(tmp_path / "cache")
    cache.hold(store, block)
    store.delete(block_key(block))
    assert cache.read(store, block)


def test_keeping_only_some_bounds_the_cache(store: CountingStore, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = BlockCache(folder)
    blocks = [block_of(store, float(n)) for n in range(6)]
    for number in range(2, 6):
        wanted = blocks[number - 2 : number]
        cache.keep_only(wanted)
        for block in wanted:
            cache.hold(store, block)
        assert {path.name for path in folder.iterdir()} == {f"{block.digest}.safetensors" for block in wanted}
    assert store.bytes_read == sum(block.nbytes for block in blocks[:5]), "each was fetched once"
    (folder / "left-by-a-kill.4711").write_bytes(b"x")
    cache.keep_only([])
    assert not list(folder.iterdir())
    assert all(store.has(block_key(block)) for block in blocks), "the store's own files stand"


def test_a_file_cut_short_is_fetched_anew(store: CountingStore, tmp_path: Path) -> None:
    block = block_of(store, 1.0)
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / f"{block.digest}.safetensors").write_bytes(b"half")
    assert torch.equal(BlockCache(folder).read(store, block)["image.blocks.0.w"], torch.ones(100))
