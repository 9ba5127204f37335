"""Laws of blocks: addressed by content, and a wrong byte is noticed wherever it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lwfed.params import digest
from lwfed.store.blocks import describe, read_block, read_tensor, write_block
from lwfed.store.counting import CountingStore
from lwfed.store.local import LocalStore
from lwfed.store.manifest import Block, block_key
from lwfed.types.canonical import digest_of
from lwfed.types.errors import CheckpointError
from lwfed.types.tensors import layout

TENSORS: dict[str, Tensor] = {
    "image.blocks.0.w": torch.arange(60, dtype=torch.float32).reshape(5, 12) / 7,
    "image.blocks.0.b": torch.tensor([-0.0, float("nan"), float("inf"), 1e-45]),
    "image.blocks.0.scale": torch.tensor(2.5),
    "image.blocks.0.count": torch.tensor(3, dtype=torch.int64),
    "image.blocks.0.empty": torch.empty(0, 4),
    "image.blocks.0.half": torch.ones(3, dtype=torch.bfloat16),
}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and digest(a) == digest(b)


def test_a_block_is_read_as_it_was_written(store: LocalStore) -> None:
    block = write_block(store, TENSORS)
    path = store.fetch(block_key(block))
    read = read_block(store, block_key(block), block)
    assert read.keys() == TENSORS.keys() == load_file(path).keys()
    assert all(same(read[name], TENSORS[name]) for name in TENSORS)
    assert path.stat().st_size == block.nbytes


def test_a_tensor_read_by_its_range_is_that_of_the_whole_file(store: LocalStore) -> None:
    counting = CountingStore(store)
    block = write_block(counting, TENSORS)
    read = read_block(store, block_key(block), block)
    for name, tensor in read.items():
        counting.bytes_read = 0
        assert same(read_tensor(counting, block_key(block), block, name), tensor), name
        assert counting.bytes_read == tensor.numel() * tensor.element_size(), "and no byte more is read"


def test_digests_are_those_of_the_names_and_tensors() -> None:
    block = describe(TENSORS)
    assert block.digest == digest_of({name: digest(tensor) for name, tensor in TENSORS.items()})
    assert describe(dict(reversed(TENSORS.items()))) == block
    renamed = {name.replace("blocks.0", "blocks.1"): tensor for name, tensor in TENSORS.items()}
    assert describe(renamed).digest != block.digest
    assert block.nbytes == layout(block.specs).nbytes
    assert Block.from_values(block.to_values()) == block


def test_equal_blocks_are_written_once(store: LocalStore) -> None:
    counting = CountingStore(store)
    first = write_block(counting, TENSORS)
    assert counting.bytes_written == first.nbytes
    write_block(counting, {name: tensor.clone() for name, tensor in TENSORS.items()})
    assert counting.bytes_written == first.nbytes
    write_block(counting, TENSORS, key="stages/k/updates/client-000")
    assert counting.bytes_written == 2 * first.nbytes, "a client's folder is its own"
    assert store.has(f"stages/k/updates/client-000/{first.digest}.safetensors")


def test_reading_gives_fresh_tensors(store: LocalStore) -> None:
    block = write_block(store, TENSORS)
    read_block(store, block_key(block), block)["image.blocks.0.w"].add_(1)
    read_tensor(store, block_key(block), block, "image.blocks.0.w").add_(1)
    assert same(read_block(store, block_key(block), block)["image.blocks.0.w"], TENSORS["image.blocks.0.w"])


def test_a_wrong_bit_anywhere_is_noticed(store: LocalStore) -> None:
    block = write_block(store, TENSORS)
    path = store.fetch(block_key(block))
    content = path.read_bytes()
    for position in range(block.nbytes):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :])
        with pytest.raises(CheckpointError, match="corrupted") as caught:
            read_block(store, block_key(block), block)
        assert "--fresh" in caught.value.remedy and caught.value.exit_code == 12
        hit = [name for name, (start, stop) in block.file.spans.items() if start <= position < stop]
        for name in hit:
            with pytest.raises(CheckpointError, match=f"the digest of {name} is wrong"):
                read_tensor(store, block_key(block), block, name)


@pytest.mark.parametrize("change", ["shorter", "longer", "empty", "header alone", "zeros"])
def test_a_file_of_another_length_is_noticed(store: LocalStore, change: str) -> None:
    block = write_block(store, TENSORS)
    path = store.fetch(block_key(block))
    content = path.read_bytes()
    header = len(layout(block.specs).header)
    path.write_bytes(
        {
            "shorter": content[:-1], "longer": content + b"x", "empty": b"", "header alone": content[:header],
            "zeros": bytes(len(content)),
        }[change]
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="corrupted"):
        read_block(store, block_key(block), block)
    if change in ("shorter", "empty", "header alone"):
        last = max(block.file.spans, key=lambda name: block.file.spans[name][1])
        with pytest.raises(CheckpointError, match="ends before byte"):
            read_tensor(store, block_key(block), block, last)


def test_a_missing_file_is_named(store: LocalStore) -> None:
    block = write_block(store, TENSORS)
    store.delete(block_key(block))
    with pytest.raises(CheckpointError, match=f"{block.digest}.safetensors is not in the store"):
        read_tensor(store, block_key(block), block, "image.blocks.0.w")


def test_a_file_that_swapped_two_tensors_is_noticed(store: LocalStore) -> None:
    tensors = {"image.stem.a": torch.ones(4), "image.stem.b": torch.zeros(4)}
    block = write_block(store, tensors)
    swapped = write_block(store, {"image.stem.a": tensors["image.stem.b"], "image.stem.b": tensors["image.stem.a"]})
    with pytest.raises(CheckpointError, match="digest"):
        read_block(store, block_key(swapped), block)
