"""The costs of a model's units: counts that grow with the number of tokens, and the units' tensors.

1 multiply-add is 2 FLOPs; only matrix products, convolutions and attention are counted, as
`torch.utils.flop_counter.FlopCounterMode` does. "Saved" items are those that autograd keeps for the backward pass:
unique storages without parameters, buffers and the raw batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lwfed.types.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Count:
    """A count per sample that depends on the number of tokens: `constant + linear T + square T^2`."""

    constant: int = 0
    linear: int = 0
    square: int = 0

    def at(self, tokens: int) -> int:
        """Returns the count for a number of tokens."""
        return self.constant + tokens * (self.linear + tokens * self.square)

    def __add__(self, other: Count) -> Count:
        """Adds two counts."""
        return Count(self.constant + other.constant, self.linear + other.linear, self.square + other.square)


@dataclass(frozen=True, slots=True)
class UnitCost:
    """The costs of a unit, per sample.

    Attributes:
        forward: FLOPs of the forward pass.
        backward: FLOPs of the backward pass of a trained unit whose input needs a gradient too.
        input_gradient: Part of `backward` that is not needed at the cut, because the input needs no gradient there.
        saved: Items saved for the backward pass in the computation's type (fp32 or bf16).
        saved_fp32: Items saved in fp32 whatever the computation's type: residual stream, statistics.
        input_saved: Part of `saved_fp32` that is saved only for the input's gradient, and so not at the cut. Negative:
            items saved only at the cut, because elsewhere the unit before saves them, as its output.
        input: Items of its input, in fp32: all that is saved if the unit is recomputed. Blocks only.
        recomputed: FLOPs of recomputing it, up to the last value that the backward pass needs. Blocks only.
        copies: Items saved only if the type is not fp32: copies of an input that fp32 would share.
        fixed_bytes: Bytes saved once, whatever the batch: BatchNorm's statistics.
        weight_copies: Number of weights that a mixed-precision pass copies, whatever the batch.
    """

    forward: Count = Count()
    backward: Count = Count()
    input_gradient: Count = Count()
    saved: Count = Count()
    saved_fp32: Count = Count()
    input_saved: Count = Count()
    copies: Count = Count()
    input: Count = Count()
    recomputed: Count = Count()
    fixed_bytes: int = 0
    weight_copies: int = 0

    def backward_flops(self, tokens: int, *, at_cut: bool) -> int:
        """Returns the FLOPs of the backward pass, per sample."""
        return self.backward.at(tokens) - (self.input_gradient.at(tokens) if at_cut else 0)

    def saved_bytes(self, tokens: int, *, item_bytes: int = 4, at_cut: bool = False) -> int:
        """Returns the bytes saved for the backward pass, per sample.

        Args:
            tokens: T.
            item_bytes: 4 for fp32, 2 for bf16 (mixed precision).
            at_cut: Whether the input needs no gradient.
        """
        copies = self.copies.at(tokens) if item_bytes < 4 else 0
        in_fp32 = self.saved_fp32.at(tokens) - (self.input_saved.at(tokens) if at_cut else 0)
        return item_bytes * (self.saved.at(tokens) + copies) + 4 * in_fp32

    def fixed(self, *, item_bytes: int = 4) -> int:
        """Returns the bytes saved for the backward pass once, whatever the batch."""
        return self.fixed_bytes + (item_bytes * self.weight_copies if item_bytes < 4 else 0)


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: its tensors and its cost.

    Attributes:
        tensors: Tensor name without the unit's name -> type and shape.
        cost: Its cost.
        variants: `row`, `absorbed` -> its cost if its modality's last block is computed that way, for the last block
            and the units after it. A variant that is missing costs the same as `cost`.
    """

    tensors: Mapping[str, TensorSpec]
    cost: UnitCost = UnitCost()
    variants: Mapping[str, UnitCost] = field(default_factory=dict)

    def cost_as(self, how: str) -> UnitCost:
        """Returns its cost if the last block is computed as `full`, `row` or `absorbed`."""
        return self.variants.get(how, self.cost)

    @property
    def num_params(self) -> int:
        """Number of parameters, without buffers."""
        return sum(spec.numel for spec in self.tensors.values() if not spec.buffer)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in memory, buffers included."""
        return sum(spec.nbytes for spec in self.tensors.values())

    def named(self, name: str) -> dict[str, TensorSpec]:
        """Returns the tensors by their canonical names, for a unit called `name`."""
        return {f"{name}.{suffix}": spec for suffix, spec in self.tensors.items()}


@dataclass(frozen=True, slots=True)
class Architecture:
    """An encoder without its weights.

    Attributes:
        name: A short name.
        depth: Number of blocks.
        width: D, after the last block.
        tokens: T after the last block: fixed by the input's size, or a text's maximum.
        units: Unit name without the modality (`stem`, `blocks.0` ..., `norm`) -> unit.
        pooled: Items saved by reading the feature from the last state, per sample.
        pooled_row: The same if the last state is one token.
    """

    name: str
    depth: int
    width: int
    tokens: int
    units: Mapping[str, Unit]
    pooled: Count = field(default=Count())
    pooled_row: Count = field(default=Count())

    def items_after(self, depth: int, *, tokens: int) -> int:
        """Returns the items of an example's state after a number of blocks: the input of the next one, if any."""
        following = self.units.get(f"blocks.{depth}")
        return tokens * self.width if following is None else following.cost.input.at(tokens)

    def tensors(self, modality: str) -> dict[str, TensorSpec]:
        """Returns all tensors by their canonical names."""
        tensors: dict[str, TensorSpec] = {}
        for suffix, unit in self.units.items():
            tensors |= unit.named(f"{modality}.{suffix}")
        return tensors

    def to_values(self) -> dict[str, Any]:
        """Returns a JSON value, for the cache of counted architectures."""
        return {
            "name": self.name,
            "depth": self.depth,
            "width": self.width,
            "tokens": self.tokens,
            "pooled": _count_values(self.pooled),
            "pooled_row": _count_values(self.pooled_row),
            "units": {name: _unit_values(unit) for name, unit in self.units.items()},
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Architecture:
        """Reads values written by `to_values`, or counted by `lwfed.models.inspect`."""
        return cls(
            name=values["name"],
            depth=values["depth"],
            width=values["width"],
            tokens=values["tokens"],
            pooled=Count(*values["pooled"]),
            pooled_row=Count(*values["pooled_row"]),
            units={name: _unit_of(unit) for name, unit in values["units"].items()},
        )


_COUNTS = (
    "forward", "backward", "input_gradient", "saved", "saved_fp32", "input_saved", "copies", "input", "recomputed",
)  # fmt: skip
_NUMBERS = ("fixed_bytes", "weight_copies")


def _count_values(count: Count) -> list[int]:
    return [count.constant, count.linear, count.square]


def _unit_values(unit: Unit) -> dict[str, Any]:
    return {
        "tensors": {name: [spec.dtype, list(spec.shape), spec.buffer] for name, spec in unit.tensors.items()},
        **_cost_values(unit.cost),
        "variants": {how: _cost_values(cost) for how, cost in unit.variants.items()},
    }


def _cost_values(cost: UnitCost) -> dict[str, Any]:
    counts = {name: _count_values(getattr(cost, name)) for name in _COUNTS}
    return counts | {name: getattr(cost, name) for name in _NUMBERS}


def _unit_of(values: Mapping[str, Any]) -> Unit:
    return Unit(
        tensors={
            name: TensorSpec(shape=tuple(shape), dtype=dtype, buffer=buffer)
            for name, (dtype, shape, buffer) in values["tensors"].items()
        },
        cost=_cost_of(values),
        variants={how: _cost_of(cost) for how, cost in values["variants"].items()},
    )


def _cost_of(values: Mapping[str, Any]) -> UnitCost:
    fields: dict[str, Any] = {name: Count(*values.get(name, ())) for name in _COUNTS}
    return UnitCost(**fields, **{name: values[name] for name in _NUMBERS})
