"""Architectures that are not in the table: counted once by whoever has torch, then kept as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lwfed.cost.architectures import stored_config, tabled
from lwfed.cost.units import Architecture
from lwfed.spec.model import EncoderSpec, ModelSpec
from lwfed.types.canonical import digest_of, readable

FORMAT = 2
"""Part of the key: raised when what is counted changes."""


def architectures_of(
    model: ModelSpec, *, folder: Path | None, count: Callable[[EncoderSpec], Mapping[str, Any]]
) -> dict[str, Architecture]:
    """Describes every encoder of a model.

    Args:
        model: The model.
        folder: Where counted architectures are kept; None keeps nothing.
        count: Counts an architecture that is not in the table: `lwfed.models.inspect.count`. Called only if needed, so
            the caller may import torch inside it.

    Returns:
        Modality -> architecture.
    """
    return {
        modality: architecture_of(encoder, folder=folder, count=count) for modality, encoder in model.encoders.items()
    }


def architecture_of(
    encoder: EncoderSpec, *, folder: Path | None, count: Callable[[EncoderSpec], Mapping[str, Any]]
) -> Architecture:
    """Describes one encoder: from the table, from the cache, or counted now. See `architectures_of`."""
    known = tabled(encoder)
    if known is not None:
        return known
    path = folder / f"{cache_key(encoder)}.json" if folder is not None else None
    if path is not None:
        stored = _read(path)
        if stored is not None:
            return stored
    architecture = Architecture.from_values(count(encoder))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
        draft.write_bytes(readable(architecture.to_values()))
        draft.replace(path)
    return architecture


def cache_key(encoder: EncoderSpec) -> str:
    """Gives the name under which an encoder's counts are kept: all that decides its architecture."""
    return digest_of(
        {
            "format": FORMAT,
            "encoder": encoder.model_dump(mode="json", include={"family", "arch", "weights", "config", "max_tokens"}),
            "stored": stored_config(encoder.weights),
        }
    )


def _read(path: Path) -> Architecture | None:
    """Reads a cached architecture; None where there is none, or one that is not whole: it is then counted again."""
    try:
        return Architecture.from_values(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
