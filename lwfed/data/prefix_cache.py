"""The prefix cache: outputs of frozen blocks on a client's own disk, computed once per stage and read like inputs.

An entry has the tokens of those inputs that training has drawn so far, or will draw: views of images, captions, sounds;
texts without their padding. It is a folder of parts that are only ever added, each written atomically, and its name is
a digest of everything that decides its content, including the frozen blocks' digests. It is never sent anywhere.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwfed import ranks
from lwfed.data.kept_rows import IN_FILES, IN_MEMORY, columns, encode_rows
from lwfed.data.prefix_inputs import Inputs
from lwfed.data.reading import Row
from lwfed.types.canonical import digest_of
from lwfed.types.encoded import Codec, is_lossless
from lwfed.types.kept import row_bytes

TOKENS, INDEX = "tokens", "index.json"
"""A part's files: rows of tokens, input after input (see `lwfed.data.kept_rows`); and whose they are, and how many."""

Outputs = Iterable[tuple[Tensor, Tensor | None]]
"""Batches of tokens [B, T, D] and, for texts, the mask [B, T] of the tokens to keep."""


@dataclass(frozen=True)
class Entry:
    """An entry of the cache.

    Attributes:
        inputs: The inputs of the frozen blocks.
        chain: Digests of the stem and the frozen blocks, from input to output.
        code: Version of the code that computes the outputs.
        codec: The format of the outputs.
        rounded_at: Numbers of blocks, fewer than these, after which outputs are rounded to the format, too.
    """

    inputs: Inputs
    chain: tuple[str, ...]
    code: str
    codec: Codec = "fp32"
    rounded_at: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of its folder: the modality, and a digest of everything that decides its outputs."""
        decides = {"inputs": self.inputs.digest, "chain": list(self.chain), "code": self.code}
        digest = digest_of({**decides, "codec": self.codec, "rounded_at": list(self.rounded_at)})
        return f"{self.inputs.modality}-{digest[:32]}"

    def earlier(self) -> Iterator[Entry]:
        """Yields the entries of fewer blocks from which this one can be made, those of the most blocks first."""
        for count in range(len(self.chain) - 1, 0, -1):
            before = tuple(cut for cut in self.rounded_at if cut < count - 1)
            if is_lossless(self.codec) or count - 1 in self.rounded_at:
                yield replace(self, chain=self.chain[:count], rounded_at=before)


class CachedPrefix:
    """A modality's cached outputs, memory-mapped.

    Args:
        folder: The client's own folder.
        entry: The entry, which may have no part yet.
    """

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.entry, self.inputs = entry, entry.inputs
        self.nbytes, self.read_bytes, self.num_parts = 0, 0, 0
        self._files: list[np.ndarray[Any, Any]] = []
        self._file = np.full(len(self.inputs), -1, dtype=np.int32)
        self._stops, self._lengths = (np.zeros(len(self.inputs), dtype=np.int64) for _ in range(2))
        place = folder / entry.name
        for part in sorted(place.glob("[0-9]*")):
            self.num_parts += 1
            self._add(part)

    def _add(self, part: Path) -> None:
        """Adds a part; removes it if it is damaged."""
        try:
            index = json.loads((part / INDEX).read_text(encoding="utf-8"))
            numbers, lengths = (np.asarray(index[name], dtype=np.int64) for name in ("numbers", "lengths"))
            shape = (int(lengths.sum()), columns(int(index["width"]), self.entry.codec))
            rows = np.memmap(part / TOKENS, dtype=IN_FILES[self.entry.codec], mode="r").reshape(shape)
            self._lengths[numbers], self._stops[numbers] = lengths, np.cumsum(lengths)
            self._file[numbers] = len(self._files)
        except (OSError, ValueError, KeyError, IndexError):
            shutil.rmtree(part, ignore_errors=True)
            return
        self._files.append(rows)
        self.nbytes += rows.nbytes

    def lacks(self, numbers: Sequence[int]) -> list[int]:
        """Returns those of some inputs that it does not have."""
        return [number for number in numbers if self._file[number] < 0]

    @property
    def numbers(self) -> list[int]:
        """The inputs that it has."""
        return np.flatnonzero(self._file >= 0).tolist()

    def forget(self, numbers: Collection[int]) -> None:
        """Leaves out inputs, as if it did not have them."""
        self._file[list(numbers)] = -1

    def gather(self, rows: Sequence[Row], *, pin: bool = False) -> dict[str, Tensor]:
        """Returns the tokens of a batch's rows as they are kept, for `kept_rows.decode` on the device that uses them.

        `tokens` is float32 or bfloat16 [B, T, D], or uint8 [B, T, D + 4]; texts also have `mask` bool [B, T].
        """
        return self.at([self.inputs.number(row) for row in rows], pin=pin)

    def at(self, numbers: Sequence[int], *, length: int = 0, pin: bool = False) -> dict[str, Tensor]:
        """Returns the tokens of inputs that it has, by their numbers, like `gather`.

        Texts are padded with zeros to the longest, or to `length` tokens.
        """
        files, lengths = self._file[list(numbers)], self._lengths[list(numbers)]
        first = self._files[int(files[0])]
        shape = (len(numbers), max(int(lengths.max(initial=0)), length), first.shape[1])
        tokens = torch.empty(shape, dtype=IN_MEMORY[self.entry.codec], pin_memory=pin)
        values = tokens.view(torch.int16).numpy() if tokens.dtype == torch.bfloat16 else tokens.numpy()
        for n, number in enumerate(numbers):
            stop, count = int(self._stops[number]), int(lengths[n])
            values[n, :count] = self._files[int(files[n])][stop - count : stop]
            values[n, count:] = 0
        self.read_bytes += int(lengths.sum()) * first.shape[1] * first.itemsize
        if self.inputs.modality != "text":
            return {"tokens": tokens}
        return {"tokens": tokens, "mask": torch.from_numpy(np.arange(shape[1]) < lengths[:, None])}


def add_part(folder: Path, entry: Entry, outputs: Outputs, *, numbers: Sequence[int]) -> CachedPrefix:
    """Writes outputs as they arrive, as a new part of an entry.

    Several ranks share the work: of the batches in the inputs' order, rank r of R writes those numbered r, r + R, ...
    They take turns of one batch each and write to one file, which equals the file that a single rank would write.

    Args:
        folder: The client's own folder, the same on all ranks; created if missing.
        entry: The entry.
        outputs: This rank's batches.
        numbers: The inputs of all ranks' batches, in order.

    Raises:
        OSError: There is no room for the outputs; no partial file is left. If one rank fails, all raise the error.
    """
    place = folder / entry.name
    writing = folder / ranks.each(lambda: f".writing-{os.getpid()}-{place.name}")[0]
    try:
        ranks.each(lambda: _make_folder(writing) if ranks.rank() == 0 else None)
        lengths, width = _write(writing / TOKENS, outputs, codec=entry.codec)
        index = {"numbers": list(numbers), "lengths": lengths, "width": width}
        ranks.each(lambda: _commit(writing, place, index) if ranks.rank() == 0 else None)
    finally:
        if ranks.rank() == 0:
            shutil.rmtree(writing, ignore_errors=True)
    return CachedPrefix(folder, entry)


def keep_only(folder: Path, entries: Collection[Entry], *, modality: str) -> None:
    """Removes all other entries of a modality."""
    names = {entry.name for entry in entries}
    for other in folder.glob(f"{modality}-*"):
        if other.name not in names:
            shutil.rmtree(other, ignore_errors=True)


def _make_folder(writing: Path) -> None:
    for stale in writing.parent.glob(".writing-*"):  # left by a killed process; a client has only one at a time
        shutil.rmtree(stale, ignore_errors=True)
    writing.mkdir(parents=True)
    (writing / TOKENS).touch()


def _write(path: Path, outputs: Outputs, *, codec: Codec) -> tuple[list[int], int]:
    """Writes this rank's batches in turn with the other ranks. Returns the lengths of all inputs, and D."""
    mine = iter(outputs)
    lengths: list[int] = []
    ready: Tensor | None = None
    width = start = total = 0

    def turn() -> tuple[list[int], int]:
        """Writes the previous turn's batch, whose position is now known, and gets the next batch."""
        nonlocal ready
        if ready is not None:
            with path.open("r+b") as file:
                file.seek(row_bytes(ready.shape[1], codec) * start)
                stored = encode_rows(ready, codec).cpu()
                file.write(stored.view(torch.uint8).numpy().data)
        ready, own = _packed(next(mine, None))
        return own, 0 if ready is None else ready.shape[1]

    while True:
        turns = ranks.each(turn)
        if not any(own for own, _ in turns):
            return lengths, width
        start = total + sum(sum(own) for own, _ in turns[: ranks.rank()])
        for own, wide in turns:
            lengths += own
            total += sum(own)
            width = max(width, wide)


def _packed(batch: tuple[Tensor, Tensor | None] | None) -> tuple[Tensor | None, list[int]]:
    """Returns a batch's tokens [N, D], float32 and without padding, and the number of tokens of each input."""
    if batch is None:
        return None, []
    tokens, mask = batch
    if mask is None:
        return tokens.float().flatten(0, 1), [tokens.shape[1]] * tokens.shape[0]
    return tokens.float()[mask], mask.sum(dim=1).tolist()


def _commit(writing: Path, place: Path, index: Mapping[str, Any]) -> None:
    (writing / INDEX).write_text(json.dumps(index), encoding="utf-8")
    place.mkdir(exist_ok=True)
    number = max((int(part.name) for part in place.glob("[0-9]*")), default=-1) + 1
    writing.rename(place / f"{number:04d}")
