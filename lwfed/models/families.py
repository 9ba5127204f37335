"""Encoder families and fusions by name; a library is imported when its family is used, since that takes seconds."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from lwfed.models.protocol import Family, Fusing
from lwfed.spec.model import EncoderSpec, SupervisedSpec


def family_of(encoder: EncoderSpec) -> Family:
    """Returns the module that knows an encoder's family."""
    return cast(Family, import_module(f"lwfed.models.encoders.{encoder.family}"))


def fusion_of(objective: SupervisedSpec) -> Fusing:
    """Returns the module that knows an objective's fusion."""
    return cast(Fusing, import_module(f"lwfed.models.fusions.{objective.fusion}"))
