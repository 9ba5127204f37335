"""Laws of parameters as a vector space, and of tensors' digests."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lwfed.params import DTYPES, add_scaled, by_unit, digest, norm, raw_bytes, select, spec_of, sub


def vectors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image.stem.w": torch.randn(3, 4, generator=generator, dtype=torch.float64),
        "image.blocks.0.w": torch.randn(5, generator=generator, dtype=torch.float64),
        "prediction.b": torch.randn((), generator=generator, dtype=torch.float64),
    }


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[n], b[n], rtol=1e-12, atol=1e-12) for n in a)


def test_laws_of_a_vector_space() -> None:
    a, b, c = vectors(1), vectors(2), vectors(3)
    zero = sub(a, a)
    assert norm(zero) == 0
    assert close(add_scaled(b, sub(a, b), scale=1.0), a)
    assert close(add_scaled(a, b, scale=1.0), add_scaled(b, a, scale=1.0))
    left = add_scaled(add_scaled(a, b, scale=1.0), c, scale=1.0)
    assert close(left, add_scaled(a, add_scaled(b, c, scale=1.0), scale=1.0))
    assert close(add_scaled(a, b, scale=0.0), a)
    twice = add_scaled(zero, add_scaled(a, b, scale=1.0), scale=2.5)
    assert close(twice, add_scaled(add_scaled(zero, a, scale=2.5), b, scale=2.5))


def test_laws_of_the_norm() -> None:
    a, b = vectors(1), vectors(2)
    zero = sub(a, a)
    assert norm(a) == pytest.approx(math.sqrt(sum(float(t.square().sum()) for t in a.values())))
    assert norm(add_scaled(zero, a, scale=-3.0)) == pytest.approx(3 * norm(a))
    assert norm(add_scaled(a, b, scale=1.0)) <= norm(a) + norm(b)
    assert norm(dict(reversed(a.items()))) == norm(a), "the order of names does not matter"
    many = {"image.stem.w": torch.full((10_000,), 1e-4)}
    assert norm(many) == pytest.approx(0.01, rel=1e-6), "summed in float64"


def test_inputs_are_left_alone() -> None:
    a, b = vectors(1), vectors(2)
    add_scaled(a, b, scale=2.0)
    sub(a, b)
    assert close(a, vectors(1)) and close(b, vectors(2))


def test_different_names_are_refused_by_name() -> None:
    a, b = vectors(1), vectors(2)
    del b["prediction.b"]
    for operate in (lambda: sub(a, b), lambda: add_scaled(b, a, scale=1.0)):
        with pytest.raises(ValueError, match=r"prediction\.b"):
            operate()


def test_selecting_and_grouping_by_unit() -> None:
    a = vectors(1)
    assert set(select(a, units={"image.stem", "prediction"})) == {"image.stem.w", "prediction.b"}
    grouped = by_unit(a)
    assert set(grouped) == {"image.stem", "image.blocks.0", "prediction"}
    assert {n: t for members in grouped.values() for n, t in members.items()} == a


def test_digests_depend_on_type_shape_and_values_and_on_nothing_else() -> None:
    base = torch.arange(6, dtype=torch.float32)
    others = [
        base.reshape(2, 3), base.reshape(3, 2), base.reshape(6, 1), base.to(torch.int32), base.view(torch.int32),
        base + 1e-7, torch.where(base == 0, -0.0, base), base[:5], base.double(), base.half(), base.bfloat16(),
    ]  # fmt: skip
    assert len({digest(tensor) for tensor in [base, *others]}) == len(others) + 1
    transposed = base.reshape(2, 3).T.contiguous()
    assert digest(base.reshape(2, 3).T) == digest(transposed), "not on how it lies in memory"
    assert digest(torch.stack([base, base])[1]) == digest(base.clone()) == digest(base)
    assert digest(base.clone().requires_grad_()) == digest(base)


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_every_type_has_bytes_and_a_digest(dtype: torch.dtype) -> None:
    tensor = torch.tensor([0, 1, 1]).to(dtype)
    assert bytes(raw_bytes(tensor)) == bytes(tensor.view(torch.uint8).numpy())
    assert DTYPES[spec_of(tensor).dtype] == dtype
    assert len(raw_bytes(tensor[0])) == tensor.element_size()
    assert digest(tensor) != digest(tensor[:2])


def test_a_tensor_without_items_has_a_digest() -> None:
    empty = torch.empty(0, 3)
    assert len(raw_bytes(empty)) == 0
    assert digest(empty) != digest(torch.empty(3, 0))
