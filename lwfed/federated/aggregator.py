"""Aggregators: how the updates of a round become one, a tensor at a time; they wrap one another.

An aggregator takes state and gives state back: `init`, `add` for each client in sorted order, `finish`. So it streams:
memory does not grow with the number of clients, and the result does not depend on who came first. A rule that must know
all updates before it begins (their norms, their distances) learns that in `survey`. One that changes updates, such as
clipping, wraps the one that averages them, as the factories of TensorFlow Federated do.
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
from lwfed.types.tensors import TensorSpec


@dataclass(frozen=True)
class Update:
    """What one client sent in a round.

    Attributes:
        client: Its id.
        weight: w_n, divided by the greatest common factor of the round's.
        tensor: Name -> what it sent, decoded: theta_n, or delta_n where `GlobalModel.sent_as_change` says so.
    """

    client: str
    weight: int
    tensor: Callable[[str], Tensor]


@dataclass(frozen=True)
class GlobalModel:
    """The model that a round's clients started from, and the form in which they send theirs.

    Attributes:
        specs: Trained tensor -> its type and shape.
        codec: How clients send their updates.
        start: Name -> theta, on the CPU.
    """

    specs: Mapping[str, TensorSpec]
    codec: Codec
    start: Callable[[str], Tensor]

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of what has a change: floating tensors that are no buffers; sorted."""
        floating = {name for name, spec in self.specs.items() if DTYPES[spec.dtype].is_floating_point}
        return tuple(sorted(name for name in floating if not self.specs[name].buffer))

    def sent_as_change(self, name: str) -> bool:
        """Whether clients send delta_n of a tensor, and not theta_n."""
        return is_encoded(self.specs[name], self.codec)

    def change(self, name: str, sent: Tensor) -> Tensor:
        """Returns delta_n of what a client sent of a parameter, as a new tensor in float64."""
        change = sent.double()
        return change.clone() if self.sent_as_change(name) else change - self.start(name).double()

    def moved(self, name: str, change: Tensor) -> Tensor:
        """Returns what a client with such a change (float64) would have sent, in float64."""
        return change if self.sent_as_change(name) else change.add_(self.start(name))

    def value(self, name: str, aggregate: Tensor) -> Tensor:
        """Returns the tensor that an aggregate of what clients sent makes, rounded once to its type.

        Args:
            name: The tensor.
            aggregate: As `Aggregator.finish` returns it; it is changed.
        """
        if self.sent_as_change(name):
            aggregate = aggregate.add_(self.start(name))
        return aggregate.to(DTYPES[self.specs[name].dtype])


@runtime_checkable
class Aggregator(Protocol):
    """A way to make one update of many. `State` is its own affair; what is handed in is used up."""

    @property
    def needs_all(self) -> bool:
        """Whether `survey` must see all updates before any is added."""

    def survey(self, updates: Sequence[Update]) -> Aggregator:
        """Returns the aggregator with what it has to know of all updates before it begins.

        Args:
            updates: In sorted client order; a tensor is read each time it is asked for.
        """

    def init(self, name: str) -> Any:
        """Returns the state of a tensor before any client."""

    def add(self, state: Any, update: Update, *, name: str) -> Any:
        """Returns the state with one more client's tensor."""

    def finish(self, state: Any, *, name: str) -> Tensor:
        """Returns the aggregate: float64, or integers of the clients' type."""

    def metrics(self) -> dict[str, float]:
        """Returns what is worth a round's record."""


def fold(
    aggregator: Aggregator,
    updates: Iterable[Update],
    *,
    names: Iterable[str],
    states: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Adds updates, in the order in which they come, to the states of some tensors.

    Args:
        aggregator: How.
        updates: In sorted client order.
        names: Which tensors.
        states: Their states so far; None before the first update.
    """
    done = dict(states) if states is not None else {name: aggregator.init(name) for name in names}
    for update in updates:
        for name in done:
            done[name] = aggregator.add(done[name], update, name=name)
    return done


def make_aggregator(wrappers: Sequence[Section], *, model: GlobalModel) -> Aggregator:
    """Builds a round's aggregator: the weighted mean, and around it what a plan names.

    Args:
        wrappers: Their settings, in the order in which an update passes them.
        model: What the clients started from.
    """
    from lwfed.federated.aggregators.weighted_mean import WeightedMean

    aggregator: Aggregator = WeightedMean()
    for settings in reversed(wrappers):
        kind = settings.kind  # type: ignore[attr-defined]  # every wrapper's settings have it
        module = import_module(f"lwfed.federated.aggregators.{kind}")
        aggregator = module.wrap(aggregator, settings=settings, model=model)
    return aggregator
