"""Laws of the codecs: on average nothing is added, no item is off by more than a step, the shape says the length."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lwfed.federated.codecs import decode, encode, generator_of
from lwfed.params import spec_of
from lwfed.types.encoded import Codec, encoded, encoded_specs, is_encoded, num_rows
from lwfed.types.errors import CheckpointError, DivergedError
from lwfed.types.tensors import TensorSpec

CODECS: tuple[Codec, ...] = ("bf16", "int8")
SHAPES = [
    (), (1,), (7,), (1000,), (3, 5), (5, 1), (1, 9), (1, 17, 6), (1, 1, 12), (8, 3, 5, 5), (4, 1, 1, 1), (2, 3, 1, 4),
    (0,), (0, 5), (5, 0), (1, 0, 3), (1100, 1000),
]  # fmt: skip


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Items of very different size, row by row."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(shape, generator=generator)
    return rows * torch.exp(4 * torch.randn((*shape[:1], *(1 for _ in shape[1:])), generator=generator))


def passed(tensor: Tensor, codec: Codec, seed: str = "ab" * 32) -> tuple[dict[str, Tensor], Tensor]:
    """What is sent, and what it decodes to."""
    sent = encode("w", tensor, codec=codec, generator=generator_of(seed))
    return sent, decode("w", sent)


def steps_of(tensor: Tensor, sent: dict[str, Tensor], codec: Codec) -> Tensor:
    """The largest error that each item may have."""
    if codec == "int8":
        scale = sent["w:scale"].double()
        return (scale.unsqueeze(1) + torch.zeros(len(scale), tensor.numel() // max(len(scale), 1))).reshape(
            tensor.shape
        )
    exponent = torch.frexp(tensor.double()).exponent - 1
    return torch.ldexp(torch.ones(tensor.shape).double(), exponent.clamp(min=-126) - 7)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_comes_back_within_a_step_and_as_long_as_its_shape_says(
    shape: tuple[int, ...], codec: Codec
) -> None:
    tensor = drawn(shape)
    sent, back = passed(tensor, codec)
    assert {name: spec_of(item) for name, item in sent.items()} == encoded("w", spec_of(tensor), codec)
    assert back.shape == tensor.shape and back.dtype == torch.float32
    off = (back.double() - tensor.double()).abs()
    assert bool((off <= steps_of(tensor, sent, codec)).all())
    if tensor.numel() > 5:
        assert bool((off > 0).any()), "it does round"


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((), 1), ((6,), 1), ((4, 6), 4), ((1, 17, 6), 17), ((1, 1, 6), 1), ((8, 3, 5, 5), 8), ((5, 1), 1), ((3, 0), 0)],
)
def test_a_row_is_an_output(shape: tuple[int, ...], rows: int) -> None:
    assert num_rows(shape) == rows
    assert encoded("w", TensorSpec(shape), "int8")["w:scale"] == TensorSpec((rows,))


def test_what_is_no_fp32_parameter_travels_as_it_is() -> None:
    specs = {
        "w": TensorSpec((2, 3)),
        "mean": TensorSpec((3,), buffer=True),
        "count": TensorSpec((), "I64", buffer=True),
    }
    assert set(encoded_specs(specs, "int8")) == {"w", "w:scale", "mean", "count"}
    assert encoded_specs(specs, "bf16")["mean"] == TensorSpec((3,)), "and never says that it is a buffer, as files do"
    assert encoded_specs(specs, "bf16")["w"].dtype == "BF16"
    assert set(encoded_specs(specs, "fp32")) == set(specs)
    assert not is_encoded(TensorSpec((2,), "F64"), "int8") and not is_encoded(TensorSpec((2,)), "fp32")


@pytest.mark.parametrize("codec", CODECS)
def test_the_mean_of_many_roundings_is_the_item(codec: Codec) -> None:
    """Each item 4,000 times: the mean is within five of its own standard errors, unlike rounding to nearest."""
    item = torch.tensor([1.0, 0.3, -0.3, 0.0101, -0.77, 1e-3, -1e-4, 0.0])
    trials = 4000
    tensor = item.repeat(trials, 1)
    sent, back = passed(tensor, codec)
    step = steps_of(tensor, sent, codec)[0]
    error = back.double().mean(0) - item.double()
    assert bool((error.abs() <= 5 * step / 2 / math.sqrt(trials)).all()), error / step
    nearest = item.bfloat16().double() if codec == "bf16" else (item / step).round().double() * step
    assert bool(((nearest - item.double()).abs() > 5 * step / 2 / math.sqrt(trials)).any()), "the bound can fail"


@pytest.mark.parametrize("codec", CODECS)
def test_the_chance_of_rounding_up_is_the_fraction(codec: Codec) -> None:
    """A quarter of a step is rounded up a quarter of the time, and away from zero on both sides of it."""
    value = 5.25 if codec == "int8" else 1 + 2.0**-9
    row = torch.tensor([127.0, value, -value])
    _, back = passed(row.repeat(8000, 1), codec)
    low, high = (5.0, 6.0) if codec == "int8" else (1.0, 1 + 2.0**-7)
    for column, sign in ((1, 1), (2, -1)):
        assert set(back[:, column].tolist()) == {sign * low, sign * high}
        share = float((back[:, column] == sign * high).float().mean())
        assert share == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 8000))


@pytest.mark.parametrize("codec", CODECS)
def test_what_can_be_said_is_said_exactly(codec: Codec) -> None:
    grid = torch.arange(-127.0, 128.0).repeat(3, 1) * torch.tensor([[1.0], [2.0**-20], [2.0**60]])
    assert torch.equal(passed(grid, codec)[1], grid)
    zeros = torch.zeros(4, 6)
    assert torch.equal(passed(zeros, codec)[1], zeros), "a row of zeros divides nothing by zero"
    mixed = torch.stack([torch.zeros(5), torch.full((5,), -127.0)])
    assert torch.equal(passed(mixed, codec)[1], mixed)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [1e-45, 1e-42, 1.2e-38, 1e-20, 1e30, 1.6e38])
def test_the_smallest_and_the_largest_stay_finite_and_within_a_step(size: float, codec: Codec) -> None:
    tensor = torch.tensor([[size, -size, size / 3, 0.0], [1.0, size / 7, 0.5, -1.0]]).clamp(max=1.6e38)
    sent, back = passed(tensor, codec)
    assert bool(back.isfinite().all())
    assert bool(((back.double() - tensor.double()).abs() <= steps_of(tensor, sent, codec)).all())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_what_is_not_finite_is_refused_by_name(value: float, codec: Codec) -> None:
    tensor = torch.ones(4, 5)
    tensor[2, 3] = value
    with pytest.raises(DivergedError, match=r"image\.norm\.weight is not finite"):
        encode("image.norm.weight", tensor, codec=codec, generator=generator_of("00" * 32))


@pytest.mark.parametrize("codec", CODECS)
def test_rounding_follows_the_seed_alone(codec: Codec) -> None:
    tensor = drawn((1100, 1000))  # more than one chunk
    torch.manual_seed(1)
    first = passed(tensor, codec, "11" * 32)[1]
    torch.manual_seed(2)
    torch.rand(3)
    assert torch.equal(passed(tensor, codec, "11" * 32)[1], first)
    assert torch.equal(passed(tensor.t().contiguous().t(), codec, "11" * 32)[1], first), "nor on how it lies in memory"
    assert not torch.equal(passed(tensor, codec, "12" * 32)[1], first)


def test_scales_that_are_missing_or_too_few_are_noticed() -> None:
    sent = encode("w", drawn((3, 5)), codec="int8", generator=generator_of("00" * 32))
    for scale in (None, sent["w:scale"][:2]):
        broken = {"w": sent["w"]} | ({} if scale is None else {"w:scale": scale})
        with pytest.raises(CheckpointError, match="w was sent without its scales"):
            decode("w", broken)
