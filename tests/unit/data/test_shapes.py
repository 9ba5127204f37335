from __future__ import annotations

import time

import numpy as np
import pytest

from lwfed.catalog.sources.shapes import ShapesSize
from lwfed.data.protocol import open_source
from lwfed.data.sources.shapes import KINDS, NUM_MEANINGS, Shapes, captions_of, draw, open_data, scene_of, sound
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError


def open_shapes(size: ShapesSize) -> Shapes:
    return open_data(DataSpec(shapes=size))


def test_every_scene_has_its_own_captions() -> None:
    told = [caption for number in range(NUM_MEANINGS) for caption in captions_of(scene_of(number))]
    assert len(set(told)) == len(told) == 5 * NUM_MEANINGS
    assert max(len(caption.encode()) for caption in told) <= 63


def test_train_and_test_never_mean_the_same() -> None:
    source = open_source(DataSpec(shapes=ShapesSize(train=7500, test=200)))
    train, test = source.examples("train"), source.examples("test")
    assert (len(train), len(test)) == (7500, 200)
    seen = {caption for example in train for caption in example.captions}
    asked = [caption for example in test for caption in example.captions]
    assert len(set(asked)) == len(asked)
    assert not seen & set(asked)
    assert len({example.id for example in (*train, *test)}) == 7700
    assert source.classes == KINDS
    assert {example.label for example in train} == set(range(len(KINDS)))


def test_the_seed_decides_everything() -> None:
    size = ShapesSize(train=8, test=4)
    one, two, other = open_shapes(size), open_shapes(size), open_shapes(size.model_copy(update={"seed": 1}))
    assert one.version() == two.version() != other.version()
    for example, same, different in zip(one.train, two.train, other.train, strict=True):
        assert example == same
        assert np.array_equal(np.asarray(one.image(example)), np.asarray(two.image(same)))
        assert np.array_equal(one.waveform(example)[0], two.waveform(same)[0])
        assert not np.array_equal(np.asarray(one.image(example)), np.asarray(other.image(different)))
    assert open_shapes(ShapesSize(train=9, test=4)).version() != one.version()


def test_scenes_look_and_sound_apart() -> None:
    """Whatever word of a scene changes, the picture and the sound change more than by noise."""
    base = scene_of(0)
    for number in (1, 2, 2 * 5, 2 * 5 * 6, 2 * 60, 2 * 60 * 5):
        scene = scene_of(number)
        pixels = [draw(which, size=32, seed="7").astype(float) for which in (base, scene)]
        assert (np.abs(pixels[0] - pixels[1]) > 40).sum() > 15, scene
        tones = [sound(which, seed="7") for which in (base, scene)]
        assert np.abs(tones[0] - tones[1]).max() > 0.05, scene


@pytest.mark.parametrize("size", [16, 32, 64])
def test_sizes_and_types(size: int) -> None:
    source = open_shapes(ShapesSize(train=4, test=4, image_size=size))
    image = source.image(source.train[0])
    assert (image.size, image.mode) == ((size, size), "RGB")
    samples, rate = source.waveform(source.train[0])
    assert (samples.dtype, samples.shape, rate) == (np.float32, (11_520,), 16_000)
    assert np.abs(samples).max() <= 1


def test_drawing_is_quick() -> None:
    source = open_shapes(ShapesSize(train=200, test=4))
    begin = time.process_time()
    for example in source.train:
        source.image(example)
    assert (time.process_time() - begin) / 200 < 2e-3


def test_too_many_test_scenes_are_refused() -> None:
    with pytest.raises(DataError, match=r"only 3600 test scenes .* set data.shapes.test to 3600"):
        open_shapes(ShapesSize(test=3601))
    with pytest.raises(ValueError, match="no split 'val'"):
        open_shapes(ShapesSize(train=4, test=4)).examples("val")
