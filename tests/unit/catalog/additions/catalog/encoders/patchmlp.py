"""Patches of an image, each through the same MLPs; has no formulas, so the ledger counts the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lwfed.catalog.encoder import EncoderDescription, EncoderSettings, Input, Usage, without_arch

SETTINGS = {"image_size": 16, "patch": 8, "width": 12, "depth": 2}


def check(encoder: EncoderSettings) -> None:
    without_arch(encoder)
    unknown = sorted(set(encoder.config) - set(SETTINGS))
    if unknown:
        raise ValueError(f"a patchmlp has no `config.{unknown[0]}`; known: {', '.join(SETTINGS)}")


def inputs(settings: Mapping[str, Any]) -> Input:
    return Input((3, settings["image_size"], settings["image_size"]))


DESCRIPTION = EncoderDescription(
    modality="image",
    final_norm=False,
    feature_token=False,
    inputs=inputs,
    check=check,
    usage=Usage(
        what="MLPs over patches",
        how="`safetensors.torch.load_file`, see the example",
        feature="the mean of its patches",
        needs=("numpy", "pillow"),
        imports=("import json", "import numpy", "from PIL import Image"),
        code="""\
mlp = load_file(here / "image/model.safetensors", device=device)
settings = json.loads((here / "image/config.json").read_text())
image_head = projection("image", %(width)d)


def encode_images(paths):
    size, patch = settings["image_size"], settings["patch"]
    images = [Image.open(path).convert("RGB").resize((size, size)) for path in paths]
    pixels = torch.from_numpy(numpy.stack([numpy.asarray(image) for image in images])).to(device)
    pixels = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    tokens = nn.functional.unfold(pixels, patch, stride=patch).transpose(1, 2)
    tokens = nn.functional.linear(tokens, mlp["stem.weight"], mlp["stem.bias"])
    for i in range(settings["depth"]):
        layer = nn.functional.linear(tokens, mlp[f"blocks.{i}.linear.weight"], mlp[f"blocks.{i}.linear.bias"])
        tokens = tokens + layer.relu()
    return image_head(tokens.mean(1))
""",
    ),
)
