"""Opens the data that a spec names."""

from __future__ import annotations

from lwfed.data.folders import data_root
from lwfed.data.protocol import Source
from lwfed.spec.data import DataSpec


def open_source(data: DataSpec) -> Source:
    """Opens the data a spec names, and looks for what is missing before any work is done.

    Args:
        data: Which data, and where they lie.

    Returns:
        The source.

    Raises:
        DataError: A folder, a file or the partner of a file is missing; it says which, and what to do.
    """
    if data.source == "shapes":
        from lwfed.data.sources.shapes import open_shapes

        return open_shapes(data.shapes)
    root = data_root(data)
    if data.source == "coco":
        from lwfed.data.sources.coco import open_coco

        return open_coco(root, missing_ok=data.on_bad_example == "skip")
    from lwfed.data.sources.advance import open_advance

    return open_advance(root, test_fraction=data.test_fraction, missing_ok=data.on_bad_example == "skip")
