"""What the encoders from timm share: the settings stored with their weights, and how their exports are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lwfed.catalog.encoder import Usage


def timm_settings(stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the model arguments in a config.json of timm; None if it is damaged."""
    arguments, pretrained = stored.get("model_args", {}), stored.get("pretrained_cfg", {})
    if not isinstance(arguments, dict) or not isinstance(pretrained, dict):
        return None
    size = pretrained.get("input_size") or []
    if not isinstance(size, list):
        return None
    given = {key: value for key, value in arguments.items() if value is not None}
    return ({"img_size": size[-1]} if size else {}) | given


def timm_usage(name: str, *, what: str) -> Usage:
    """Returns how an export is used whose output is the feature.

    Args:
        name: The model's name in the example.
        what: The model and its library.
    """
    return Usage(
        what=what,
        how="`timm.create_model('local-dir:image', pretrained=True)`",
        feature="the output itself",
        needs=("timm", "pillow"),
        imports=(
            "import numpy",
            "import timm",
            "from PIL import Image, ImageOps",
            "from timm.data import create_transform, resolve_data_config",
        ),
        code=_CODE.replace("NAME", name),
    )


_CODE = """\
NAME = timm.create_model(f"local-dir:{here}/image", pretrained=True).eval().to(device)
transform = create_transform(**resolve_data_config(model=NAME))
image_head = projection("image", %(width)d)


def read_image(path):  # as people see it: upright, on white, 16 bits scaled to 8
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((numpy.asarray(image) / 257).round().astype("uint8"))
    if image.mode in ("I", "F"):
        raise ValueError(f"{path} has values of an unknown range -> save it with 8 or 16 bits")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def encode_images(paths):
    pixels = torch.stack([transform(read_image(path)) for path in paths])
    return image_head(NAME(pixels.to(device)))
"""
