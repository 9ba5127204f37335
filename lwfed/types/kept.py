"""The rows of kept outputs: the bytes of a token's D values in each format, known without torch.

`fp32` has 4 bytes per value and `bf16` 2. `int8` has 1, and behind them the row's own scale as fp32, so that an input's
rows are one range of the file.
"""

from __future__ import annotations

from lwfed.types.encoded import Codec

SCALE_BYTES = 4
"""Bytes of a row's scale in int8."""


def row_bytes(width: int, codec: Codec) -> int:
    """Returns the bytes of one token's row.

    Args:
        width: D.
        codec: The format.
    """
    return {"fp32": 4 * width, "bf16": 2 * width, "int8": width + SCALE_BYTES}[codec]
