"""The inputs of a modality's frozen blocks: each has a number, and a batch in which its outputs are computed.

Which inputs are computed depends on what training draws, so it differs from stage to stage and, without a folder that
lasts, from round to round. The outputs must not: a digest depends on them. On a CPU an output depends on the number of
tokens that a text is padded to, and not on the other inputs of its batch nor on their number, unless it is alone (a law
tests it). So a text is padded to the longest of its neighbours, whichever of them are computed, and a batch has at
least two rows. Neighbours are texts of like length, so that there is little padding. A GPU may choose its kernels by
the number of rows too, which then is that of all neighbours.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from lwfed.data.inputs import InputSettings
from lwfed.data.protocol import Example, Source
from lwfed.data.reading import Reader, Row, caption_index, read_all
from lwfed.data.tokens import token_counts, tokenize
from lwfed.types.canonical import digest_of

FEWEST_ROWS = 2
"""A convolution of a single image is computed otherwise."""
LIKE = 64
"""Number of texts of like length that are padded to one length on a CPU, which is as fast on 64 captions as on 400."""


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

    def place(self, number: int) -> tuple[int, int]:
        """Returns the index of an input's example, and which of the example's inputs it is."""
        n = bisect_right(self._starts, number) - 1
        return n, number - self._starts[n]

    @cached_property
    def digest(self) -> str:
        """Digest of everything that decides the inputs, except the files themselves."""
        names = [[example.id, list(example.captions)] for example in self.examples if example.has(self.modality)]
        settings = asdict(self.settings) | {"modalities": [self.modality]}
        decides = {"examples": names, "settings": settings, "seed": self.seed, "augment": self.augment}
        return digest_of({**decides, "views": self.views, "modality": self.modality, "function": self.function})

    def captions(self, numbers: Sequence[int]) -> list[str]:
        """Returns the captions of texts."""
        return [self.examples[n].captions[k] for n, k in map(self.place, numbers)]

    def load(self, source: Source, batches: Sequence[FillBatch], *, workers: int) -> Iterator[Any]:
        """Yields batches of encoder inputs, in order.

        Raises:
            DataError: A file cannot be read.
        """
        if self.modality == "text":
            for batch in batches:
                yield tokenize(self.captions(batch.numbers), settings=self.settings, length=batch.length)
            return
        settings = replace(self.settings, modalities=(self.modality,))
        reader = Reader(source, self.examples, settings, self.seed, self.augment)
        for raw in read_all(reader, (tuple(map(self.place, b.numbers)) for b in batches), workers=workers):
            yield raw.inputs(settings)[self.modality]


@dataclass(frozen=True)
class FillBatch:
    """Inputs whose outputs are computed together.

    Attributes:
        numbers: Their numbers.
        length: Number of tokens that texts are padded to; 0 for other inputs.
        rows: Number of rows that are computed, at least `FEWEST_ROWS`; the last input is repeated to fill them.
    """

    numbers: tuple[int, ...]
    length: int
    rows: int


def fill_batches(
    inputs: Inputs, groups: Sequence[Sequence[int]], *, size: int, whole: bool
) -> list[tuple[int, FillBatch]]:
    """Divides inputs among batches so that each output is the same, whichever inputs are computed.

    Args:
        inputs: All inputs.
        groups: Numbers of inputs to compute, increasing; inputs of different groups share no batch.
        size: The largest batch, and number of neighbours, of which texts have no more than `LIKE` unless `whole`.
        whole: Whether a batch has as many rows as the neighbours of its inputs are.

    Returns:
        Pairs of a group's index and one of its batches.
    """
    shapes = _shapes(inputs, size=size if whole or inputs.modality != "text" else min(size, LIKE))
    found: list[tuple[int, FillBatch]] = []
    for index, numbers in enumerate(groups):
        alike: dict[tuple[int, int], list[int]] = {}
        for number in numbers:
            count, length = shapes[number]
            alike.setdefault((count if whole else 0, length), []).append(number)
        for (count, length), members in alike.items():
            step = count or size
            parts = (tuple(members[start : start + step]) for start in range(0, len(members), step))
            found += [(index, FillBatch(part, length, rows=max(count or len(part), FEWEST_ROWS))) for part in parts]
    return found


def _shapes(inputs: Inputs, *, size: int) -> list[tuple[int, int]]:
    """Returns of each input how many neighbours it has, itself included, and the length of the longest, 0 if no text.

    Neighbours are `size` inputs that follow one another: texts by their length, others by their number.
    """
    lengths = [0] * len(inputs)
    if inputs.modality == "text":
        lengths = token_counts(inputs.captions(range(len(inputs))), settings=inputs.settings) if lengths else []
    order = sorted(range(len(inputs)), key=lengths.__getitem__)
    shapes = [(0, 0)] * len(inputs)
    for start in range(0, len(order), size):
        near = order[start : start + size]
        for number in near:
            shapes[number] = len(near), lengths[near[-1]]
    return shapes
