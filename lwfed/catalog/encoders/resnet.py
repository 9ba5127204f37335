"""ResNet (timm): its settings, formulas and usage; see `lwfed.models.encoders.resnet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lwfed.catalog.costs import Architecture, Count, Unit, UnitCost
from lwfed.catalog.encoder import IMAGENET, EncoderDescription, EncoderSettings, Input, misfit
from lwfed.catalog.stored import stored_config
from lwfed.catalog.timm_models import timm_settings, timm_usage
from lwfed.types.tensors import TensorSpec

ARCHS: dict[str, tuple[tuple[int, ...], int]] = {
    "resnet18": ((2, 2, 2, 2), 1),
    "resnet34": ((3, 4, 6, 3), 1),
    "resnet26": ((2, 2, 2, 2), 4),
    "resnet50": ((3, 4, 6, 3), 4),
    "resnet101": ((3, 4, 23, 3), 4),
    "resnet152": ((3, 8, 36, 3), 4),
}
"""Architecture -> residual blocks per stage, and a stage's width per channel (He et al. 2016, table 1)."""
CHANNELS = (64, 128, 256, 512)
STEM_WIDTH = 64
IMAGE_SIZE = 224
FIXED = {"num_classes": 0, "global_pool": "avg"}
"""Settings of every encoder, whatever the spec: no classifier, and the mean over the last map as the feature."""
TYPES: dict[str, Any] = {
    **dict.fromkeys(("img_size", "in_chans"), 1),
    **dict.fromkeys(("layers", "channels"), (0,)),
    **dict.fromkeys(("drop_path_rate", "drop_block_rate"), 0.0),
}
"""Setting -> a value of its type."""
LIMITS = {"in_chans": (3, 3)}
"""Pictures are read as RGB."""


def check(encoder: EncoderSettings) -> None:
    """Raises ValueError if `arch` or a stage's size is wrong."""
    if (encoder.arch or "").split(".")[0] not in ARCHS:
        raise ValueError(f"a resnet needs `arch`, one of {', '.join(ARCHS)} (got {str(encoder.arch)[:100]})")
    check_sizes(encoder.config)


def check_sizes(settings: Mapping[str, Any]) -> None:
    """Raises ValueError if the stages' sizes in a config are wrong."""
    for key in ("layers", "channels"):
        sizes = settings.get(key, CHANNELS)
        whole = isinstance(sizes, list | tuple) and len(sizes) == len(CHANNELS) and all(type(n) is int for n in sizes)
        if not whole or min(sizes) < (0 if key == "layers" else 1):
            raise ValueError(f"`config.{key}` must be {len(CHANNELS)} integers, one per stage (got {str(sizes)[:100]})")
    layers = settings.get("layers", CHANNELS)
    if layers[0] < 2 or 0 in layers[: len(_filled(layers))]:
        raise ValueError(
            "`config.layers`: the first stage needs two residual blocks or more, and only the last stages may have none"
        )


def inputs(settings: Mapping[str, Any]) -> Input:
    """Returns an image's pixels [C, H, W]."""
    return Input((3, settings["image_size"], settings["image_size"]))


def widths(encoder: EncoderSettings) -> Sequence[int]:
    """Returns the channels after the stem and after each stage that has residual blocks."""
    found = timm_settings(stored_config(encoder.weights, hub={}) or {}) or {}
    _, channels = stages(encoder, found | encoder.config)
    _, expansion = ARCHS[(encoder.arch or "").split(".")[0]]
    return (STEM_WIDTH, *(expansion * count for count in channels))


def stages(encoder: EncoderSettings, arguments: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Returns the residual blocks and the channels of each stage that has residual blocks.

    Args:
        encoder: The encoder.
        arguments: timm's model arguments.
    """
    layers, _ = ARCHS[(encoder.arch or "").split(".")[0]]
    filled = _filled(arguments.get("layers", layers))
    return filled, list(arguments.get("channels", CHANNELS))[: len(filled)]


def _filled(layers: Sequence[int]) -> list[int]:
    return [count for count in layers if count]


def architecture(encoder: EncoderSettings) -> Architecture | None:
    """Returns the architecture of a ResNet of basic blocks; see `EncoderDescription.architecture`."""
    name = (encoder.arch or "").split(".")[0]
    stored = stored_config(encoder.weights, hub={})
    found = None if stored is None else timm_settings(stored)
    if stored is None or found is None or ARCHS[name][1] != 1:
        return None
    if stored and str(stored.get("architecture", "")).split(".")[0] != name:
        return None
    always = {**FIXED, "in_chans": 3}
    known: dict[str, Any] = {"img_size": IMAGE_SIZE, "layers": ARCHS[name][0], "channels": CHANNELS, **always}
    settings = known | found | FIXED | encoder.config
    if settings.keys() != known.keys() or any(settings[key] != value for key, value in always.items()):
        return None
    try:
        check_sizes(settings)
    except ValueError:
        return None
    if misfit("img_size", settings["img_size"], like=TYPES["img_size"]):
        return None
    layers, channels = stages(encoder, settings)
    side = _halved(settings["img_size"])
    units = {"stem": _stem(side)}
    side, width = _halved(side), STEM_WIDTH
    for i, (count, out) in enumerate(zip(layers, channels, strict=True)):
        after = _halved(side) if i else side
        units[f"blocks.{i}"] = _stage(count, width=width, side=side, out=out, after=after, first=not i)
        side, width = after, out
    pooled = Count(width)
    return Architecture(
        name=name, depth=len(layers), width=width, tokens=side**2, units=units, pooled=pooled, pooled_row=pooled
    )


def _halved(side: int) -> int:
    """Returns the pixels per side after a convolution or pooling of stride 2."""
    return (side - 1) // 2 + 1


def _stem(side: int) -> Unit:
    """Returns the stem: a 7 x 7 convolution to `side` pixels per side, BatchNorm, ReLU, pooling.

    BatchNorm saves its input, ReLU its output, and the pooling the places of its maxima, of 8 bytes each.
    """
    weight = TensorSpec((STEM_WIDTH, 3, 7, 7))
    flops = Count(2 * weight.numel * side**2)
    cost = UnitCost(
        forward=flops,
        backward=flops,
        saved=Count(2 * STEM_WIDTH * side**2 + 2 * STEM_WIDTH * _halved(side) ** 2),
        fixed_bytes=_STATISTICS_BYTES * STEM_WIDTH,
        weight_copies=weight.numel,
    )
    return Unit({"conv1.weight": weight, **_batch_norm("bn1", STEM_WIDTH)}, cost)


def _stage(count: int, *, width: int, side: int, out: int, after: int, first: bool) -> Unit:
    """Returns a stage of basic blocks: twice a 3 x 3 convolution, BatchNorm and ReLU, with a shortcut.

    Each convolution saves its input and each BatchNorm its own; ReLU and the shortcut's sum work in place, so that a
    residual block saves 4 maps, and the first one's projection one more. The last map is the next stage's input, which
    that one saves only at the cut. The stem's pooling does not save its output.

    Args:
        count: Number of residual blocks.
        width: Channels of the input.
        side: Pixels per side of the input.
        out: Channels of the output.
        after: Pixels per side of the output.
        first: Whether it follows the stem.
    """
    tensors: dict[str, TensorSpec] = {}
    for i in range(count):
        for number, fan_in in ((1, out if i else width), (2, out)):
            tensors[f"{i}.conv{number}.weight"] = TensorSpec((out, fan_in, 3, 3))
            tensors |= _batch_norm(f"{i}.bn{number}", out)
    projects = not first or width != out
    if projects:
        tensors["0.downsample.0.weight"] = TensorSpec((out, width, 1, 1))
        tensors |= _batch_norm("0.downsample.1", out)
    weights = sum(spec.numel for spec in tensors.values() if len(spec.shape) == 4)
    of_input = (9 + int(projects)) * width * out  # the weights that read the input
    taken, maps = width * side**2, 4 * count + int(projects)
    return Unit(
        tensors,
        UnitCost(
            forward=Count(2 * weights * after**2),
            backward=Count(4 * weights * after**2),
            input_gradient=Count(2 * of_input * after**2),
            saved=Count(maps * out * after**2 + (taken if first else 0)),
            input_saved=Count(0 if first else -taken),
            input=Count(taken),
            recomputed=Count(2 * weights * after**2),
            fixed_bytes=_STATISTICS_BYTES * out * (2 * count + int(projects)),
            weight_copies=weights,
        ),
    )


_STATISTICS_BYTES = 2 * 4
"""Bytes of a channel's mean and deviation over the batch, saved in fp32 for the backward pass."""


def _batch_norm(name: str, width: int) -> dict[str, TensorSpec]:
    """Returns the tensors of a BatchNorm."""
    parameters = {f"{name}.{part}": TensorSpec((width,)) for part in ("weight", "bias")}
    statistics = {f"{name}.{part}": TensorSpec((width,), buffer=True) for part in ("running_mean", "running_var")}
    return parameters | statistics | {f"{name}.num_batches_tracked": TensorSpec((), dtype="I64", buffer=True)}


DESCRIPTION = EncoderDescription(
    modality="image",
    final_norm=False,
    feature_token=False,
    inputs=inputs,
    widths=widths,
    architecture=architecture,
    normalise=IMAGENET,
    check=check,
    types=TYPES,
    limits=LIMITS,
    usage=timm_usage("resnet", what="timm ResNet"),
)
