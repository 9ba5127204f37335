"""Generated scenes of two coloured shapes, as images, captions and sounds: learnable data without a download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import numpy.typing as npt
from PIL import Image

from lwfed.catalog.sources.shapes import ShapesSize
from lwfed.data.folders import of_split
from lwfed.data.protocol import Example, Signal, Waveform
from lwfed.spec.data import DataSpec
from lwfed.types.canonical import digest_of
from lwfed.types.errors import DataError, SpecError
from lwfed.types.seeds import as_int, derive

KINDS = ("circle", "square", "triangle", "cross", "ring")
"""Kinds of shapes; the class of a scene is the kind of its first shape, the upper or the left one."""
COLOURS = {
    "red": (225, 45, 45),
    "green": (45, 190, 70),
    "blue": (60, 90, 235),
    "yellow": (235, 215, 50),
    "purple": (180, 60, 200),
    "white": (240, 240, 240),
}
"""Name -> red, green and blue in [0, 255]."""
SIZES = {"small": 4.0, "large": 7.0}
"""Name -> half the width, in 32nds of the image's side."""
RELATIONS = {"above": "below", "left of": "right of"}
"""Position of the first shape relative to the second -> position of the second relative to the first."""
SAMPLE_RATE = 16_000
_PITCHES = (220.0, 330.0, 494.0, 740.0, 1100.0)
_DRAWING = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape."""

    size: str
    colour: str
    kind: str


SHAPES = tuple(Shape(size, colour, kind) for size, colour, kind in product(SIZES, COLOURS, KINDS))
NUM_MEANINGS = len(SHAPES) ** 2 * len(RELATIONS)
"""Number of scenes with different captions: 7,200."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The meaning of a scene: the first shape is above or left of the second."""

    first: Shape
    relation: str
    second: Shape


@dataclass(frozen=True)
class Shapes:
    """The built-in source; images stay in memory once drawn."""

    size: ShapesSize
    scenes: dict[str, Scene] = field(repr=False)
    train: tuple[Example, ...] = field(repr=False)
    test: tuple[Example, ...] = field(repr=False)
    validation: tuple[Example, ...] = field(default=(), repr=False)
    classes: tuple[str, ...] = KINDS
    drawn: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict, repr=False)
    root: None = None
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    def examples(self, split: str) -> tuple[Example, ...]:
        """Returns the examples of `train`, `validation` or `test`."""
        return of_split(split, train=self.train, test=self.test, validation=self.validation)

    def version(self) -> str:
        """Returns the digest of everything that the scenes depend on."""
        size = self.size.model_dump(mode="json", exclude=None if self.validation else {"validation"})
        return digest_of({"source": "shapes", "drawing": _DRAWING, **size})

    def left_out(self) -> dict[str, int]:
        """Returns nothing: every scene is an example."""
        return {}

    def image(self, example: Example) -> Image.Image:
        """Draws the scene."""
        pixels = self.drawn.get(example.id)
        if pixels is None:
            pixels = draw(self.scenes[example.id], size=self.size.image_size, seed=self._seed("image", example))
            self.drawn[example.id] = pixels
        return Image.fromarray(pixels)

    def waveform(self, example: Example) -> tuple[Waveform, int]:
        """Synthesises the scene's sound."""
        return sound(self.scenes[example.id], seed=self._seed("sound", example)), SAMPLE_RATE

    def series(self, example: Example, modality: str) -> Signal:
        """Raises DataError, because there are no sensors."""
        raise DataError(f"{example.id} has no {modality}", remedy="use the image, text and audio encoders")

    def _seed(self, what: str, example: Example) -> str:
        return derive(self.size.seed, "shapes", what, example.id)


def open_data(data: DataSpec) -> Shapes:
    """Opens the built-in source.

    Test and validation scenes differ in meaning from each other and from all training scenes. The number of validation
    scenes changes neither the training nor the test scenes.

    Args:
        data: Its `shapes` are the number and size of the scenes, and their seed.

    Raises:
        SpecError: Validation examples are asked for twice.
        DataError: There are not enough different scenes for `shapes.test` or `shapes.validation`.
    """
    size: ShapesSize = data.own["shapes"]
    if size.validation and data.validation_fraction:
        raise SpecError(
            "`data.shapes.validation` and `data.validation_fraction` both ask for validation examples", remedy="use one"
        )
    if size.test > NUM_MEANINGS // 2:
        raise DataError(
            f"data.shapes.test is {size.test}, but only {NUM_MEANINGS // 2} test scenes can have different captions",
            remedy=f"set data.shapes.test to {NUM_MEANINGS // 2} or less",
        )
    if size.validation and size.train + size.validation > NUM_MEANINGS - size.test:
        raise DataError(
            f"data.shapes has {size.train} training and {size.test} test scenes, which leave fewer than "
            f"{size.validation} of {NUM_MEANINGS} different scenes for validation",
            remedy="lower data.shapes.validation or data.shapes.train",
        )
    order = np.random.default_rng(as_int(derive(size.seed, "shapes", "meanings"))).permutation(NUM_MEANINGS)
    rest = order[size.test :]
    scenes = {f"test-{n:06d}": scene_of(int(order[n])) for n in range(size.test)}
    scenes |= {f"train-{n:06d}": scene_of(int(rest[n % len(rest)])) for n in range(size.train)}
    scenes |= {f"validation-{n:06d}": scene_of(int(rest[-1 - n])) for n in range(size.validation)}
    examples = tuple(_example(name, scene) for name, scene in scenes.items())
    first = size.test + size.train
    return Shapes(
        size=size,
        scenes=scenes,
        train=examples[size.test : first],
        test=examples[: size.test],
        validation=examples[first:],
    )


def scene_of(number: int) -> Scene:
    """Returns the scene of a number in [0, NUM_MEANINGS)."""
    number, relation = divmod(number, len(RELATIONS))
    first, second = divmod(number, len(SHAPES))
    return Scene(SHAPES[first], tuple(RELATIONS)[relation], SHAPES[second])


def captions_of(scene: Scene) -> tuple[str, ...]:
    """Describes a scene in five wordings of the same meaning, at most 63 bytes long; no other scene has any of them."""
    first, second = _words(scene.first), _words(scene.second)
    there, back = scene.relation, RELATIONS[scene.relation]
    return (
        f"a {first} {there} a {second}",
        f"a {second} {back} a {first}",
        f"a {first} is {there} a {second}",
        f"a {second} is {back} a {first}",
        f"a {first} and a {second} {back} it",
    )


def draw(scene: Scene, *, size: int, seed: str) -> npt.NDArray[np.uint8]:
    """Draws a scene, with random positions, brightness and noise.

    Args:
        scene: The scene to draw.
        size: Pixels per side.
        seed: Hex text.

    Returns:
        Pixels [size, size, 3].
    """
    rng = np.random.default_rng(as_int(seed))
    canvas = rng.uniform(20, 60) + rng.normal(0, 6, (size, size, 3))
    along, across = rng.uniform(-1, 1, 2), rng.uniform(-5, 5, 2)
    for n, shape in enumerate((scene.first, scene.second)):
        centre = (16 + across[n], (8, 24)[n] + along[n])
        x, y = centre if scene.relation == "above" else centre[::-1]
        cover = _cover(shape, x=x, y=y, size=size)[..., None]
        canvas += cover * (np.asarray(COLOURS[shape.colour]) * rng.uniform(0.85, 1.0) - canvas)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def sound(scene: Scene, *, seed: str) -> Waveform:
    """Synthesises a scene as two tones: pitch encodes kind, overtone colour, loudness size, and the pause relation.

    Args:
        scene: The scene.
        seed: Hex text; varies pitch and phase a little and adds noise.

    Returns:
        0.72 s of samples at 16 kHz.
    """
    rng = np.random.default_rng(as_int(seed))
    samples = rng.normal(0, 0.003, round(0.72 * SAMPLE_RATE))
    starts = (0.02, 0.32 if scene.relation == "above" else 0.42)
    for shape, start in zip((scene.first, scene.second), starts, strict=True):
        tone = _tone(shape, detune=rng.uniform(0.99, 1.01), phase=rng.uniform(0, 2 * np.pi))
        begin = round(start * SAMPLE_RATE)
        samples[begin : begin + len(tone)] += tone
    return samples.astype(np.float32)


def _tone(shape: Shape, *, detune: float, phase: float) -> npt.NDArray[np.float64]:
    time = np.arange(round(0.25 * SAMPLE_RATE)) / SAMPLE_RATE
    angle = 2 * np.pi * _PITCHES[KINDS.index(shape.kind)] * detune * time + phase
    overtone = tuple(COLOURS).index(shape.colour) + 2
    fade = np.clip(np.minimum(time, time[::-1]) / 0.01, 0, 1)
    return (0.45 if shape.size == "large" else 0.12) * fade * (np.sin(angle) + np.sin(overtone * angle)) / 2


def _cover(shape: Shape, *, x: float, y: float, size: int) -> npt.NDArray[np.float64]:
    """Returns the fraction of each pixel that a shape covers, by the distance to its edge; [size, size] in [0, 1]."""
    half = SIZES[shape.size]
    grid = (np.arange(size) + 0.5) * 32 / size
    dx, dy = np.abs(grid - x)[None, :], (grid - y)[:, None]
    radius = np.hypot(dx, dy)
    match shape.kind:
        case "circle":
            distance = radius - half
        case "square":
            distance = np.maximum(dx, np.abs(dy)) - half
        case "triangle":
            distance = np.maximum(dy - 0.9 * half, (2 * dx - dy - 0.9 * half) / np.sqrt(5))
        case "cross":
            far, near = np.maximum(dx, np.abs(dy)), np.minimum(dx, np.abs(dy))
            distance = np.maximum(far - half, near - 0.3 * half)
        case _:
            distance = np.abs(radius - 0.8 * half) - 0.22 * half
    return np.clip(0.5 - distance * size / 32, 0, 1)


def _example(name: str, scene: Scene) -> Example:
    first = scene.first
    fields = {"stem": name, "kind": first.kind, "colour": first.colour, "size": first.size, "relation": scene.relation}
    return Example(id=name, label=KINDS.index(first.kind), captions=captions_of(scene), fields=fields)


def _words(shape: Shape) -> str:
    return f"{shape.size} {shape.colour} {shape.kind}"
