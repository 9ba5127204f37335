"""Encoders from timm: their arguments, their models and the config.json of an export."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import timm

from lwfed.catalog.timm_models import timm_settings
from lwfed.models.weights import checked_settings, normalise_of, read_config
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import DataError, SpecError


def timm_config(encoder: EncoderSpec, *, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns timm's model arguments: those in the weights' folder, overridden by the spec's, without the fixed ones.

    Args:
        encoder: The encoder.
        fixed: Arguments of every encoder of its family, whatever the spec.

    Raises:
        SpecError: The weights are of another architecture, or the spec overrides a fixed argument.
        DataError: The config.json is not timm's, or is damaged.
    """
    found = read_config(encoder.weights)
    known: dict[str, Any] = {}
    if found:
        name = str(found.get("architecture", "")).split(".")[0]
        if not name:
            raise DataError(
                f"the config.json of {encoder.weights} is not timm's: it has no `architecture`",
                remedy="use weights in timm's format, as written by timm's save_for_hf",
            )
        if encoder.arch and name != encoder.arch.split(".")[0]:
            raise SpecError(
                f"the weights {encoder.weights} are a {name[:100]}, not a {encoder.arch}",
                remedy=f"set `arch: {name[:100]}`",
            )
        known = dict(checked_settings(encoder, timm_settings(found)))
    values = {**known, **encoder.config}
    for key, value in fixed.items():
        if encoder.config.get(key, value) != value:
            raise SpecError(f"`config.{key}` of a {encoder.family} encoder is always {value!r}", remedy="leave it out")
        values.pop(key, None)
    return values


def timm_model(encoder: EncoderSpec, arguments: Mapping[str, Any], *, near: str, builder: str) -> Any:
    """Builds timm's whole model on the default device.

    Args:
        encoder: The encoder.
        arguments: The model's arguments.
        near: Pattern of the architectures to suggest for an unknown one.
        builder: The class that documents the arguments.

    Raises:
        SpecError: The architecture or an argument is wrong.
    """
    arch = str(encoder.arch)
    if not timm.is_model(arch.split(".")[0]):
        matches = difflib.get_close_matches(arch, timm.list_models(near), n=1)
        hint = f"did you mean {matches[0]}?" if matches else f"see timm.list_models('{near}')"
        raise SpecError(f"timm has no architecture `{arch}`", remedy=hint)
    try:
        return timm.create_model(arch, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError, KeyError) as error:
        raise SpecError(
            f"timm cannot build {arch} with `config` {str(dict(encoder.config))[:300]}: {str(error)[:300]}",
            remedy=f"see {builder} for the arguments",
        ) from None


def exported_config(
    encoder: EncoderSpec,
    *,
    fixed: Mapping[str, Any],
    arguments: Mapping[str, Any],
    size: int,
    first_conv: str,
    classifier: str,
) -> dict[str, Any]:
    """Returns the config.json that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads.

    Args:
        encoder: The encoder.
        fixed: See `timm_config`.
        arguments: The model's other arguments.
        size: Pixels per side.
        first_conv: timm's name of the first convolution.
        classifier: timm's name of the classifier, which the model does not have.
    """
    normalise = normalise_of(encoder)
    assert normalise is not None
    return {
        "architecture": str(encoder.arch).split(".")[0],
        **fixed,
        "model_args": {**arguments, **fixed},
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, size, size],
            "fixed_input_size": "img_size" in arguments,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",  # timm's own transform is then the one used in evaluation
            "mean": list(normalise.mean),
            "std": list(normalise.std),
            "first_conv": first_conv,
            "classifier": classifier,
        },
    }
