"""Reading of raw batches: files are read, cropped and turned into spectrograms, by threads beside the training.

An example's view is drawn from the seed, its name and the view's number, so that every thread draws the same view.

Threads and not processes: decoders and FFTs release the interpreter's lock, so threads are as fast, and they need no
shared memory, copy no pixels, and end with the process, whose end every launcher reports.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from itertools import tee
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from lwfed import cpus, environment
from lwfed.data.audio import log_mel, normalise_log_mel
from lwfed.data.inputs import InputSettings
from lwfed.data.protocol import Example, Source
from lwfed.data.series import checked, standardised, title_of
from lwfed.data.tokens import tokenize
from lwfed.data.transforms import crop_box, normalise_pixels, square_pixels
from lwfed.store.ahead import in_groups
from lwfed.types.errors import DataError, LwfedError, OutOfMemoryError
from lwfed.types.modalities import kind_of
from lwfed.types.seeds import as_int, derive

T = TypeVar("T")
R = TypeVar("R")
Row = tuple[int, int]
"""Index of an example, and its view."""
READ_AHEAD = 2
"""Batches that are read while one is in use."""


class Raw(NamedTuple):
    """A batch before tokenization and normalisation.

    Attributes:
        rows: The batch's rows.
        read: Modality -> pixels, captions, spectrograms or windows, of the rows that have it; none if no row has it.
    """

    rows: tuple[Row, ...]
    read: Mapping[str, Any]

    def inputs(self, settings: InputSettings) -> dict[str, Any]:
        """Returns the encoders' inputs by modality: captions tokenized, and values normalised."""
        return {modality: _finished(modality, values, settings) for modality, values in self.read.items()}


def _finished(modality: str, values: Any, settings: InputSettings) -> Any:
    match kind_of(modality):
        case "image":
            return normalise_pixels(values, settings.image_normalise)
        case "text":
            return tokenize(values, settings=settings)
        case "audio":
            return normalise_log_mel(values, settings.audio_normalise)
    return values  # windows are standardised one by one


@dataclass(frozen=True)
class Reader:
    """Reads examples.

    Attributes:
        source: Reads the files.
        examples: The examples that rows index.
        settings: The encoders' input settings; only its modalities are read.
        seed: Seed of captions and crops; None uses first captions and whole images.
        augment: Whether images are cropped at random.
        views: Modality -> number of views to cycle through; other modalities have a new view for each view number.
    """

    source: Source
    examples: tuple[Example, ...]
    settings: InputSettings
    seed: str | None
    augment: bool
    views: Mapping[str, int] = field(default_factory=dict)

    def item(self, row: Row) -> dict[str, Any]:
        """Reads one row of a batch: modality -> pixels [3, H, W], a caption, a spectrogram [F, M] or a window [T, C].

        Nothing is read for the modalities that the example lacks.

        Raises:
            DataError: A file cannot be read, or a sensor's signal has another shape than the encoder's windows.
        """
        n, view = row
        example = self.examples[n]
        return {m: self._read(example, view, m) for m in self.settings.modalities if example.has(m)}

    def _read(self, example: Example, view: int, modality: str) -> Any:
        settings = self.settings
        if kind_of(modality) == "text":
            return example.captions[caption_index(example, view, seed=self.seed)]
        found = from_file(self.source, example, modality)
        match kind_of(modality):
            case "image":
                if self.augment and self.seed is not None:
                    number = view % self.views["image"] if self.views.get("image") else view
                    rng = np.random.default_rng(as_int(derive(self.seed, example.id, number, "crop")))
                    found = found.crop(crop_box(found.width, found.height, rng=rng))
                return square_pixels(found, size=settings.image_size)
            case "audio":
                samples, rate = found
                return log_mel(samples, rate=rate, num_mel_bins=settings.num_mel_bins, frames=settings.frames)
        return standardised(found, window=settings.windows[modality], what=title_of(example, modality))

    def batch(self, rows: tuple[Row, ...], items: Iterable[Mapping[str, Any]]) -> Raw:
        """Joins the items of a batch's rows."""
        found = list(items)
        columns = {m: [item[m] for item in found if m in item] for m in self.settings.modalities}
        return Raw(
            rows=rows,
            read={
                modality: values if kind_of(modality) == "text" else torch.from_numpy(np.stack(values))
                for modality, values in columns.items()
                if values
            },
        )


def from_file(source: Source, example: Example, modality: str) -> Any:
    """Reads an example's image, its samples and their rate, or its signal; None for a text, which is in memory.

    Raises:
        DataError: A file cannot be read.
    """
    match kind_of(modality):
        case "image":
            return source.image(example)
        case "audio":
            return source.waveform(example)
        case "series":
            return checked(source.series(example, modality), what=title_of(example, modality))
    return None


def caption_index(example: Example, view: int, *, seed: str | None) -> int:
    """Returns the index of a view's caption: a random one, or without a seed the first.

    Raises:
        DataError: The example has no captions.
    """
    if not example.captions:
        raise DataError(f"{example.id} has no caption", remedy="add a caption, or leave out the text encoder")
    if seed is None:
        return 0
    return int(np.random.default_rng(as_int(derive(seed, example.id, view, "caption"))).integers(len(example.captions)))


def read_all(reader: Reader, plan: Iterator[tuple[Row, ...]], *, workers: int) -> Iterator[Raw]:
    """Yields raw batches in order.

    Args:
        reader: Reads the batches.
        plan: The rows of each batch.
        workers: Number of threads that read ahead; 0: files are read when their batch is needed.

    Raises:
        DataError, OutOfMemoryError: A file cannot be read; see `result_of`.
    """
    if all(kind_of(modality) == "text" for modality in reader.settings.modalities):
        yield from (reader.batch(rows, [reader.item(row) for row in rows]) for rows in plan)
        return
    plan, groups = tee(plan)
    found = read_in_threads(reader.item, groups, workers=workers)
    with closing(found):
        for rows, futures in zip(plan, found, strict=True):
            items = [result_of(future, reader.examples[n]) for future, (n, _) in zip(futures, rows, strict=True)]
            yield reader.batch(rows, items)


def read_in_threads(
    read: Callable[[T], R], groups: Iterable[Sequence[T]], *, workers: int
) -> Generator[list[Future[R]], None, None]:
    """Reads groups of items in order, a few groups ahead; see `in_groups` and `result_of`.

    Args:
        read: Reads an item.
        groups: The items, grouped.
        workers: Number of threads that read ahead, no more than there are CPUs; 0: one that does not read ahead.
    """
    threads = min(workers, cpus.usable())
    return in_groups(read, groups, threads=max(threads, 1), ahead=READ_AHEAD if threads else 0)


def result_of(future: Future[R], example: Example) -> R:
    """Waits until an example is read.

    Raises:
        DataError: It cannot be read, or not within `LWFED_READ_PATIENCE_S`: nothing else ends a read from a file server
            that does not answer.
        OutOfMemoryError: There is not enough memory to read it.
    """
    patience_s = environment.read_patience_s()
    try:
        return future.result(timeout=patience_s)
    except LwfedError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(
            f"out of memory while reading {example.id}",
            remedy="lower training.batch_size or data.workers, or give the process more memory",
        ) from error
    except Exception as error:
        if not future.done():
            raise DataError(
                f"{example.id} is still not read after {patience_s:g} s",
                remedy="check the disk or file server of data.root; if it is just slow, raise LWFED_READ_PATIENCE_S",
            ) from None
        raise DataError(
            f"{example.id} cannot be read: {type(error).__name__}: {error}",
            remedy="fix or remove it, or set data.on_bad_example=skip",
        ) from error
