"""Tensors of some clients, put through an aggregator as a round does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from lwfed.federated.aggregator import GlobalModel, Update, fold, make_aggregator
from lwfed.params import spec_of
from lwfed.types.encoded import Codec
from lwfed.types.section import Section


def updates_of(readers: Mapping[str, Callable[[str], Tensor]], weights: Mapping[str, int]) -> list[Update]:
    """Returns clients' updates in the order that a round has them in."""
    return [Update(client, weights[client], readers[client]) for client in sorted(readers)]


def aggregate(
    clients: Mapping[str, Mapping[str, Tensor]],
    *,
    weights: Mapping[str, int] | None = None,
    start: Mapping[str, Tensor] | None = None,
    codec: Codec = "fp32",
    wrappers: Sequence[Section] = (),
    buffers: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Aggregates what clients sent: client -> name -> theta_n, or delta_n with a codec that sends changes."""
    first = next(iter(clients.values()))
    specs = {name: spec_of(tensor, buffer=name in buffers) for name, tensor in first.items()}
    model = GlobalModel(specs=specs, codec=codec, start=(start or {}).__getitem__)
    readers = {client: tensors.__getitem__ for client, tensors in clients.items()}
    updates = updates_of(readers, weights or dict.fromkeys(clients, 1))
    aggregator = make_aggregator(wrappers, model=model).survey(updates)
    states = fold(aggregator, updates, names=specs)
    return {name: model.value(name, aggregator.finish(state, name=name)) for name, state in states.items()}


def mean_of(tensors: Mapping[str, Tensor], weights: Mapping[str, int]) -> Tensor:
    """Averages one tensor over clients."""
    return aggregate({client: {"w": tensor} for client, tensor in tensors.items()}, weights=weights)["w"]
