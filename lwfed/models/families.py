"""Encoder families by name; a family's library is imported when the family is used, since that takes seconds."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from lwfed.models.protocol import Family
from lwfed.spec.model import EncoderSpec


def family_of(encoder: EncoderSpec) -> Family:
    """Gives the module that knows an encoder's family."""
    return cast(Family, import_module(f"lwfed.models.encoders.{encoder.family}"))
