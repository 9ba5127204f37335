"""Blocks: the tensors of one unit in one safetensors file, addressed by content; see `manifest`."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import TypeVar

import torch
from torch import Tensor

from lwfed.params import DTYPES, digest, hasher_of, raw_bytes, spec_of
from lwfed.store.ahead import taken_ahead
from lwfed.store.keys import remedy_for
from lwfed.store.manifest import SHARED, Block, file_name
from lwfed.store.pieces import pieces_of
from lwfed.store.protocol import Data, Store
from lwfed.types.errors import CheckpointError
from lwfed.types.tensors import TensorSpec, layout

R = TypeVar("R")


PIECE_BYTES = 4 << 20
"""Bytes that are hashed while the next ones are read or those before are written; what is smaller has no thread."""


def describe(tensors: Mapping[str, Tensor]) -> Block:
    """Hashes tensors; returns their block's manifest."""
    return _manifest({name: (digest(tensor), spec_of(tensor)) for name, tensor in tensors.items()})


def file_chunks(tensors: Mapping[str, Tensor]) -> Iterable[Data]:
    """Yields the safetensors file of some tensors, chunk by chunk and without copies."""
    plan = layout({name: spec_of(tensor) for name, tensor in tensors.items()})
    yield plan.header
    for name in plan.spans:
        yield raw_bytes(tensors[name])


def write_block(store: Store, tensors: Mapping[str, Tensor], *, key: str | None = None) -> Block:
    """Writes a block, unless the store already has it intact. Each byte is hashed once, beside the writing.

    Args:
        store: The store.
        tensors: The tensors of one unit.
        key: The folder to write to instead of the shared one.

    Returns:
        The block.
    """
    folder = key or SHARED
    found: dict[str, tuple[str, TensorSpec]] = {}
    written: list[Block] = []

    def name() -> str | None:
        block = _manifest(found)
        written.append(block)
        return None if _intact(store, f"{folder}/{file_name(block)}", block) else file_name(block)

    with closing(_beside(_hashed(tensors, found), nbytes=sum(tensor.nbytes for tensor in tensors.values()))) as chunks:
        store.put_named(folder, chunks, name=name)
    return written[-1]


def _hashed(tensors: Mapping[str, Tensor], found: dict[str, tuple[str, TensorSpec]]) -> Generator[Data, None, None]:
    """Yields the file of some tensors, piece by piece, each when it is hashed; adds their digests to `found`."""
    plan = layout({name: spec_of(tensor) for name, tensor in tensors.items()})
    yield plan.header
    for name in plan.spans:
        spec = spec_of(tensors[name])
        hasher = hasher_of(spec)
        for piece in pieces_of(raw_bytes(tensors[name]), PIECE_BYTES):
            hasher.update(piece)
            yield piece
        found[name] = (hasher.hexdigest(), spec)


def _beside(items: Generator[R, None, None], *, nbytes: int) -> Generator[R, None, None]:
    """Yields items that stand for so many bytes; a thread makes the next one meanwhile if that is worth a thread."""
    return taken_ahead(items) if nbytes > PIECE_BYTES else items


def _manifest(found: Mapping[str, tuple[str, TensorSpec]]) -> Block:
    return Block({name: found[name] for name in sorted(found)})


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

    Each byte is hashed once, while the next ones are read.

    Raises:
        CheckpointError: The block is missing, or does not match its manifest.
    """
    header = bytearray(len(block.file.header))
    tensors = {name: _empty(block.tensors[name][1]) for name in block.file.spans}
    parts = store.read_parts(key, [header, *map(raw_bytes, tensors.values())], total=block.nbytes)
    with closing(_beside(parts, nbytes=block.nbytes)) as arriving:
        there = _wait(arriving, len(header), 0)
        if header != block.file.header:
            raise _corrupted(key, "its header is wrong")
        _check(key, block, tensors, arriving=arriving, there=there, begin=len(header))
    return tensors


def read_tensor(store: Store, key: str, block: Block, name: str) -> Tensor:
    """Reads one tensor of a block by its byte range and checks its digest. Raises CheckpointError."""
    start, stop = block.file.spans[name]
    tensor = _empty(block.tensors[name][1])
    parts = store.read_parts(key, [raw_bytes(tensor)], start=start)
    with closing(_beside(parts, nbytes=stop - start)) as arriving:
        _check(key, block, {name: tensor}, arriving=arriving)
    return tensor


def _check(
    key: str, block: Block, tensors: Mapping[str, Tensor], *, arriving: Iterator[int], there: int = 0, begin: int = 0
) -> None:
    """Hashes tensors that follow each other in a file, as far as they are there, until all are.

    Args:
        key: The file.
        block: Its manifest.
        tensors: The tensors that are being read.
        arriving: Counts of bytes that are there, as `Store.read_parts` yields them.
        there: The last count.
        begin: The count of the bytes before the first tensor.
    """
    for name, tensor in tensors.items():
        expected, spec = block.tensors[name]
        content, hasher, done = raw_bytes(tensor), hasher_of(spec), 0
        while done < len(content):
            there = _wait(arriving, begin + done + 1, there)
            stop = min(there - begin, len(content))
            hasher.update(content[done:stop])
            done = stop
        begin += len(content)
        if hasher.hexdigest() != expected:
            raise _corrupted(key, f"the digest of {name} is wrong")
    for _ in arriving:  # the store's own checks may come last
        pass


def _wait(arriving: Iterator[int], wanted: int, there: int) -> int:
    """Waits until so many bytes are there; returns how many are."""
    while there < wanted:
        there = next(arriving)
    return there


def _empty(spec: TensorSpec) -> Tensor:
    return torch.empty(spec.shape, dtype=DTYPES[spec.dtype])


def _corrupted(key: str, what: str) -> CheckpointError:
    return CheckpointError(f"{key} is corrupted: {what}", remedy=remedy_for(key))
