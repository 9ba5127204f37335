"""Architectures of a model's encoders: as the family's formulas, or counted once by whoever has torch and kept as JSON.

An encoder that a family's formulas do not cover to the last key of its config, or whose family has none, is counted by
`lwfed.models.inspect`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lwfed.catalog.costs import Architecture
from lwfed.catalog.encoder import encoder_family
from lwfed.catalog.stored import stored_config
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
        count: Counts an architecture that no formula describes: `lwfed.models.inspect.count`. Called only if needed,
            so that it may import torch.

    Returns:
        Modality -> architecture.
    """
    return {
        modality: architecture_of(encoder, folder=folder, count=count) for modality, encoder in model.encoders.items()
    }


def architecture_of(
    encoder: EncoderSpec, *, folder: Path | None, count: Callable[[EncoderSpec], Mapping[str, Any]]
) -> Architecture:
    """Describes one encoder: as formulas, from the cache, or counted now. See `architectures_of`."""
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


def tabled(encoder: EncoderSpec) -> Architecture | None:
    """Describes an encoder by its family's formulas.

    Args:
        encoder: The encoder; of `weights` in a local folder only the config.json is read.

    Returns:
        Its architecture; None where the formulas do not cover it, or building it would raise an error.
    """
    formulas = encoder_family(encoder.family).architecture
    return None if formulas is None else formulas(encoder)


def cache_key(encoder: EncoderSpec) -> str:
    """Returns the name under which an encoder's counts are kept: all that decides its architecture."""
    return digest_of(
        {
            "format": FORMAT,
            "encoder": encoder.model_dump(mode="json", include={"family", "arch", "weights", "config", "max_tokens"}),
            "stored": stored_config(encoder.weights, hub=encoder_family(encoder.family).hub),
        }
    )


def _read(path: Path) -> Architecture | None:
    """Reads a cached architecture; None where there is none, or one that is not whole: it is then counted again."""
    try:
        return Architecture.from_values(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
