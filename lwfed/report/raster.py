"""Figures as pixels: the few shapes that `svg` writes, drawn with Pillow in the light theme, for papers and slides."""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from lwfed.report.svg import FONT_PX, LIGHT, STYLE

FINER = 2
"""Times finer than asked for that shapes are drawn, and then made smaller: smooth edges."""
Dot = tuple[float, float]
Rules = tuple[tuple[frozenset[str], tuple[tuple[str, str], ...]], ...]


def png(svg: str, *, scale: float = 2.0) -> bytes:
    """Draws a figure.

    Args:
        svg: An SVG document or element that `svg.figure` made.
        scale: Pixels a unit of its view box.

    Returns:
        A PNG file.
    """
    root = ElementTree.fromstring(svg)
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    factor = scale * FINER
    image = Image.new("RGB", (round(width * factor), round(height * factor)), _variables()["card"])
    _draw(root, image, factor=factor, at=(0.0, 0.0))
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BOX)
    data = io.BytesIO()
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    return data.getvalue()


def _draw(element: ElementTree.Element, image: Image.Image, *, factor: float, at: Dot) -> None:
    for child in element:
        name = child.tag.rpartition("}")[2]
        if name in ("title", "style"):
            continue
        if name == "g":
            moved = re.fullmatch(r"translate\(([-\d.]+) ([-\d.]+)\)", child.get("transform", "translate(0 0)"))
            assert moved is not None
            _draw(child, image, factor=factor, at=(at[0] + float(moved[1]), at[1] + float(moved[2])))
            continue
        look = _look(frozenset((child.get("class") or "").split()))
        if name == "text":
            _text(child, image, look, factor=factor, at=at)
            continue
        for dots, closed in _outlines(name, child):
            placed = [((x + at[0]) * factor, (y + at[1]) * factor) for x, y in dots]
            _shape(image, placed, closed=closed, look=look, factor=factor)


def _outlines(name: str, element: ElementTree.Element) -> list[tuple[list[Dot], bool]]:
    """Gives a shape as polygons and lines."""

    def number(key: str) -> float:
        return float(element.get(key, "0"))

    if name == "rect":
        x, y, w, h = (number(key) for key in ("x", "y", "width", "height"))
        return [([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], True)]
    if name == "circle":
        x, y, r = (number(key) for key in ("cx", "cy", "r"))
        turns = [2 * math.pi * k / 48 for k in range(48)]
        return [([(x + r * math.cos(turn), y + r * math.sin(turn)) for turn in turns], True)]
    if name == "path":
        return _path(element.get("d", ""))
    raise ValueError(f"the shape {name} cannot be drawn")


def _path(text: str) -> list[tuple[list[Dot], bool]]:
    found: list[tuple[list[Dot], bool]] = []
    dots: list[Dot] = []
    for order, content in re.findall(r"([MmLlZz])([^MmLlZz]*)", text):
        if order in "Zz":
            found.append((dots, True))
            dots = []
            continue
        x, y = (float(value) for value in re.findall(r"-?[\d.]+", content))
        if order in "ml" and dots:
            x, y = dots[-1][0] + x, dots[-1][1] + y
        if order in "Mm" and dots:
            found.append((dots, False))
            dots = []
        dots.append((x, y))
    return [*found, (dots, False)] if dots else found


def _shape(image: Image.Image, dots: list[Dot], *, closed: bool, look: dict[str, str], factor: float) -> None:
    canvas = ImageDraw.Draw(image)
    fill = _colour(look.get("fill", "none"))
    if closed and fill is not None:
        share = float(look.get("opacity", "1")) * float(look.get("fill-opacity", "1"))
        if share < 1:
            mask = Image.new("L", image.size, 0)
            ImageDraw.Draw(mask).polygon(dots, fill=round(255 * share))
            image.paste(fill, mask=mask)
        else:
            canvas.polygon(dots, fill=fill)
    stroke = _colour(look.get("stroke", "none"))
    if stroke is None:
        return
    width = max(1, round(float(look.get("stroke-width", "1").removesuffix("px")) * factor))
    way = [*dots, dots[0], dots[1]] if closed else dots
    dashes = [float(value) * factor for value in re.findall(r"[\d.]+", look.get("stroke-dasharray", ""))]
    for piece in _dashed(way, dashes) if dashes else [way]:
        canvas.line(piece, fill=stroke, width=width, joint="curve")


def _dashed(way: Sequence[Dot], dashes: Sequence[float]) -> list[list[Dot]]:
    """Cuts a line into its dashes."""
    pieces: list[list[Dot]] = []
    index, left, piece = 0, dashes[0], [way[0]]
    for start, end in itertools.pairwise(way):
        here, length = start, math.dist(start, end)
        while length > left:
            share = left / length
            here = (here[0] + (end[0] - here[0]) * share, here[1] + (end[1] - here[1]) * share)
            length -= left
            if index % 2 == 0:
                pieces.append([*piece, here])
            index += 1
            left, piece = dashes[index % len(dashes)], [here]
        left -= length
        piece.append(end)
    if index % 2 == 0 and len(piece) > 1:
        pieces.append(piece)
    return pieces


def _text(
    element: ElementTree.Element, image: Image.Image, look: dict[str, str], *, factor: float, at: Dot
) -> None:  # fmt: skip
    bold = look.get("font-weight", "400") >= "600"
    size = float(look.get("font-size", f"{FONT_PX}px").removesuffix("px"))
    place = ((float(element.get("x", "0")) + at[0]) * factor, (float(element.get("y", "0")) + at[1]) * factor)
    halo = look.get("paint-order") == "stroke"
    ImageDraw.Draw(image).text(
        place,
        element.text or "",
        font=_font(size * factor, bold=bold),
        anchor={"start": "ls", "middle": "ms", "end": "rs"}[element.get("text-anchor", "start")],
        fill=_colour(look.get("fill", "var(--soft)")),
        stroke_width=round(2 * factor) if halo else 0,
        stroke_fill=_variables()["card"] if halo else None,
    )


@lru_cache(maxsize=64)
def _font(size: float, *, bold: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Gives DejaVu Sans, which Matplotlib brings along, else Pillow's own."""
    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "mpl-data/fonts/ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


@lru_cache(maxsize=256)
def _look(classes: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for needed, values in _rules():
        if needed <= classes:
            found |= dict(values)
    return found


@lru_cache(maxsize=1)
def _rules() -> Rules:
    """Reads what the classes look like from the one style sheet."""
    return tuple(
        (
            frozenset(selector.split(".")),
            tuple((part.partition(":")[0], part.partition(":")[2]) for part in body.split(";") if part),
        )
        for selector, body in re.findall(r"svg \.([\w.-]+)\{([^}]*)\}", STYLE)
    )


@lru_cache(maxsize=1)
def _variables() -> dict[str, str]:
    return dict(re.findall(r"--([\w]+):(#\w+)", LIGHT))


def _colour(value: str) -> tuple[int, ...] | None:
    if value == "none":
        return None
    named = re.fullmatch(r"var\(--(\w+)\)", value)
    return ImageColor.getrgb(_variables()[named[1]] if named else value)
