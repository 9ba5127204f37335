"""What a unit of a model costs: counts that grow with the number of tokens, and the tensors it is made of.

1 multiply-add is 2 FLOPs; only matrix products, convolutions and attention are counted, as
`torch.utils.flop_counter.FlopCounterMode` does. "Saved" is what autograd keeps for the backward pass: unique storages
without parameters, buffers and the raw batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lwfed.types.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Count:
    """A count a sample that depends on the number of tokens: `constant + linear T + square T^2`."""

    constant: int = 0
    linear: int = 0
    square: int = 0

    def at(self, tokens: int) -> int:
        """Gives the count for a number of tokens."""
        return self.constant + tokens * (self.linear + tokens * self.square)

    def __add__(self, other: Count) -> Count:
        """Adds two counts."""
        return Count(self.constant + other.constant, self.linear + other.linear, self.square + other.square)


@dataclass(frozen=True, slots=True)
class UnitCost:
    """What a unit costs, a sample.

    Attributes:
        forward: FLOPs of the forward pass.
        backward: FLOPs of the backward pass of a trained unit whose input needs a gradient too.
        input_gradient: Part of `backward` that falls away where the input needs none: at the cut.
        saved: Items kept for the backward pass in the type of the computation (fp32, or bf16).
        saved_fp32: Items kept in fp32 whatever the computation's type: residual stream, statistics.
        input: Items of its input, which is all that a pass keeps that computes the unit again; fp32. Blocks only.
        recomputed: FLOPs of computing it again, up to the last thing that the backward pass needs. Blocks only.
        copies: Items kept only when the type is not fp32: copies of an input that fp32 would share.
        fixed_bytes: Bytes kept once, whatever the batch: BatchNorm's statistics.
        weight_copies: Weights that a mixed-precision pass keeps a copy of, whatever the batch.
    """

    forward: Count = Count()
    backward: Count = Count()
    input_gradient: Count = Count()
    saved: Count = Count()
    saved_fp32: Count = Count()
    copies: Count = Count()
    input: Count = Count()
    recomputed: Count = Count()
    fixed_bytes: int = 0
    weight_copies: int = 0

    def backward_flops(self, tokens: int, *, at_cut: bool) -> int:
        """FLOPs of the backward pass, a sample."""
        return self.backward.at(tokens) - (self.input_gradient.at(tokens) if at_cut else 0)

    def saved_bytes(self, tokens: int, *, item_bytes: int = 4) -> int:
        """Bytes kept for the backward pass, a sample.

        Args:
            tokens: T.
            item_bytes: 4 for fp32, 2 for bf16 (mixed precision).
        """
        copies = self.copies.at(tokens) if item_bytes < 4 else 0
        return item_bytes * (self.saved.at(tokens) + copies) + 4 * self.saved_fp32.at(tokens)

    def fixed(self, *, item_bytes: int = 4) -> int:
        """Bytes kept for the backward pass once, whatever the batch."""
        return self.fixed_bytes + (item_bytes * self.weight_copies if item_bytes < 4 else 0)


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: its tensors and its cost.

    Attributes:
        tensors: Tensor name after the unit's own name -> type and shape.
        cost: What it costs.
    """

    tensors: Mapping[str, TensorSpec]
    cost: UnitCost = UnitCost()

    @property
    def num_params(self) -> int:
        """Number of parameters, buffers left out."""
        return sum(spec.numel for spec in self.tensors.values() if not spec.buffer)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in memory, buffers included."""
        return sum(spec.nbytes for spec in self.tensors.values())

    def named(self, name: str) -> dict[str, TensorSpec]:
        """Gives the tensors by their canonical names, for a unit called `name`."""
        return {f"{name}.{suffix}": spec for suffix, spec in self.tensors.items()}


@dataclass(frozen=True, slots=True)
class Architecture:
    """An encoder without its weights.

    Attributes:
        name: What it is, in a word.
        depth: Number of blocks.
        width: D.
        tokens: T: fixed by the input's size, or the most that a text may have.
        units: Unit name after the modality (`stem`, `blocks.0` ..., `norm`) -> unit.
        pooled: Items that reading the feature off the last state keeps, a sample, beyond the feature itself.
    """

    name: str
    depth: int
    width: int
    tokens: int
    units: Mapping[str, Unit]
    pooled: Count = field(default=Count())

    def tensors(self, modality: str) -> dict[str, TensorSpec]:
        """Gives all tensors by their canonical names."""
        tensors: dict[str, TensorSpec] = {}
        for suffix, unit in self.units.items():
            tensors |= unit.named(f"{modality}.{suffix}")
        return tensors

    def to_values(self) -> dict[str, Any]:
        """Gives a JSON value, for the cache of counted architectures."""
        return {
            "name": self.name,
            "depth": self.depth,
            "width": self.width,
            "tokens": self.tokens,
            "pooled": _count_values(self.pooled),
            "units": {name: _unit_values(unit) for name, unit in self.units.items()},
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Architecture:
        """Reads what `to_values` wrote, or what `lwfed.models.inspect` counted."""
        return cls(
            name=values["name"],
            depth=values["depth"],
            width=values["width"],
            tokens=values["tokens"],
            pooled=Count(*values.get("pooled", ())),
            units={name: _unit_of(unit) for name, unit in values["units"].items()},
        )


_COUNTS = ("forward", "backward", "input_gradient", "saved", "saved_fp32", "copies", "input", "recomputed")
_NUMBERS = ("fixed_bytes", "weight_copies")


def _count_values(count: Count) -> list[int]:
    return [count.constant, count.linear, count.square]


def _unit_values(unit: Unit) -> dict[str, Any]:
    return {
        "tensors": {name: [spec.dtype, list(spec.shape), spec.buffer] for name, spec in unit.tensors.items()},
        **{name: _count_values(getattr(unit.cost, name)) for name in _COUNTS},
        **{name: getattr(unit.cost, name) for name in _NUMBERS},
    }


def _unit_of(values: Mapping[str, Any]) -> Unit:
    return Unit(
        tensors={
            name: TensorSpec(shape=tuple(shape), dtype=dtype, buffer=buffer)
            for name, (dtype, shape, buffer) in values["tensors"].items()
        },
        cost=UnitCost(
            forward=Count(*values["forward"]),
            backward=Count(*values["backward"]),
            input_gradient=Count(*values["input_gradient"]),
            saved=Count(*values["saved"]),
            saved_fp32=Count(*values["saved_fp32"]),
            copies=Count(*values["copies"]),
            input=Count(*values["input"]),
            recomputed=Count(*values["recomputed"]),
            fixed_bytes=values["fixed_bytes"],
            weight_copies=values["weight_copies"],
        ),
    )
