"""Pictures as people see them: upright, transparency on white, and values of a known range scaled to 8 bits."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from lwfed.types.errors import DataError

ORIENTATION = 0x0112
"""Number of the EXIF tag."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _WHITE_IS_ZERO = 258, 262, 339, 0
_UNSIGNED, _FLOAT = 1, 3
_KINDS = {_UNSIGNED: "integers", 2: "signed integers", _FLOAT: "floats"}
_SCALED = "save it with 8 or 16 bits, or as floats in [0, 1]"
_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def decode_image(file: BinaryIO) -> Image.Image:
    """Decodes a picture in any format that Pillow knows.

    Args:
        file: The picture; it stays open.

    Returns:
        The picture as people see it, RGB; see `as_seen`.

    Raises:
        DataError: It is larger than Pillow's limit, or its values have no known range; the problem lacks its subject.
        Exception: Whatever Pillow's decoders raise for a damaged file.
    """
    if _PILLOW not in warnings.filters:  # for all threads: a broken EXIF block is no reason to print a line
        warnings.filterwarnings("ignore", module=r"PIL\.")
    with Image.open(file) as image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise DataError(f"has {image.width} x {image.height} pixels, more than {limit}", remedy="make it smaller")
        image.load()
        return as_seen(image)


def as_seen(image: Image.Image) -> Image.Image:
    """Converts a picture to RGB as a viewer shows it.

    The EXIF orientation is applied, and transparency is composed on white. 16-bit values are scaled by 65535, floats
    are taken if they lie within [0, 1].

    Args:
        image: A picture of any mode.

    Raises:
        DataError: The values are of another type, so that it is unknown which of them is white; the problem lacks its
            subject.
    """
    turn = _TURNS.get(_orientation(image))
    _refuse_unknown_range(image)
    if image.mode.startswith("I") or image.mode == "F":
        flat = Image.fromarray(_grey(image)).convert("RGB")
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        flat = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    else:
        flat = image.convert("RGB")
    seen = flat if turn is None else flat.transpose(turn)
    seen.info.clear()  # an orientation that is applied twice would turn the picture again
    return seen


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # EXIF blocks are often damaged; viewers then show the picture as it is stored
        return None


def _refuse_unknown_range(image: Image.Image) -> None:
    """Raises DataError if the values are neither of 8 or fewer bits, nor of 16, nor floats."""
    tags = getattr(image, "tag_v2", {})  # TIFF's; its modes hide signs, 12 bits and inverted scales
    bits, kinds = _sequence(tags.get(_BITS, 32)), _sequence(tags.get(_SAMPLE_FORMAT, _UNSIGNED))
    wide = image.mode == "I" and image.format != "PPM"  # Pillow scales PGM's values to 16 bits
    if wide or any(kind not in (_UNSIGNED, _FLOAT) for kind in kinds) or (12 in bits and _FLOAT not in kinds):
        raise DataError(f"has {bits[0]}-bit {_KINDS.get(kinds[0], 'values')} of an unknown range", remedy=_SCALED)
    if image.mode not in ("1", "L") and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise DataError(f"has {bits[0]}-bit values with white as 0", remedy=f"{_SCALED}, with black as 0")
    hidden = image.info.get("transparency")
    if isinstance(hidden, tuple) and max(hidden) > 255:
        raise DataError("has a transparent colour of 16 bits", remedy="save it with 8 bits, or with an alpha channel")


def _grey(image: Image.Image) -> np.ndarray:
    """Converts 16-bit values or floats to bytes [H, W]; a value that is transparent becomes white."""
    values = np.asarray(image)
    if image.mode == "F":
        if not ((values >= 0) & (values <= 1)).all():
            found = f"{values.min():g} to {values.max():g}"
            raise DataError(f"has floats from {found}, not within [0, 1]", remedy="scale them to [0, 1]")
        return np.rint(values * 255).astype(np.uint8)
    grey = np.rint(values / 65535 * 255).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return grey


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple) and value else (value,)
