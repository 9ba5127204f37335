"""Reading of raw batches: files are read, cropped and turned into spectrograms, optionally in worker processes.

An example's view is drawn from the seed, its name and the view's number, so that every process draws the same view.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lwfed.data.audio import log_mel, normalise_log_mel
from lwfed.data.inputs import InputSettings
from lwfed.data.protocol import Example, Source
from lwfed.data.tokens import tokenize
from lwfed.data.transforms import crop_box, normalise_pixels, square_pixels
from lwfed.types.errors import DataError
from lwfed.types.seeds import as_int, derive

Row = tuple[int, int]
"""Index of an example, and its view."""


class Raw(NamedTuple):
    """A batch, as workers return it."""

    rows: tuple[Row, ...]
    pixels: Tensor | None
    captions: list[str] | None
    spectrograms: Tensor | None

    def inputs(self, settings: InputSettings) -> dict[str, Any]:
        """Returns the encoders' inputs by modality: captions tokenized, and values normalised."""
        inputs: dict[str, Any] = {}
        if self.pixels is not None:
            inputs["image"] = normalise_pixels(self.pixels, settings.image_normalise)
        if self.captions is not None:
            inputs["text"] = tokenize(self.captions, settings=settings)
        if self.spectrograms is not None:
            inputs["audio"] = normalise_log_mel(self.spectrograms, settings.audio_normalise)
        return inputs


@dataclass(frozen=True)
class Reader:
    """A data set whose items are whole batches; errors are returned, not raised, so that their messages survive.

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

    def __getitem__(self, rows: tuple[Row, ...]) -> Raw | DataError:
        try:
            items = [self._read(self.examples[n], view) for n, view in rows]
        except DataError as error:
            return error
        pixels, captions, spectrograms = zip(*items, strict=True)
        wanted = self.settings.modalities
        return Raw(
            rows=rows,
            pixels=torch.from_numpy(np.stack(pixels)) if "image" in wanted else None,
            captions=list(captions) if "text" in wanted else None,
            spectrograms=torch.from_numpy(np.stack(spectrograms)) if "audio" in wanted else None,
        )

    def _read(self, example: Example, view: int) -> tuple[Any, Any, Any]:
        wanted, settings = self.settings.modalities, self.settings
        pixels = caption = spectrogram = None
        if "text" in wanted:
            caption = example.captions[caption_index(example, view, seed=self.seed)]
        if "image" in wanted:
            image = self.source.image(example)
            if self.augment and self.seed is not None:
                number = view % self.views["image"] if self.views.get("image") else view
                rng = np.random.default_rng(as_int(derive(self.seed, example.id, number, "crop")))
                image = image.crop(crop_box(image.width, image.height, rng=rng))
            pixels = square_pixels(image, size=settings.image_size)
        if "audio" in wanted:
            samples, rate = self.source.waveform(example)
            spectrogram = log_mel(samples, rate=rate, num_mel_bins=settings.num_mel_bins, frames=settings.frames)
        return pixels, caption, spectrogram


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
        workers: Number of processes that read; 0 reads in this process.

    Raises:
        DataError: A file cannot be read.
    """
    workers = min(workers, _num_cpus())
    for raw in _in_workers(reader, plan, workers) if workers else map(reader.__getitem__, plan):
        if isinstance(raw, DataError):
            raise raw
        yield raw


def _in_workers(reader: Reader, plan: Iterator[tuple[Row, ...]], workers: int) -> Iterator[Raw | DataError]:
    loader: DataLoader[Any] = DataLoader(
        reader,  # type: ignore[arg-type]  # the loader only needs a mapping from rows to batches
        sampler=plan,
        batch_size=None,
        num_workers=workers,
        collate_fn=_identity,
        generator=torch.Generator(),  # otherwise the loader would draw from torch's default generator
        multiprocessing_context="fork",
    )
    with warnings.catch_warnings():
        # Python warns about forking with threads; the workers only decode, on one thread, and never call the model.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        iterator = iter(loader)
    yield from iterator


def _identity(raw: Any) -> Any:
    return raw


def _num_cpus() -> int:
    """Returns the number of CPUs that this process may use; more workers would only wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
