"""Laws of checkpoints' manifests: a digest of weights and moments, and a wrong byte never passes for another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lwfed.params import by_unit, digest
from lwfed.store.blocks import read_block, read_tensor, write_block
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.local import LocalStore
from lwfed.store.manifest import block_key
from lwfed.types.canonical import digest_of
from lwfed.types.errors import CheckpointError

REF = "stages/k/checkpoint.json"
WEIGHTS = {
    "image.stem.w": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "image.blocks.0.w": torch.ones(4),
    "image.projection.n": torch.tensor(7),
}
MOMENTS = {"image.stem.w:m": torch.zeros(2, 3), "image.stem.w:v": torch.full((2, 3), 0.5)}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


@pytest.fixture
def checkpoint(store: LocalStore) -> Checkpoint:
    blocks = {unit: write_block(store, members) for unit, members in by_unit(WEIGHTS).items()}
    server = {unit: write_block(store, members) for unit, members in by_unit(MOMENTS).items()}
    written = Checkpoint(blocks=blocks, server=server)
    store.write_ref(REF, {**written.to_values(), "made_by": "run-1"})
    return written


def test_a_manifest_is_read_as_it_was_written(store: LocalStore, checkpoint: Checkpoint) -> None:
    assert read_checkpoint(store, REF) == checkpoint
    assert read_checkpoint(store, "stages/other/checkpoint.json") is None
    assert {block.digest for block in checkpoint.all_blocks()} == {
        b.digest for b in (*checkpoint.blocks.values(), *checkpoint.server.values())
    }


def test_the_digest_is_of_weights_and_moments(checkpoint: Checkpoint) -> None:
    expected = {name: digest(tensor) for name, tensor in WEIGHTS.items()}
    expected |= {f"server:{name}": digest(tensor) for name, tensor in MOMENTS.items()}
    assert checkpoint.digest == digest_of(expected)
    assert Checkpoint(blocks=checkpoint.blocks).digest != checkpoint.digest
    assert Checkpoint(blocks=dict(reversed(checkpoint.blocks.items())), server=checkpoint.server).digest == (
        checkpoint.digest
    )


def test_a_wrong_bit_in_a_manifest_never_gives_another_model(store: LocalStore, checkpoint: Checkpoint) -> None:
    """Every bit of the manifest flipped in turn: it is noticed, or it was white space or said nothing of the model."""
    path = store.fetch(REF)
    content = path.read_bytes()
    expected = load_all(store)
    noticed = 0
    for position in range(len(content)):
        for bit in (0, 1, 4, 6, 7):
            path.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
            try:
                found = load_all(store)
            except CheckpointError:
                noticed += 1
                continue
            assert found == expected, (position, content[position - 20 : position + 20], bit)
    assert noticed > 0.75 * 5 * len(content.replace(b" ", b"").replace(b"\n", b""))


@pytest.mark.parametrize(
    "damage",
    [
        {"blocks": 3}, {"blocks": []}, {"server": None}, {"digest": 5}, {"blocks": {"image.stem": 3}},
        {"blocks": {"image.stem": {}}}, {"blocks": {"image.stem": {"digest": "x", "nbytes": 1, "tensors": []}}},
    ],
)  # fmt: skip
def test_a_manifest_of_another_form_is_refused(store: LocalStore, checkpoint: Checkpoint, damage: object) -> None:
    values = {**checkpoint.to_values(), **damage}  # type: ignore[dict-item]
    store.write_ref(REF, values)
    with pytest.raises(CheckpointError):
        read_checkpoint(store, REF)


@pytest.mark.parametrize("key", ["digest", "blocks", "server"])
def test_a_manifest_that_lacks_a_part_is_refused(store: LocalStore, checkpoint: Checkpoint, key: str) -> None:
    values = checkpoint.to_values()
    del values[key]
    store.write_ref(REF, values)
    with pytest.raises(CheckpointError, match=f"lacks .*{key}") as caught:
        read_checkpoint(store, REF)
    assert "--fresh" in caught.value.remedy


def load_all(store: LocalStore) -> dict[str, str]:
    """Reads a whole checkpoint, file by file and tensor by tensor: unit and name -> digest."""
    checkpoint = read_checkpoint(store, REF)
    assert checkpoint is not None
    found: dict[str, str] = {}
    for kind, blocks in (("", checkpoint.blocks), ("server:", checkpoint.server)):
        for unit, block in blocks.items():
            tensors: dict[str, Tensor] = read_block(store, block_key(block), block)
            for name, tensor in tensors.items():
                found[f"{kind}{unit} {name}"] = digest(tensor)
                assert digest(read_tensor(store, block_key(block), block, name)) == digest(tensor)
    return found
