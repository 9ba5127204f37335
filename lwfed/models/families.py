"""Encoder families and fusions by name; a library is imported only when its family is used, because that is slow."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from lwfed.models.protocol import Family, FusionModule
from lwfed.spec.model import EncoderSpec, SupervisedSpec


def family_of(encoder: EncoderSpec) -> Family:
    """Returns the module of an encoder's family."""
    return cast(Family, import_module(f"lwfed.models.encoders.{encoder.family}"))


def fusion_of(objective: SupervisedSpec) -> FusionModule:
    """Returns the module of an objective's fusion."""
    return cast(FusionModule, import_module(f"lwfed.models.fusions.{objective.fusion}"))
