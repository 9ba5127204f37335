"""The prefix cache: outputs of frozen blocks on a client's own disk, computed once per stage and read like inputs.

A file has the tokens of every input that training may need: each view of an image, each caption, each sound; texts
without their padding. Its name is a digest of everything that decides it, including the frozen blocks' digests. It is
written atomically and never sent anywhere.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwfed import ranks
from lwfed.data.inputs import InputSettings
from lwfed.data.protocol import Example, Source
from lwfed.data.reading import Reader, Row, caption_index, read_all
from lwfed.data.tokens import tokenize
from lwfed.types.canonical import digest_of

TOKENS, INDEX = "tokens.f32", "index.json"


@dataclass(frozen=True)
class Inputs:
    """The inputs of one modality's frozen blocks, in the cache's order.

    Attributes:
        modality: One of the model's.
        examples: The client's examples.
        settings: The encoder's input settings.
        seed: Seed of captions and crops.
        augment: Whether images are cropped.
        views: Number of views per example; 1 if all are equal. A text has one input per caption, whatever the views.
            An example that lacks the modality has none.
        function: Digest of everything else that decides the outputs: encoder, precision, device, version of the data.
    """

    modality: str
    examples: tuple[Example, ...]
    settings: InputSettings
    seed: str
    augment: bool
    views: int
    function: str = ""

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        each = ((len(e.captions) if self.modality == "text" else self.views) for e in self.examples)
        having = (e.has(self.modality) for e in self.examples)
        return (0, *accumulate(count * has for count, has in zip(each, having, strict=True)))

    def __len__(self) -> int:
        return self._starts[-1]

    def number(self, row: Row) -> int:
        """Returns the number of a batch row's input."""
        n, view = row
        if self.modality == "text":
            return self._starts[n] + caption_index(self.examples[n], view, seed=self.seed)
        return self._starts[n] + view % self.views

    @property
    def digest(self) -> str:
        """Digest of everything that decides the inputs, except the files themselves."""
        names = [[example.id, list(example.captions)] for example in self.examples if example.has(self.modality)]
        settings = asdict(self.settings) | {"modalities": [self.modality]}
        decides = {"examples": names, "settings": settings, "seed": self.seed, "augment": self.augment}
        return digest_of({**decides, "views": self.views, "modality": self.modality, "function": self.function})

    def batch_starts(self, batch_size: int) -> range:
        """Returns the number of the first input in each of this rank's batches; see `write_cache`."""
        return range(ranks.rank() * batch_size, len(self), ranks.size() * batch_size)

    def batches(self, source: Source, *, batch_size: int, workers: int) -> Iterator[Any]:
        """Yields this rank's batches of encoder inputs, in order.

        Raises:
            DataError: A file cannot be read.
        """
        if self.modality == "text":
            captions = [caption for e in self.examples if e.has("text") for caption in e.captions]
            for start in self.batch_starts(batch_size):
                yield tokenize(captions[start : start + batch_size], settings=self.settings)
            return
        settings = replace(self.settings, modalities=(self.modality,))
        reader = Reader(source, self.examples, settings, self.seed, self.augment)
        having = [n for n, example in enumerate(self.examples) if example.has(self.modality)]
        rows = [(n, view) for n in having for view in range(self.views)]
        plan = (tuple(rows[start : start + batch_size]) for start in self.batch_starts(batch_size))
        for raw in read_all(reader, plan, workers=workers):
            yield raw.inputs(settings)[self.modality]


class CachedPrefix:
    """A modality's cached outputs, memory-mapped.

    Args:
        folder: The cache entry's folder.
        inputs: The inputs that the outputs were computed from.
    """

    def __init__(self, folder: Path, inputs: Inputs) -> None:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.inputs = inputs
        self.chain: tuple[str, ...] = tuple(index["chain"])
        self.nbytes: int = (folder / TOKENS).stat().st_size
        self._lengths = np.asarray(index["lengths"], dtype=np.int64)
        self._stops = np.cumsum(self._lengths)
        shape = (int(self._stops[-1]) if len(self._stops) else 0, int(index["width"]))
        self._tokens = np.memmap(folder / TOKENS, dtype=np.float32, mode="r", shape=shape)

    def gather(self, rows: Sequence[Row], *, pin: bool = False) -> dict[str, Tensor]:
        """Returns the tokens of a batch's rows: `tokens` float32 [B, T, D]; for texts also `mask` bool [B, T]."""
        return self.at([self.inputs.number(row) for row in rows], pin=pin)

    def at(self, numbers: Sequence[int], *, pin: bool = False) -> dict[str, Tensor]:
        """Returns the tokens of inputs by their numbers, like `gather`; texts are padded with zeros to the longest."""
        lengths = self._lengths[list(numbers)]
        shape = (len(numbers), int(lengths.max(initial=0)), self._tokens.shape[1])
        tokens = torch.empty(shape, pin_memory=pin)
        into = tokens.numpy()
        for n, number in enumerate(numbers):
            stop, length = int(self._stops[number]), int(lengths[n])
            into[n, :length] = self._tokens[stop - length : stop]
            into[n, length:] = 0
        if self.inputs.modality != "text":
            return {"tokens": tokens}
        return {"tokens": tokens, "mask": torch.from_numpy(np.arange(tokens.shape[1]) < lengths[:, None])}


def find_cached(folder: Path, inputs: Inputs, *, chain: Sequence[str], code: str) -> CachedPrefix | None:
    """Finds the cached outputs of the longest leading part of a chain of frozen blocks.

    Args:
        folder: The client's own folder.
        inputs: The inputs of the frozen blocks.
        chain: Digests of the stem and the frozen blocks, from input to output.
        code: Version of the code that computes the outputs.

    Returns:
        The outputs, whose `chain` is that part; None if there are none, or if they are damaged.
    """
    for count in range(len(chain), 0, -1):
        place = folder / cache_name(inputs, chain=chain[:count], code=code)
        try:
            found = CachedPrefix(place, inputs)
            if len(found._lengths) == len(inputs):
                return found
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError):
            shutil.rmtree(place, ignore_errors=True)
    return None


def write_cache(
    folder: Path, inputs: Inputs, outputs: Iterable[tuple[Tensor, Tensor | None]], *, chain: Sequence[str], code: str
) -> CachedPrefix:
    """Writes outputs to the cache as they arrive, and removes the modality's other entries.

    Several ranks share the work: of the batches in the inputs' order, rank r of R writes those numbered r, r + R, ...
    They take turns of one batch each and write to one file, which equals the file that a single rank would write.

    Args:
        folder: The client's own folder, the same on all ranks; created if missing.
        inputs: The inputs of the frozen blocks.
        outputs: This rank's batches of tokens [B, T, D] and, for texts, the mask [B, T] of the tokens to store.
        chain: Digests of the blocks that computed the outputs.
        code: Version of the code.

    Raises:
        OSError: There is no room for the outputs; no partial file is left. If one rank fails, all raise the error.
    """
    place = folder / cache_name(inputs, chain=chain, code=code)
    writing = folder / ranks.each(lambda: f".writing-{os.getpid()}-{place.name}")[0]
    try:
        ranks.each(lambda: _make_folder(writing) if ranks.rank() == 0 else None)
        lengths, width = _write(writing / TOKENS, outputs)
        values_of = {"chain": list(chain), "lengths": lengths, "width": width, "modality": inputs.modality}
        ranks.each(lambda: _commit(writing, place, values_of) if ranks.rank() == 0 else None)
    finally:
        if ranks.rank() == 0:
            shutil.rmtree(writing, ignore_errors=True)
    return CachedPrefix(place, inputs)


def _make_folder(writing: Path) -> None:
    for stale in writing.parent.glob(".writing-*"):  # left by a killed process; a client has only one at a time
        shutil.rmtree(stale, ignore_errors=True)
    writing.mkdir(parents=True)
    (writing / TOKENS).touch()


def _write(path: Path, outputs: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[list[int], int]:
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
                file.seek(ready.element_size() * start * ready.shape[1])
                file.write(ready.numpy().data)
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
    values = tokens.float().cpu().contiguous()
    if mask is None:
        return values.flatten(0, 1), [values.shape[1]] * values.shape[0]
    return values[mask.cpu()], mask.sum(dim=1).tolist()


def _commit(writing: Path, place: Path, index: Mapping[str, Any]) -> None:
    (writing / INDEX).write_text(json.dumps(index), encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    writing.rename(place)
    for other in place.parent.glob(f"{index['modality']}-*"):
        if other != place:
            shutil.rmtree(other, ignore_errors=True)


def cache_name(inputs: Inputs, *, chain: Sequence[str], code: str) -> str:
    """Returns the name of a cache entry: a digest of everything that decides its outputs."""
    digest = digest_of({"inputs": inputs.digest, "chain": list(chain), "code": code, "type": "float32"})
    return f"{inputs.modality}-{digest[:32]}"
