"""Stored specs, read with the meaning that they had for the version of lwfed that stored them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REFERENCE_BATCH = 256
"""Version 0.1 always scaled rates by batch_size / 256, and its specs do not say so."""

OLD_RATES = "This run was started by lwfed 0.1: its rates are scaled by batch_size / 256 (training.rate_scaling)."
"""Explains the rates of a run of version 0.1."""


def stored_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored spec's values for this version; see `lwfed.spec.load.build_spec`.

    Args:
        values: A spec as stored by any version. Every version since 0.2 writes `training.rate_scaling`.
    """
    tracking = values.get("tracking")
    if isinstance(tracking, Mapping) and isinstance(name := tracking.get("register_as"), str):
        # older versions took names that MLflow refuses
        values = {**values, "tracking": {**tracking, "register_as": re.sub(r"[/:]", "-", name)}}
    if not scales_implicitly(values):
        return dict(values)
    return {**values, "training": {**_training(values), "rate_scaling": {"reference_batch": REFERENCE_BATCH}}}


def scales_implicitly(values: Mapping[str, Any]) -> bool:
    """Returns whether a stored spec is from version 0.1, which scaled rates with the batch size."""
    training = _training(values)
    return isinstance(training, Mapping) and "rate_scaling" not in training


def _training(values: Mapping[str, Any]) -> Any:
    return values.get("training") or {}
