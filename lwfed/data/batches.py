"""Batches from examples: the same seeds give the same tensors, whatever number of processes reads them.

Workers read, crop and compute spectrograms; captions are tokenized and numbers normalised in the training process, so
that little travels between processes (bytes, not floats) and no tokenizer's threads are forked.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lwfed.data import buckets
from lwfed.data.audio import log_mel, normalise_log_mel, to_tensor
from lwfed.data.inputs import InputSettings
from lwfed.data.source import Example, Source
from lwfed.data.tokens import tokenize
from lwfed.data.transforms import evaluation_pixels, normalise_pixels, training_pixels
from lwfed.types.errors import DataError
from lwfed.types.seeds import as_int, derive

Row = tuple[int, int]
"""Index of an example, and its view."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B examples as tensors.

    Attributes:
        inputs: Modality -> input: `image` float32 [B, 3, H, W], `text` {ids int64 [B, T], mask bool [B, T]},
            `audio` float32 [B, F, M].
        labels: int64 [B]; None where an example has none.
        ids: Names of the examples.
    """

    inputs: dict[str, Any]
    labels: Tensor | None
    ids: tuple[str, ...]


class Checked(NamedTuple):
    """What reading every file once has shown.

    Attributes:
        good: The examples that can be read.
        bad: Name of an example that cannot -> what is wrong with it.
    """

    good: tuple[Example, ...]
    bad: dict[str, str]


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
    length_buckets: bool = False,
) -> Generator[Batch, None, None]:
    """Yields shuffled, augmented batches, epoch after epoch without end.

    A batch has min(batch_size, len(examples)) examples; an epoch's last batch may be shorter, and is dropped when
    one example is left (BatchNorm needs two). The order of an epoch is seeded by (seed, view), an example's crop and
    choice of caption by (seed, its id, view).

    Args:
        source: Reads the files.
        examples: The client's examples; at least two.
        settings: What the encoders want.
        batch_size: B at most.
        seed: Hex text.
        first_view: Number of the first epoch's view; later epochs count on.
        augment: Whether images are cropped at random.
        workers: Processes that read; 0 reads in this one.
        num_batches: Stops after so many; name it where it is known, so that workers do not read ahead in vain.
        length_buckets: Whether a batch's captions are of similar length; see `lwfed.data.buckets`.

    Raises:
        DataError: There are fewer than two examples, or a file cannot be read.
    """
    if len(examples) < 2:
        raise DataError(f"{len(examples)} example(s) to train on: BatchNorm needs two", remedy="give the client more")
    reader = _Reader(source, tuple(examples), settings, seed, augment)
    cuts = _cuts(len(examples), batch_size)
    by_length = length_buckets and "text" in settings.modalities
    plan = _training_plan(reader, cuts=cuts, seed=seed, first_view=first_view, by_length=by_length)
    return _batches(reader, islice(plan, num_batches), workers=workers)


def epoch_length(num_examples: int, batch_size: int) -> int:
    """Gives the number of batches of an epoch of `train_batches`."""
    return len(_cuts(num_examples, batch_size))


def eval_batches(
    source: Source, *, examples: Sequence[Example], settings: InputSettings, batch_size: int, workers: int
) -> Generator[Batch, None, None]:
    """Yields every example once and in order, not augmented, with its first caption.

    Args:
        source: Reads the files.
        examples: What to evaluate on.
        settings: What the encoders want.
        batch_size: B; the last batch may be shorter.
        workers: Processes that read; 0 reads in this one.

    Raises:
        DataError: A file cannot be read.
    """
    reader = _Reader(source, tuple(examples), settings, None, False)
    starts = range(0, len(examples), batch_size)
    plan = (tuple((n, 0) for n in range(len(examples))[start : start + batch_size]) for start in starts)
    return _batches(reader, plan, workers=min(workers, len(starts)))


def caption_batches(texts: Sequence[str], *, settings: InputSettings, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Yields texts as inputs of the text encoder, in order: `ids` int64 [B, T] and `mask` bool [B, T]."""
    for start in range(0, len(texts), batch_size):
        yield tokenize(texts[start : start + batch_size], settings=settings)


def check_examples(
    source: Source,
    *,
    examples: Sequence[Example],
    modalities: Iterable[str],
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Checked:
    """Reads every file once, and tells apart the examples that can be read.

    Args:
        source: Reads the files.
        examples: Which to check.
        modalities: Which of `image` and `audio` to read.
        workers: Threads that read.
        progress: Called with (number done, number in all).
    """
    wanted = frozenset(modalities)

    def problem(example: Example) -> str | None:
        try:
            if "image" in wanted:
                source.image(example)
            if "audio" in wanted:
                source.waveform(example)
        except DataError as error:
            return error.problem
        return None

    good: list[Example] = []
    bad: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        for number, (example, found) in enumerate(zip(examples, pool.map(problem, examples), strict=True), start=1):
            if found is None:
                good.append(example)
            else:
                bad[example.id] = found
            if progress is not None:
                progress(number, len(examples))
    return Checked(good=tuple(good), bad=bad)


class _Raw(NamedTuple):
    """A batch as workers hand it over."""

    rows: tuple[int, ...]
    pixels: Tensor | None
    captions: list[str] | None
    spectrograms: Tensor | None


@dataclass(frozen=True)
class _Reader:
    """A data set whose items are whole batches; a bad file is returned and not raised, to keep its message whole."""

    source: Source
    examples: tuple[Example, ...]
    settings: InputSettings
    seed: str | None
    augment: bool

    def __getitem__(self, rows: tuple[Row, ...]) -> _Raw | DataError:
        try:
            items = [self._read(self.examples[n], view) for n, view in rows]
        except DataError as error:
            return error
        pixels, captions, spectrograms = zip(*items, strict=True)
        wanted = self.settings.modalities
        return _Raw(
            rows=tuple(n for n, _ in rows),
            pixels=torch.from_numpy(np.stack(pixels)) if "image" in wanted else None,
            captions=list(captions) if "text" in wanted else None,
            spectrograms=to_tensor(list(spectrograms)) if "audio" in wanted else None,
        )

    def rng(self, example: Example, view: int) -> np.random.Generator | None:
        """Gives the generator of an example's view; None where nothing is drawn."""
        return None if self.seed is None else np.random.default_rng(as_int(derive(self.seed, example.id, view)))

    def _read(self, example: Example, view: int) -> tuple[Any, Any, Any]:
        wanted, settings = self.settings.modalities, self.settings
        pixels = caption = spectrogram = None
        rng = self.rng(example, view)
        if "text" in wanted:
            caption = _caption(example, rng)
        if "image" in wanted:
            image = self.source.image(example)
            if rng is None:
                pixels = evaluation_pixels(image, size=settings.image_size)
            else:
                pixels = training_pixels(image, size=settings.image_size, rng=rng, augment=self.augment)
        if "audio" in wanted:
            samples, rate = self.source.waveform(example)
            spectrogram = log_mel(samples, rate=rate, num_mel_bins=settings.num_mel_bins, frames=settings.frames)
        return pixels, caption, spectrogram


def _batches(reader: _Reader, plan: Iterator[tuple[Row, ...]], *, workers: int) -> Generator[Batch, None, None]:
    workers = min(workers, _num_cpus())
    for raw in _in_workers(reader, plan, workers) if workers else map(reader.__getitem__, plan):
        if isinstance(raw, DataError):
            raise raw
        yield _finish(reader, raw)


def _in_workers(reader: _Reader, plan: Iterator[tuple[Row, ...]], workers: int) -> Iterator[_Raw | DataError]:
    loader: DataLoader[Any] = DataLoader(
        reader,  # type: ignore[arg-type]  # a mapping from rows to batches is all that is asked of it
        sampler=plan,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else the loader would draw from torch's default generator
        multiprocessing_context="fork",
    )
    with warnings.catch_warnings():
        # Python warns of a fork beside threads; the workers only decode, on one thread, and never call the model.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        iterator = iter(loader)
    yield from iterator


def _as_it_is(raw: Any) -> Any:
    return raw


def _finish(reader: _Reader, raw: _Raw) -> Batch:
    chosen = [reader.examples[n] for n in raw.rows]
    inputs: dict[str, Any] = {}
    if raw.pixels is not None:
        inputs["image"] = normalise_pixels(raw.pixels)
    if raw.captions is not None:
        inputs["text"] = tokenize(raw.captions, settings=reader.settings)
    if raw.spectrograms is not None:
        inputs["audio"] = normalise_log_mel(raw.spectrograms)
    labels = [example.label for example in chosen]
    return Batch(
        inputs=inputs,
        labels=None if None in labels else torch.tensor(labels, dtype=torch.int64),
        ids=tuple(example.id for example in chosen),
    )


def _training_plan(
    reader: _Reader, *, cuts: list[tuple[int, int]], seed: str, first_view: int, by_length: bool
) -> Iterator[tuple[Row, ...]]:
    examples = reader.examples
    for view in count(first_view):
        rng = np.random.default_rng(as_int(derive(seed, "order", view)))
        order = rng.permutation(len(examples)).tolist()
        batches = [order[start:stop] for start, stop in cuts]
        if by_length:
            batches = buckets.by_length(batches, length=partial(_caption_length, reader, view), rng=rng)
        for batch in batches:
            yield tuple((n, view) for n in batch)


def _caption_length(reader: _Reader, view: int, index: int) -> int:
    example = reader.examples[index]
    return len(_caption(example, reader.rng(example, view)))


def _caption(example: Example, rng: np.random.Generator | None) -> str:
    """Chooses a view's caption; the first number that a view draws."""
    if not example.captions:
        raise DataError(f"{example.id} has no caption", remedy="give it one, or leave the text encoder out")
    return example.captions[0 if rng is None else int(rng.integers(len(example.captions)))]


def _cuts(num_examples: int, batch_size: int) -> list[tuple[int, int]]:
    size = max(min(batch_size, num_examples), 1)
    cuts = [(start, min(start + size, num_examples)) for start in range(0, num_examples, size)]
    return [(start, stop) for start, stop in cuts if stop - start > 1]


def _num_cpus() -> int:
    """Gives the number of CPUs this process may use; more workers than that only wait for one another."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
