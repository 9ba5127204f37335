"""Aggregators: they combine a round's updates into one, a tensor at a time, and can wrap one another.

An aggregator takes a state and returns a state: `init`, `add` for each client in sorted order, `finish`. So it streams:
memory does not grow with the number of clients, and the result does not depend on arrival order. A rule that must know
all updates before it begins (their norms, their distances) computes that in `survey`. An aggregator that changes
updates, such as clipping, wraps the one that averages them, as the factories of TensorFlow Federated do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lwfed.params import DTYPES
from lwfed.types.encoded import Codec, is_encoded
from lwfed.types.section import Section
from lwfed.types.tensors import TensorSpec, unit_of


@dataclass(frozen=True)
class Update:
    """One client's update in a round.

    Attributes:
        client: The client's id.
        weight: w_n, divided by the greatest common factor of the round's weights.
        tensor: Returns the tensor of a name as sent, decoded: theta_n, or delta_n if `GlobalModel.sent_as_change`.
        by_unit: Unit -> its weight, for the units that the client sent; None: all, with `weight`.
    """

    client: str
    weight: int
    tensor: Callable[[str], Tensor]
    by_unit: Mapping[str, int] | None = None

    def weight_of(self, name: str) -> int:
        """Returns the weight of a tensor; 0 if the client did not send it."""
        return self.weight if self.by_unit is None else self.by_unit.get(unit_of(name), 0)


@dataclass(frozen=True)
class GlobalModel:
    """The model that a round's clients started from, and the encoding of their updates.

    Attributes:
        specs: Trained tensor -> its type and shape.
        codec: The codec of the clients' updates.
        start: Returns the theta of a name, on the CPU.
    """

    specs: Mapping[str, TensorSpec]
    codec: Codec
    start: Callable[[str], Tensor]

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Sorted names of the floating tensors that are not buffers; only these have a change delta_n."""
        floating = {name for name, spec in self.specs.items() if DTYPES[spec.dtype].is_floating_point}
        return tuple(sorted(name for name in floating if not self.specs[name].buffer))

    def sent_as_change(self, name: str) -> bool:
        """Returns whether clients send delta_n of a tensor instead of theta_n."""
        return is_encoded(self.specs[name], self.codec)

    def change(self, name: str, sent: Tensor) -> Tensor:
        """Returns delta_n for a parameter's tensor as sent by a client, as a new tensor in float64."""
        change = sent.double()
        return change.clone() if self.sent_as_change(name) else change - self.start(name).double()

    def as_sent(self, name: str, change: Tensor) -> Tensor:
        """Returns the tensor that a client with the given change (float64) would have sent, in float64."""
        return change if self.sent_as_change(name) else change.add_(self.start(name))

    def value(self, name: str, aggregate: Tensor) -> Tensor:
        """Returns the new global tensor for an aggregate of sent tensors, rounded once to its type.

        Args:
            name: The tensor.
            aggregate: The result of `Aggregator.finish`; changed in place.
        """
        if self.sent_as_change(name):
            aggregate = aggregate.add_(self.start(name))
        return aggregate.to(DTYPES[self.specs[name].dtype])


@runtime_checkable
class Aggregator(Protocol):
    """Combines many updates into one. The state's type is up to the implementation, which may change it in place."""

    @property
    def needs_all(self) -> bool:
        """Whether the first `add` must wait for all updates and for `survey`.

        If false, updates may be added as they arrive, without `survey`, and another instance may finish the sum.
        """

    @property
    def one_by_one(self) -> bool:
        """Whether updates may also be surveyed and added one after another, each before the next is known.

        `survey` then adds to what it knows, and the instance that knows all finishes the sum.
        """

    def survey(self, updates: Sequence[Update]) -> Aggregator:
        """Returns the aggregator with what it must know about all updates before it begins.

        Args:
            updates: In sorted client order; each access reads the tensor again.
        """

    def init(self, name: str) -> Any:
        """Returns the state of a tensor before the first client."""

    def add(self, state: Any, update: Update, *, name: str) -> Any:
        """Returns the state with one more client's tensor."""

    def finish(self, state: Any, *, name: str) -> Tensor:
        """Returns the aggregate: float64, or integers of the clients' type."""

    def metrics(self) -> dict[str, float]:
        """Returns the metrics for the round's record."""


def fold(
    aggregator: Aggregator,
    updates: Iterable[Update],
    *,
    names: Iterable[str],
    states: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Adds updates, in the given order, to the states of the tensors that they have.

    Args:
        aggregator: The aggregator.
        updates: In sorted client order.
        names: The tensors.
        states: Their states so far; None before the first update.
    """
    done = dict(states) if states is not None else {name: aggregator.init(name) for name in names}
    for update in updates:
        for name in done:
            if update.weight_of(name):
                done[name] = aggregator.add(done[name], update, name=name)
    return done


def make_aggregator(wrappers: Sequence[Section], *, model: GlobalModel) -> Aggregator:
    """Builds a round's aggregator: the weighted mean, inside the wrappers that a plan names.

    Args:
        wrappers: The wrappers' settings, outermost first.
        model: The model that the clients started from.
    """
    from lwfed.federated.aggregators.weighted_mean import WeightedMean

    aggregator: Aggregator = WeightedMean()
    for settings in reversed(wrappers):
        kind = settings.kind  # type: ignore[attr-defined]  # every wrapper's settings have it
        module = import_module(f"lwfed.federated.aggregators.{kind}")
        aggregator = module.wrap(aggregator, settings=settings, model=model)
    return aggregator
