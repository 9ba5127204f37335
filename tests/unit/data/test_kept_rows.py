"""Kept rows: sizes, error bounds, and values that no format has."""

from __future__ import annotations

import math

import pytest
import torch

from lwfed.data.kept_rows import decode, encode_rows, rounded
from lwfed.types.encoded import Codec
from lwfed.types.kept import row_bytes


def rows_of(count: int = 300, width: int = 24) -> torch.Tensor:
    """Rows of very different magnitudes, some with one value far above the others, and one of zeros."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, width, generator=generator)
    rows *= 10 ** (40 * torch.rand(count, 1, generator=generator) - 20)
    rows[::7, 3] *= 100
    rows[5] = 0
    return rows


@pytest.mark.parametrize(("codec", "nbytes"), [("fp32", 96), ("bf16", 48), ("int8", 28)])
def test_a_row_has_the_bytes_that_the_ledger_counts(codec: Codec, nbytes: int) -> None:
    stored = encode_rows(rows_of(), codec)
    assert stored[0].numel() * stored.element_size() == nbytes == row_bytes(24, codec)
    assert stored.is_contiguous() and decode(stored).dtype == torch.float32


def test_errors_are_bounded_value_by_value() -> None:
    rows = rows_of()
    assert torch.equal(decode(encode_rows(rows, "fp32")), rows)
    off = (decode(encode_rows(rows, "bf16")) - rows).abs()
    assert bool((off <= rows.abs() * 2.0**-8).all())
    off = (decode(encode_rows(rows, "int8")).double() - rows.double()).abs()
    half = rows.abs().amax(dim=1, keepdim=True).double() / 127 / 2
    assert bool((off <= half * (1 + 2.0**-16)).all())
    assert not decode(encode_rows(rows, "int8"))[5].any()


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_a_file_gives_what_rounding_in_place_gives(codec: Codec) -> None:
    tokens = rows_of().view(20, 15, 24)
    assert torch.equal(rounded(tokens, codec), decode(encode_rows(tokens.flatten(0, 1), codec)).view_as(tokens))
    assert not decode(torch.zeros_like(encode_rows(tokens[0], codec))).any(), "padding stays zero"


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(codec: Codec, odd: float) -> None:
    rows = rows_of()
    rows[9, 4] = odd
    found = decode(encode_rows(rows, codec))
    assert not found[9].isfinite().all() and found[:9].isfinite().all() and found[10:].isfinite().all()


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
def test_no_rows_are_none(codec: Codec) -> None:
    assert decode(encode_rows(torch.zeros(0, 24), codec)).shape == (0, 24)
