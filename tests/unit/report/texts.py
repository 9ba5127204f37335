"""Where the texts of a figure stand, in the widest face that browsers fall back to."""

from __future__ import annotations

import re
from itertools import combinations
from xml.etree import ElementTree

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath


def check_texts(element: str) -> None:
    """Asserts that a figure's texts lie inside it, and apart."""
    root = ElementTree.fromstring(element)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    boxes = []
    for text in root.iter("text"):
        style, content = text.attrib["style"], text.text or ""
        at = re.findall(r"[-\d.]+", text.get("transform", "")) or [text.attrib["x"], text.attrib["y"]]
        x, y, size = float(at[0]), float(at[1]), float(re.findall(r"font-size: ([\d.]+)", style)[0])
        weight = "bold" if "font-weight" in style else "normal"
        wide = (
            TextPath((0, 0), content, size=size, prop=FontProperties(family="DejaVu Sans", weight=weight))
            .get_extents()
            .x1
        )
        left = x - wide * (0.5 if "middle" in style else 1 if "anchor: end" in style else 0)
        assert left >= 0 and left + wide <= width and y >= 0.7 * size and y <= height, content
        boxes.append((content, left, y - 0.6 * size, left + wide, y))
    for one, other in combinations(boxes, 2):
        apart = one[1] >= other[3] or other[1] >= one[3] or one[2] >= other[4] or other[2] >= one[4]
        assert apart, f"{one[0]} / {other[0]}"
