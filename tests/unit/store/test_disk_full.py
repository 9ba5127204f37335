"""Laws of a full disk, on a real one of a megabyte: a named error, nothing half-written, and what was there stands."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lwfed.store.blocks import read_block, write_block
from lwfed.store.cache import BlockCache
from lwfed.store.local import LocalStore
from lwfed.store.manifest import block_key
from lwfed.types.errors import DiskFullError


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_what_was_there_stands(small_disk: Path) -> None:
    store = LocalStore(small_disk / "store")
    kept = {"image.stem.w": torch.arange(50_000, dtype=torch.float32)}
    block = write_block(store, kept)
    store.write_ref("ref.json", {"digest": block.digest})
    before = sorted(path for path in small_disk.rglob("*") if path.is_file())
    with pytest.raises(DiskFullError, match=r"no space left in .* for blocks/sha256/") as caught:
        write_block(store, {"image.blocks.0.w": torch.ones(400_000)})
    assert caught.value.exit_code == 16
    assert "--run-id" in caught.value.remedy and "nothing committed is lost" in caught.value.remedy
    assert sorted(path for path in small_disk.rglob("*") if path.is_file()) == before, "no half of a file is left"
    assert torch.equal(read_block(store, block_key(block), block)["image.stem.w"], kept["image.stem.w"])
    small = write_block(store, {"image.blocks.0.w": torch.ones(10_000)})
    assert store.has(f"blocks/sha256/{small.digest}.safetensors"), "what fits can still be written"


@pytest.mark.parametrize("chunk", [100, 5000, 100_000, 2_000_000])
def test_a_full_disk_is_left_clean_whatever_was_buffered(small_disk: Path, chunk: int) -> None:
    store = LocalStore(small_disk)
    with pytest.raises(DiskFullError):
        store.put("big", (b"x" * chunk for _ in range(0, 2_000_000, chunk)))
    assert not [path.name for path in small_disk.rglob("*") if path.is_file()]


def test_refs_and_logs_on_a_full_disk(small_disk: Path) -> None:
    store = LocalStore(small_disk)
    store.write_ref("r", {"n": 1})
    store.append("log", b"one\n")
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            try:
                if not filler.write(b"x" * 4096):
                    break
            except OSError:
                break
    for write in (
        lambda: store.write_ref("r", {"n": 2, "fill": "x" * 9000}),
        lambda: store.write_ref("new", {"fill": "x" * 9000}, if_absent=True),
        lambda: store.append("log", b"x" * 9000),
    ):
        with pytest.raises(DiskFullError):
            write()
    assert store.read_ref("r") == {"n": 1} and not store.has("new")
    assert {path.name for path in small_disk.rglob("*") if path.is_file()} == {"r", "log", "filler"}


def test_a_clients_cache_on_a_full_disk_is_done_without(small_disk: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    tensors = {"image.stem.w": torch.ones(400_000)}
    block = write_block(store, tensors)
    read = BlockCache(small_disk / "cache").read(store, block)
    assert torch.equal(read["image.stem.w"], tensors["image.stem.w"])
    assert not [path for path in small_disk.rglob("*") if path.is_file()], "and no half of a block is kept"
