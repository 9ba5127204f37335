"""Architectures of a model's encoders: from the family's formulas, or counted once with torch and cached as JSON.

`lwfed.models.inspect` counts an encoder whose family has no formulas, or whose config has a key that they do not cover.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lwfed.catalog.costs import Architecture
from lwfed.catalog.encoder import encoder_family
from lwfed.catalog.stored import stored_config
from lwfed.spec.model import EncoderSpec, ModelSpec
from lwfed.types.canonical import digest_of, readable

FORMAT = 3
"""Part of the cache key; increased when the counts change."""


def architectures_of(
    model: ModelSpec, *, folder: Path | None, count: Callable[[EncoderSpec], Mapping[str, Any]]
) -> dict[str, Architecture]:
    """Describes every encoder of a model.

    Args:
        model: The model.
        folder: Folder that caches counted architectures; None caches nothing.
        count: Counts an architecture that no formula describes: `lwfed.models.inspect.count`. Called only if needed,
            because it may import torch.

    Returns:
        Modality -> architecture.
    """
    return {
        modality: architecture_of(encoder, folder=folder, count=count) for modality, encoder in model.encoders.items()
    }


def architecture_of(
    encoder: EncoderSpec, *, folder: Path | None, count: Callable[[EncoderSpec], Mapping[str, Any]]
) -> Architecture:
    """Describes one encoder: by formulas, from the cache, or by counting it now. See `architectures_of`."""
    known = by_formulas(encoder)
    if known is not None:
        return known
    if folder is None:
        return Architecture.from_values(count(encoder))
    path = folder / f"{cache_key(encoder)}.json"
    architecture = _read(path)
    if architecture is None:
        architecture = Architecture.from_values(count(encoder))
        draft = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
        with suppress(OSError):  # a folder that cannot be written only costs time
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(readable(architecture.to_values()))
            draft.replace(path)
    return architecture


def by_formulas(encoder: EncoderSpec) -> Architecture | None:
    """Describes an encoder by its family's formulas.

    Args:
        encoder: The encoder; if its `weights` are a local folder, only the config.json is read.

    Returns:
        Its architecture; None if the formulas do not cover it, or if building it would raise an error.
    """
    formulas = encoder_family(encoder.family).architecture
    return None if formulas is None else formulas(encoder)


def cache_key(encoder: EncoderSpec) -> str:
    """Returns the key of an encoder's cached counts: a digest of everything that decides its architecture."""
    return digest_of(
        {
            "format": FORMAT,
            "encoder": encoder.model_dump(mode="json", include={"family", "arch", "weights", "config", "max_tokens"}),
            "stored": stored_config(encoder.weights, hub=encoder_family(encoder.family).hub),
        }
    )


def _read(path: Path) -> Architecture | None:
    """Reads a cached architecture; None if there is none or it is incomplete, so that it is counted again."""
    try:
        return Architecture.from_values(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
