"""Blocks: the tensors of one unit in one safetensors file, addressed by content; see `manifest`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lwfed.params import DTYPES, digest_raw, raw_bytes, spec_of
from lwfed.store.keys import remedy_for
from lwfed.store.manifest import Block, block_key
from lwfed.store.protocol import Data, Store
from lwfed.types.errors import CheckpointError
from lwfed.types.tensors import layout


def describe(tensors: Mapping[str, Tensor]) -> Block:
    """Hashes tensors; returns their block's manifest."""
    specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
    return Block(
        {name: (digest_raw(raw_bytes(tensors[name]), spec=specs[name]), specs[name]) for name in sorted(specs)}
    )


def file_chunks(tensors: Mapping[str, Tensor]) -> Iterable[Data]:
    """Yields the safetensors file of some tensors, chunk by chunk and without copies."""
    plan = layout({name: spec_of(tensor) for name, tensor in tensors.items()})
    yield plan.header
    for name in plan.spans:
        yield raw_bytes(tensors[name])


def write_block(store: Store, tensors: Mapping[str, Tensor], *, key: str | None = None) -> Block:
    """Writes a block, unless the store already has it intact.

    Args:
        store: The store.
        tensors: The tensors of one unit.
        key: The folder to write to instead of the shared one.

    Returns:
        The block.
    """
    block = describe(tensors)
    path = f"{key}/{block.digest}.safetensors" if key else block_key(block)
    if not _intact(store, path, block):
        store.put(path, file_chunks(tensors))
    return block


def _intact(store: Store, key: str, block: Block) -> bool:
    """Whether the store has a block intact; in a store that verifies writes, its length is proof enough."""
    if store.size(key) != block.nbytes:
        return False
    if store.verifies_writes:
        return True
    try:
        read_block(store, key, block)
    except CheckpointError:
        return False
    return True


def read_block(store: Store, key: str, block: Block) -> dict[str, Tensor]:
    """Reads a block straight into new tensors and checks every digest.

    Raises:
        CheckpointError: The block is missing, or does not match its manifest.
    """
    header = bytearray(len(block.file.header))
    tensors = {
        name: torch.empty(block.tensors[name][1].shape, dtype=DTYPES[block.tensors[name][1].dtype])
        for name in block.file.spans
    }
    data = {name: raw_bytes(tensor) for name, tensor in tensors.items()}
    store.read_into(key, [header, *data.values()], nbytes=block.nbytes)
    if header != block.file.header:
        raise _corrupted(key, "its header is wrong")
    for name, content in data.items():
        digest, spec = block.tensors[name]
        if digest_raw(content, spec=spec) != digest:
            raise _corrupted(key, f"the digest of {name} is wrong")
    return tensors


def read_tensor(store: Store, key: str, block: Block, name: str) -> Tensor:
    """Reads one tensor of a block by its byte range and checks its digest. Raises CheckpointError."""
    digest, spec = block.tensors[name]
    start, stop = block.file.spans[name]
    data = store.get(key, start=start, stop=stop)
    if digest_raw(data, spec=spec) != digest:
        raise _corrupted(key, f"the digest of {name} is wrong")
    if not data:
        return torch.empty(spec.shape, dtype=DTYPES[spec.dtype])
    return torch.frombuffer(data, dtype=DTYPES[spec.dtype]).reshape(spec.shape)


def _corrupted(key: str, what: str) -> CheckpointError:
    return CheckpointError(f"{key} is corrupted: {what}", remedy=remedy_for(key))
