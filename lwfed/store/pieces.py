"""Cuts bytes into pieces, without copies where they lie in memory as they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lwfed.store.protocol import Data


def pieces_of(data: Data, size: int) -> Iterator[memoryview]:
    """Yields views of `size` bytes; the last may be shorter, and there is none of nothing."""
    view = memoryview(data).cast("B")
    for start in range(0, len(view), size):
        yield view[start : start + size]


def parts_of(chunks: Iterable[Data], size: int) -> Iterator[bytearray]:
    """Cuts a stream into parts of `size` bytes; the last may be shorter, and there is at least one."""
    part = bytearray()
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        while len(view) > size - len(part):
            taken = size - len(part)
            part += view[:taken]
            view = view[taken:]
            yield part
            part = bytearray()
        part += view
    yield part


def ranges_of(buffers: Sequence[Data], size: int, *, start: int = 0) -> Iterator[tuple[int, list[memoryview]]]:
    """Cuts buffers that one object fills, in order, into ranges of `size` bytes: (first byte, pieces of memory).

    Args:
        buffers: The buffers.
        size: Length of each range but the last, in bytes.
        start: The object's byte that belongs at the start of the first buffer.
    """
    pieces: list[memoryview] = []
    length = 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while len(view):
            piece = view[: size - length]
            pieces.append(piece)
            length += len(piece)
            view = view[len(piece) :]
            if length == size:
                yield start, pieces
                start, pieces, length = start + length, [], 0
    if pieces:
        yield start, pieces
