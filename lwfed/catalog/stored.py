"""An encoder's effective settings: its library's defaults, the config stored with its weights, the spec's overrides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwfed.catalog.encoder import EncoderSettings, misfit

HARMLESS: dict[str, Any] = {
    "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0,
}  # fmt: skip
"""Overrides that do not affect any count -> a value of their type."""


def stored_config(weights: str | None, *, hub: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns the config stored with weights: {} without weights or for a single file, None if it is unknown.

    A key that is null has the library's default and is left out.

    Args:
        weights: A folder with a config.json, a file, a hub id, or None.
        hub: Hub id of known weights -> their config.
    """
    if not weights:
        return {}
    place = Path(weights).expanduser()
    if place.is_file():
        return {}
    if weights in hub and not place.exists():
        return dict(hub[weights])
    try:
        values = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else None


def transformers_settings(
    encoder: EncoderSettings,
    defaults: Mapping[str, Any],
    *,
    model_type: str,
    hub: Mapping[str, Mapping[str, Any]],
    aliases: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    """Returns the effective settings of an encoder that transformers builds.

    Args:
        encoder: The encoder.
        defaults: The library's defaults of all settings that affect a count.
        model_type: The model type that the weights' config.json must have.
        hub: Hub id of known weights -> their config.
        aliases: Other names that the library accepts -> its own.

    Returns:
        A value for each default; None if the weights are of another model or unknown, or an override is unknown.
    """
    stored = stored_config(encoder.weights, hub=hub)
    if stored is None or (stored and stored.get("model_type") != model_type):
        return None
    own = aliases or {}
    overrides = {own.get(key, key): value for key, value in encoder.config.items()}
    if any(key not in defaults and key not in HARMLESS for key in overrides):
        return None
    found = {own.get(key, key): value for key, value in stored.items()} | overrides
    settings = {key: found.get(key, default) for key, default in defaults.items()}
    return settings if are_valid(settings, defaults) else None


def are_valid(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Returns whether all settings have their default's type, and all sizes are above 0."""
    return not any(misfit(key, settings[key], like=default) for key, default in defaults.items())
