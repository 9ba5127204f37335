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
SCALE = (0.08, 1.0)
"""Smallest and largest fraction of an image's area that a crop has."""
RATIO = (3 / 4, 4 / 3)
"""Smallest and largest ratio of a crop's width to its height."""


def square_pixels(image: Image.Image, *, size: int) -> npt.NDArray[np.uint8]:
    """Returns an RGB image, resized (bilinear, antialiased) to a square: pixels [3, size, size]."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def crop_box(width: int, height: int, *, rng: np.random.Generator) -> Box:
    """Draws a crop of random area and shape (Szegedy et al. 2015, section 6), distributed like RandomResizedCrop's.

    Args:
        width: The image's width in pixels.
        height: The image's height in pixels.
        rng: Draws the crop.

    Returns:
        The crop; after ten draws that do not fit, the largest centred crop with a permitted ratio.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        shape = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w = max(1, min(width, round(height * RATIO[1])))
    h = max(1, min(height, round(width / RATIO[0])))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def normalise_pixels(pixels: Tensor, normalise: Normalise) -> Tensor:
    """Converts bytes [B, 3, H, W] to floats in [0, 1], then normalises each channel."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalise)
    return pixels.float().div_(255).sub_(mean).div_(std)
