from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from lwfed.catalog.encoder import HALF
from lwfed.data.transforms import crop_box, normalise_pixels, square_pixels

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def test_pixels_are_those_of_torchvision() -> None:
    """A user who evaluates with torchvision on PIL images sees the same numbers."""
    ours = normalise_pixels(torch.from_numpy(square_pixels(PICTURE, size=32))[None], HALF)[0]
    resized = functional.resize(PICTURE, [32, 32], antialias=True)
    theirs = functional.normalize(functional.to_tensor(resized), [0.5] * 3, [0.5] * 3)
    assert torch.equal(ours, theirs)
    box = crop_box(90, 60, rng=np.random.default_rng(3))
    left, upper, right, lower = box
    cropped = functional.resized_crop(PICTURE, upper, left, lower - upper, right - left, [32, 32])
    view = square_pixels(PICTURE.crop(box), size=32)
    assert np.array_equal(view, np.asarray(cropped).transpose(2, 0, 1))


@pytest.mark.parametrize(("width", "height"), [(640, 480), (1, 1), (3, 1000), (1000, 3), (50, 50)])
def test_crops_lie_inside(width: int, height: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        left, upper, right, lower = crop_box(width, height, rng=rng)
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height


def test_crops_follow_their_law() -> None:
    rng = np.random.default_rng(1)
    boxes = np.array([crop_box(400, 400, rng=rng) for _ in range(3000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, shape = w * h / 160_000, w / h
    assert area.min() > 0.075
    assert area.max() <= 1
    assert 0.45 < area.mean() < 0.56
    assert shape.min() > 0.73
    assert shape.max() < 1.37
