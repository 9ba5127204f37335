"""Image transforms to the square that ViT expects, with crops from a given random generator."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lwfed.catalog.encoder import Normalise

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge, in pixels."""


def training_pixels(image: Image.Image, *, size: int, rng: np.random.Generator, augment: bool) -> npt.NDArray[np.uint8]:
    """Returns a training view: a random crop, resized (bilinear, antialiased) to a square.

    Args:
        image: An RGB image.
        size: Pixels per side.
        rng: Draws the crop.
        augment: Whether to crop; otherwise the view is that of evaluation.

    Returns:
        Pixels [3, size, size].
    """
    if not augment:
        return evaluation_pixels(image, size=size)
    return evaluation_pixels(image.crop(crop_box(image.width, image.height, rng=rng)), size=size)


def evaluation_pixels(image: Image.Image, *, size: int) -> npt.NDArray[np.uint8]:
    """Returns the whole image, resized (bilinear, antialiased) to a square: pixels [3, size, size]."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def crop_box(
    width: int,
    height: int,
    *,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws a crop of random area and shape (Szegedy et al. 2015, section 6), distributed like RandomResizedCrop's.

    Args:
        width: The image's width in pixels.
        height: The image's height in pixels.
        rng: Draws the crop.
        scale: Smallest and largest fraction of the image's area.
        ratio: Smallest and largest ratio of width to height.

    Returns:
        The crop; after ten draws that do not fit, the largest centred crop with a permitted ratio.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def normalise_pixels(pixels: Tensor, normalise: Normalise) -> Tensor:
    """Converts bytes [B, 3, H, W] to floats in [0, 1], then normalises each channel."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalise)
    return pixels.float().div_(255).sub_(mean).div_(std)
