"""Signals of a sensor, by convolutions and then transformer or GRU blocks; see `lwfed.models.encoders.timeseries`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lwfed.catalog.blocks import BlockShape, block, linear, norm
from lwfed.catalog.costs import Architecture, Count, Unit, UnitCost
from lwfed.catalog.encoder import EncoderDescription, EncoderSettings, Input, Usage, without_arch
from lwfed.catalog.stored import stored_config
from lwfed.types.tensors import TensorSpec

MODEL_TYPE = "timeseries"
DEFAULTS: dict[str, Any] = {
    "length": 128,
    "axes": 3,
    "kernel": 5,
    "channels": (32, 64, 128),
    "blocks": "transformer",
    "depth": 6,
    "num_heads": 4,
    "mlp_ratio": 2.0,
}
"""Samples of a window and axes of the sensor; the stem's kernel and the channels of its convolutions, each of which is
followed by ReLU and a pooling that halves the length; the kind, number and sizes of the blocks."""

LIMITS = {"length": (2, 2**20), "axes": (1, 2**12), "kernel": (1, 2**10)}
BLOCKS = ("transformer", "gru")


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all settings, with the defaults of those that are not given.

    Raises:
        ValueError: A key is unknown, or values do not fit each other.
    """
    for key in sorted(set(given) - set(DEFAULTS)):
        near = difflib.get_close_matches(key, DEFAULTS, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(DEFAULTS)}"
        raise ValueError(f"a timeseries has no `config.{key}`: {hint}")
    DESCRIPTION.check_types(given)
    c = {**DEFAULTS, **given}
    channels = c["channels"] if isinstance(c["channels"], list | tuple) else (c["channels"],)
    c |= {"channels": tuple(channels), "mlp_ratio": float(c["mlp_ratio"])}
    if c["blocks"] not in BLOCKS:
        raise ValueError(f"`config.blocks` must be {' or '.join(BLOCKS)} (got {str(c['blocks'])[:100]})")
    if not channels or c["length"] >> len(channels) < 1:
        raise ValueError(
            f"`config.channels` must name from 1 to {c['length'].bit_length() - 1} convolutions, each of which halves "
            f"the {c['length']} samples of `config.length`"
        )
    if not c["kernel"] % 2:
        raise ValueError(f"`config.kernel` must be odd (got {c['kernel']})")
    if c["blocks"] == "transformer" and channels[-1] % c["num_heads"]:
        raise ValueError(
            f"the last of `config.channels`, {channels[-1]}, is the blocks' width, and must be a multiple of "
            f"`config.num_heads`, {c['num_heads']}"
        )
    return c


def check(encoder: EncoderSettings) -> None:
    """Raises ValueError if `arch` is set or the config is wrong."""
    without_arch(encoder)
    settings_of(encoder.config)


def inputs(settings: Mapping[str, Any]) -> Input:
    """Returns a window [T, C]."""
    return Input((settings["length"], settings["axes"]))


def architecture(encoder: EncoderSettings) -> Architecture | None:
    """Returns the architecture with transformer blocks by formulas; see `EncoderDescription.architecture`."""
    stored = stored_config(encoder.weights, hub={})
    if stored is None or (stored and stored.get("model_type") != MODEL_TYPE):
        return None
    try:
        c = settings_of({key: stored[key] for key in DEFAULTS if key in stored} | encoder.config)
    except ValueError:
        return None
    if c["blocks"] != "transformer":
        return None
    d, hidden = c["channels"][-1], int(c["channels"][-1] * c["mlp_ratio"])
    tokens = c["length"] >> len(c["channels"])
    tensors = {
        **norm("norm1", d),
        **linear("attn.qkv", d, 3 * d),
        **linear("attn.proj", d, d),
        **norm("norm2", d),
        **linear("mlp.fc1", d, hidden),
        **linear("mlp.fc2", hidden, d),
    }
    one = block(BlockShape(width=d, feed_forward=hidden, heads=c["num_heads"]), tensors=tensors)
    return Architecture(
        name="timeseries",
        depth=c["depth"],
        width=d,
        tokens=tokens,
        units={
            "stem": _stem(c, tokens=tokens),
            **{f"blocks.{i}": Unit(one.tensors, one.cost) for i in range(c["depth"])},
            "norm": Unit(norm("", d), UnitCost(saved_fp32=Count(linear=d + 2))),
        },
        pooled=Count(d),
        pooled_row=Count(d),
    )


def _stem(c: Mapping[str, Any], *, tokens: int) -> Unit:
    """Returns the stem's unit.

    FLOPs: a convolution of N samples is N products of kernel x in x out. Its backward pass is one for the weights, and
    except for the first, whose input is the batch, one for the input.

    Saved items: ReLU's output, N per channel; the pooled one, N / 2 per channel, from which the next convolution's
    input or the tokens are made.
    """
    tensors: dict[str, TensorSpec] = {"positions": TensorSpec((1, tokens, c["channels"][-1]))}
    forward = backward = saved = weights = 0
    for i, (fan_in, fan_out) in enumerate(pairwise((c["axes"], *c["channels"]))):
        samples, size = c["length"] >> i, c["kernel"] * fan_in * fan_out
        tensors[f"convolutions.{i}.weight"] = TensorSpec((fan_out, fan_in, c["kernel"]))
        tensors[f"convolutions.{i}.bias"] = TensorSpec((fan_out,))
        forward += 2 * samples * size
        backward += 2 * samples * size * (2 if i else 1)
        saved += (samples + samples // 2) * fan_out
        weights += size
    return Unit(
        tensors,
        UnitCost(
            forward=Count(forward),
            backward=Count(backward),
            saved=Count(saved),
            copies=Count(c["length"] * c["axes"]),
            weight_copies=weights,
        ),
    )


DESCRIPTION = EncoderDescription(
    modality="series",
    final_norm=True,
    feature_token=False,
    inputs=inputs,
    check=check,
    architecture=architecture,
    types={**DEFAULTS, "channels": (1,)},
    limits=LIMITS,
    usage=Usage(
        what="convolutions and blocks over a sensor's windows",
        how="the class `TimeSeries` of the example",
        feature="the output itself",
        needs=("numpy", "timm"),
        imports=("import json", "import numpy", "from timm.models.vision_transformer import Block"),
        setup="""\
class Gru(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.gru = nn.LayerNorm(width), nn.GRU(width, width, batch_first=True)

    def forward(self, tokens):
        return tokens + self.gru(self.norm(tokens))[0]


class TimeSeries(nn.Module):
    def __init__(self, folder):
        super().__init__()
        c = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        widths, kernel = [c["axes"], *c["channels"]], c["kernel"]
        convolutions = [nn.Conv1d(a, b, kernel, padding=kernel // 2) for a, b in zip(widths, widths[1:])]
        self.stem = nn.Module()
        self.stem.convolutions = nn.ModuleList(convolutions)
        self.stem.positions = nn.Parameter(torch.zeros(1, c["length"] >> len(convolutions), widths[-1]))
        attend = c["blocks"] == "transformer"
        self.blocks = nn.ModuleList(
            Block(widths[-1], c["num_heads"], mlp_ratio=c["mlp_ratio"], qkv_bias=True) if attend else Gru(widths[-1])
            for _ in range(c["depth"])
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.load_state_dict(load_file(folder / "model.safetensors"))

    def forward(self, windows):
        values = windows.transpose(1, 2)
        for convolution in self.stem.convolutions:
            values = nn.functional.max_pool1d(convolution(values).relu(), 2)
        tokens = values.transpose(1, 2) + self.stem.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).mean(1)


def read_window(path):  # a .npy file [samples, axes]; each axis is standardised
    window = numpy.load(path)
    return (window - window.mean(0)) / (window.std(0) + 1e-5)
""",
        code="""\
%(modality)s = TimeSeries(here / "%(modality)s").eval().to(device)
%(modality)s_head = projection("%(modality)s", %(width)d)


def encode_%(modality)ss(paths):
    windows = numpy.stack([read_window(path) for path in paths]).astype("float32")
    return %(modality)s_head(%(modality)s(torch.from_numpy(windows).to(device)))
""",
    ),
)
