"""Batches of examples: the same seeds give the same tensors, whatever the number of workers.

Workers read, crop and compute spectrograms; captions are tokenized and values normalised a batch at a time. Of an
example that lacks a modality a batch has what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lwfed.data import buckets
from lwfed.data.inputs import InputSettings, Window
from lwfed.data.prefix_cache import CachedPrefix
from lwfed.data.prefix_inputs import Inputs
from lwfed.data.protocol import Example, Source
from lwfed.data.reading import Raw, Reader, Row, caption_index, from_file, read_all, read_in_threads, result_of
from lwfed.data.series import fitting, title_of
from lwfed.data.tokens import token_counts, tokenize
from lwfed.plan.groups import FEWEST
from lwfed.types.errors import DataError, LwfedError
from lwfed.types.seeds import as_int, derive

CHECKED_TOGETHER = 64
"""Examples that `check_examples` begins at a time."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B examples as tensors.

    Attributes:
        inputs: Modality -> input: `image` float32 [B, 3, H, W], `text` {ids int64 [B, T], mask bool [B, T]},
            `audio` float32 [B, F, M], a sensor's float32 [B, T, C]; or its frozen blocks' cached outputs, {tokens
            [B, T, D], optionally mask [B, T]}. Only of the b examples that have the modality; without the modality if
            none has it, or in training fewer than `FEWEST`.
        labels: int64 [B]; None if an example has none.
        ids: The examples' names.
        rows: Modality -> int64 [b], increasing: which of the B examples have it, for those of `inputs` that some lack.
            On the CPU, because they decide what is computed.
    """

    inputs: dict[str, Any]
    labels: Tensor | None
    ids: tuple[str, ...]
    rows: Mapping[str, Tensor] = field(default_factory=dict)


class Epochs(NamedTuple):
    """The batches of a round.

    Attributes:
        first_view: Number of the first epoch's view; each later epoch adds one.
        num_batches: Number of batches.
    """

    first_view: int
    num_batches: int


def train_batches(
    source: Source,
    *,
    examples: Sequence[Example],
    settings: InputSettings,
    batch_size: int,
    seed: str,
    first_view: int,
    augment: bool,
    workers: int,
    num_batches: int | None = None,
    views: Mapping[str, int] | None = None,
    cached: Mapping[str, CachedPrefix] | None = None,
    length_buckets: bool = False,
    pin: bool = False,
) -> Generator[Batch, None, None]:
    """Yields shuffled, augmented batches, epoch after epoch without end.

    A batch has min(batch_size, len(examples)) examples; an epoch's last batch may be shorter, and is dropped if it has
    a single example (BatchNorm needs two). A modality that fewer than two of a batch's examples have is left out of it.
    The order of an epoch is seeded by (seed, view), an example's crop and choice of caption by (seed, its id, view).
    With length buckets the first batch is the longest of the first epoch, or of the part of it within `num_batches`;
    see `lwfed.data.buckets`.

    Args:
        source: Reads the files.
        examples: The client's examples; at least two.
        settings: The encoders' input settings.
        batch_size: Largest B.
        seed: Hex text.
        first_view: Number of the first epoch's view; each later epoch adds one.
        augment: Whether images are cropped at random.
        workers: Number of threads that read ahead; see `read_in_threads`.
        num_batches: Number of batches, if known, so that workers do not read ahead in vain; None for no end.
        views: Modality -> number of views that epochs cycle through; other modalities have a new view each epoch.
        cached: Modality -> outputs of its frozen blocks, which replace its inputs.
        length_buckets: Whether a batch's captions have similar lengths; see `lwfed.data.buckets`.
        pin: Whether tensors are in pinned memory, from which a GPU copies asynchronously.

    Raises:
        DataError: There are fewer than two examples, or a file cannot be read.
    """
    if len(examples) < 2:
        raise DataError(
            f"{len(examples)} example(s) to train on: BatchNorm needs two", remedy="give the client more data"
        )
    cached = cached or {}
    read = tuple(modality for modality in settings.modalities if modality not in cached)
    reader = Reader(source, tuple(examples), replace(settings, modalities=read), seed, augment, views or {})
    by_length = length_buckets and "text" in settings.modalities
    plan = _training_plan(
        reader.examples, batch_size, seed=seed, first_view=first_view, by_length=by_length, num_batches=num_batches
    )
    return _batches(reader, islice(plan, num_batches), workers=workers, cached=cached, pin=pin, fewest=FEWEST)


def drawn(inputs: Inputs, *, epochs: Epochs, batch_size: int, seed: str, length_buckets: bool = False) -> set[int]:
    """Returns the numbers of the inputs that `train_batches` reads of a modality, which is cached.

    Args:
        inputs: The modality's inputs.
        epochs: The batches.
        batch_size: Largest B.
        seed: The seed of the batches, as that of the inputs.
        length_buckets: Whether a batch's captions have similar lengths.
    """
    examples, modality, found = inputs.examples, inputs.modality, set[int]()
    number, has = inputs.number, [example.has(inputs.modality) for example in inputs.examples]
    per_epoch = epoch_length(len(examples), batch_size)
    if all(has) and epochs.num_batches % per_epoch == 0 and not _leaves_one(len(examples), batch_size):
        views = range(epochs.first_view, epochs.first_view + epochs.num_batches // per_epoch)
        if modality != "text":
            views = views[: inputs.views]
        return {number((n, view)) for n in range(len(examples)) for view in views}
    plan = _training_plan(
        examples, batch_size, seed=seed, first_view=epochs.first_view, by_length=length_buckets,
        num_batches=epochs.num_batches,
    )  # fmt: skip
    for rows in islice(plan, epochs.num_batches):
        having = [row for row in rows if has[row[0]]]
        if len(having) >= FEWEST:
            found |= {number(row) for row in having}
    return found


def epoch_length(num_examples: int, batch_size: int) -> int:
    """Returns the number of batches per epoch of `train_batches`."""
    return len(_cuts(num_examples, batch_size))


def eval_batches(
    source: Source, *, examples: Sequence[Example], settings: InputSettings, batch_size: int, workers: int
) -> Generator[Batch, None, None]:
    """Yields every example once and in order, without augmentation and with its first caption.

    Args:
        source: Reads the files.
        examples: The examples to evaluate on.
        settings: The encoders' input settings.
        batch_size: B; the last batch may be shorter.
        workers: Number of threads that read ahead; see `read_in_threads`.

    Raises:
        DataError: A file cannot be read.
    """
    reader = Reader(source, tuple(examples), settings, None, False)
    starts = range(0, len(examples), batch_size)
    plan = (tuple((n, 0) for n in range(len(examples))[start : start + batch_size]) for start in starts)
    return _batches(reader, plan, workers=workers, cached={})


def caption_batches(
    texts: Sequence[str], *, settings: InputSettings, batch_size: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yields texts as inputs of the text encoder, the shortest first, so that there is little padding.

    Yields:
        The places of B texts among all, and their `ids` int64 [B, T] and `mask` bool [B, T].
    """
    lengths = token_counts(texts, settings=settings) if len(texts) else []
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, tokenize([texts[n] for n in chosen], settings=settings)


def check_examples(
    source: Source,
    *,
    examples: Sequence[Example],
    modalities: Iterable[str],
    windows: Mapping[str, Window] | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Reads every file once, to find the examples that cannot be read or do not fit an encoder.

    Args:
        source: Reads the files.
        examples: The examples to check.
        modalities: The modalities that are needed; those that an example has are read, but for captions.
        windows: Sensor -> shape of the windows that its encoder takes; None: any shape is right.
        workers: Number of threads that read; see `read_in_threads`.
        progress: Called with (number done, total number).

    Returns:
        Name of an unreadable example -> what is wrong with it.

    Raises:
        DataError: Reading an example does not end.
        UnreachableError, DiskFullError: A file in a bucket cannot be fetched.
        OutOfMemoryError: There is not enough memory to read an example.
    """
    wanted = tuple(modalities)

    def problem(example: Example) -> str | None:
        try:
            for modality in wanted:
                if not example.has(modality):
                    continue
                found = from_file(source, example, modality)
                if windows and modality in windows:
                    fitting(found, window=windows[modality], what=title_of(example, modality))
        except DataError as error:
            return error.problem
        except (LwfedError, MemoryError):
            raise
        except Exception as error:  # a source's own fault
            return f"{example.id} cannot be read: {type(error).__name__}: {error}"
        return None

    bad: dict[str, str] = {}
    groups = [examples[start : start + CHECKED_TOGETHER] for start in range(0, len(examples), CHECKED_TOGETHER)]
    with closing(read_in_threads(problem, groups, workers=workers)) as problems:
        checked = (
            pair for group, found in zip(groups, problems, strict=True) for pair in zip(group, found, strict=True)
        )
        for number, (example, future) in enumerate(checked, start=1):
            found = result_of(future, example)
            if found is not None:
                bad[example.id] = found
            if progress is not None:
                progress(number, len(examples))
    return bad


def _batches(
    reader: Reader,
    plan: Iterator[tuple[Row, ...]],
    *,
    workers: int,
    cached: Mapping[str, CachedPrefix],
    pin: bool = False,
    fewest: int = 1,
) -> Generator[Batch, None, None]:
    for raw in read_all(reader, plan, workers=workers):
        yield _finish(reader, raw, cached, pin=pin, fewest=fewest)


def _finish(reader: Reader, raw: Raw, cached: Mapping[str, CachedPrefix], *, pin: bool, fewest: int) -> Batch:
    chosen = [reader.examples[n] for n, _ in raw.rows]
    having = {
        modality: [place for place, example in enumerate(chosen) if example.has(modality)]
        for modality in (*cached, *reader.settings.modalities)
    }
    having = {modality: places for modality, places in having.items() if len(places) >= fewest}
    raw = Raw(raw.rows, {modality: values for modality, values in raw.read.items() if modality in having})
    inputs: dict[str, Any] = {
        modality: prefix.gather([raw.rows[place] for place in having[modality]], pin=pin)
        for modality, prefix in cached.items()
        if modality in having
    }
    inputs |= raw.inputs(reader.settings)
    if pin and "image" in raw.read:
        inputs["image"] = inputs["image"].pin_memory()
    labels = [example.label for example in chosen]
    return Batch(
        inputs=dict(sorted(inputs.items())),
        labels=None if None in labels else torch.tensor(labels, dtype=torch.int64),
        ids=tuple(example.id for example in chosen),
        rows={m: torch.tensor(places) for m, places in having.items() if len(places) < len(chosen)},
    )


def _training_plan(
    examples: Sequence[Example],
    batch_size: int,
    *,
    seed: str,
    first_view: int,
    by_length: bool,
    num_batches: int | None,
) -> Iterator[tuple[Row, ...]]:
    def length(view: int, n: int) -> int:
        if not examples[n].has("text"):
            return 0
        return len(examples[n].captions[caption_index(examples[n], view, seed=seed)])

    for view in count(first_view):
        rng = np.random.default_rng(as_int(derive(seed, "order", view)))
        order = rng.permutation(len(examples)).tolist()
        batches = [order[start:stop] for start, stop in _cuts(len(examples), batch_size)]
        if by_length:
            batches = buckets.by_length(batches, length=partial(length, view), rng=rng)
            if view == first_view:
                batches = buckets.longest_first(batches, length=partial(length, view), among=num_batches)
        for batch in batches:
            yield tuple((n, view) for n in batch)


def _leaves_one(num_examples: int, batch_size: int) -> bool:
    """Whether an epoch leaves out an example, because its last batch would have it alone."""
    return num_examples % max(min(batch_size, num_examples), 1) == 1


def _cuts(num_examples: int, batch_size: int) -> list[tuple[int, int]]:
    size = max(min(batch_size, num_examples), 1)
    cuts = [(start, min(start + size, num_examples)) for start in range(0, num_examples, size)]
    return [(start, stop) for start, stop in cuts if stop - start > 1]
