"""The settings of an encoder in force: its library's defaults, the config stored with its weights, the spec's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwfed.catalog.encoder import EncoderSettings

HARMLESS: frozenset[str] = frozenset(
    {"initializer_range", "layer_norm_eps", "pad_token_id", "eos_token_id", "bos_token_id"}
)
"""Overrides that no count depends on."""


def stored_config(weights: str | None, *, hub: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns what the weights' own config says: {} without weights or for a single file, None where it is not known.

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
    return values if isinstance(values, dict) else None


def transformers_settings(
    encoder: EncoderSettings,
    defaults: Mapping[str, Any],
    *,
    model_type: str,
    hub: Mapping[str, Mapping[str, Any]],
    aliases: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    """Returns the settings in force of an encoder that transformers builds.

    Args:
        encoder: The encoder.
        defaults: The library's defaults of all settings that a count depends on.
        model_type: What the weights' config.json must name.
        hub: Hub id of known weights -> their config.
        aliases: Other names that the library takes -> its own.

    Returns:
        A value for each default; None where the weights are another model or not known, or an override is unknown.
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
    return settings if alike(settings, defaults) else None


def alike(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Says whether all settings have their default's type, and sizes are above 0."""

    def good(value: Any, default: Any) -> bool:
        if isinstance(default, bool | str):
            return isinstance(value, type(default))
        if isinstance(default, float):
            return isinstance(value, int | float) and value >= 0
        return isinstance(value, int) and value > 0

    return all(good(settings[key], default) for key, default in defaults.items())
