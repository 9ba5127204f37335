"""The registered model's code, which MLflow copies and runs when the model is loaded; it needs lwfed installed.

    mlflow.pyfunc.load_model("models:/<name>/<version>").predict(pandas.DataFrame({"text": ["a red circle"]}))

MLflow runs it from the model's folder, outside lwfed, so the model's configuration names the loader of the weights.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import mlflow
import numpy as np
import pandas as pd
from PIL import Image


class Predictor(Protocol):
    """The interface of the loader's result."""

    kind: str
    modalities: Sequence[str]
    classes: Sequence[str]

    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        """Embeds images: [B, P]."""

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Embeds texts: [B, P]."""

    def embed_audios(self, audios: list[tuple[np.ndarray, int]]) -> np.ndarray:
        """Embeds sounds, each as mono float32 samples and samples per second: [B, P]."""

    def embed_series(self, modality: str, signals: list[np.ndarray]) -> np.ndarray:
        """Embeds a sensor's signals, each [T, C]: [B, P]."""

    def classify(self, **given: list[Any]) -> tuple[list[str], np.ndarray]:
        """Classifies `images`, `audios`, `texts`, and signals by their sensor: labels and probabilities [B, C]."""


def read_bytes(value: Any, *, column: str) -> bytes:
    """Reads a cell: a path, bytes, or a file's base64 (with or without a `data:` prefix)."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    text = str(value)
    if len(text) < 4096 and "\n" not in text and Path(text).is_file():
        return Path(text).read_bytes()
    try:
        data = base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except binascii.Error:
        data = b""
    if not data:
        raise ValueError(
            f"the column `{column}` has {text[:60]!r}, neither a file nor base64 -> pass a path or a file's base64"
        )
    return data


def read_image(value: Any) -> Image.Image:
    """Reads an image; the predictor converts it to RGB as in training."""
    image = Image.open(io.BytesIO(read_bytes(value, column="image")))
    image.load()
    return image


def read_audio(value: Any) -> tuple[np.ndarray, int]:
    """Reads a sound: mono float32 samples and their rate."""
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(read_bytes(value, column="audio")), dtype="float32", always_2d=True)
    return samples.mean(axis=1), int(rate)


def read_series(value: Any, *, column: str) -> np.ndarray:
    """Reads a sensor's signal [T, C]: a path or the base64 of a .npy file, or JSON, a list of samples."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        return np.asarray(json.loads(value), dtype=np.float32)
    return np.load(io.BytesIO(read_bytes(value, column=column)), allow_pickle=False)


def embed_column(
    values: Sequence[Any], *, read: Callable[[Any], Any], embed: Callable[[list[Any]], np.ndarray], batch_size: int
) -> list[list[float] | None]:
    """Embeds the non-empty cells in batches; the others stay None."""
    present = [index for index, value in enumerate(values) if value is not None and value == value]
    result: list[list[float] | None] = [None] * len(values)
    for start in range(0, len(present), batch_size):
        part = present[start : start + batch_size]
        for index, row in zip(part, embed([read(values[index]) for index in part]), strict=True):
            result[index] = [float(item) for item in row]
    return result


READERS: dict[str, Callable[[Any], Any]] = {"image": read_image, "text": str, "audio": read_audio}
"""Modality -> reader of a cell; all others are sensors'."""


def reader(modality: str) -> Callable[[Any], Any]:
    """Returns the reader of a modality's cells."""
    return READERS.get(modality, partial(read_series, column=modality))


class LwfedModel(mlflow.pyfunc.PythonModel):
    """Embeds images, texts and sounds, or classifies, with the weights of one checkpoint."""

    def load_context(self, context: Any) -> None:
        """Fetches the weights; the loader checks their digest."""
        config = context.model_config
        module, _, function = config["loader"].partition(":")
        load = getattr(importlib.import_module(module), function)
        self.predictor: Predictor = load(config["uri"], config["digest"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Returns `image_embedding`, `text_embedding` ..., or `label` and `probabilities`, one row per input row."""
        batch_size = max(1, int((params or {}).get("batch_size", 32)))
        if self.predictor.kind == "supervised":
            return self._classify(model_input, batch_size)
        found = {
            f"{modality}_embedding": embed_column(
                list(model_input[modality]),
                read=reader(modality),
                embed=(
                    getattr(self.predictor, f"embed_{modality}s")
                    if modality in READERS
                    else partial(self.predictor.embed_series, modality)
                ),
                batch_size=batch_size,
            )
            for modality in self.predictor.modalities
            if modality in model_input.columns
        }
        if not found:
            raise ValueError(f"no column to embed -> pass one of: {', '.join(self.predictor.modalities)}")
        return pd.DataFrame(found, index=model_input.index)

    def _classify(self, rows: pd.DataFrame, batch_size: int) -> pd.DataFrame:
        labels: list[str] = []
        probabilities: list[list[float]] = []
        for start in range(0, len(rows), batch_size):
            part = rows.iloc[start : start + batch_size]
            given = {
                f"{m}s" if m in READERS else m: [read(value) for value in part[m]]
                for m, read in ((m, reader(m)) for m in self.predictor.modalities)
            }
            names, shares = self.predictor.classify(**given)
            labels += [str(name) for name in names]
            probabilities += [[float(item) for item in row] for row in shares]
        return pd.DataFrame({"label": labels, "probabilities": probabilities}, index=rows.index)


mlflow.models.set_model(LwfedModel())
