"""Norm clipping: a change whose norm exceeds a bound is scaled down to it, which limits each client's influence.

Robust and private aggregation both start with this bound (McMahan et al. 2018, arXiv 1710.06963, Algorithm 1, flat
clipping; Sun et al. 2019, arXiv 1911.07963, section 4). The norm is taken over all parameters that a client sent.
Buffers and integers are excluded and pass unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from lwfed.catalog.aggregators.clipped import Settings
from lwfed.federated.aggregator import Aggregator, GlobalModel, Update


def wrap(inner: Aggregator, *, settings: Settings, model: GlobalModel) -> Aggregator:
    """Wraps an aggregator in clipping."""
    return Clipped(inner=inner, max_norm=settings.max_norm, model=model)


@dataclass(frozen=True)
class Clipped:
    """Clips updates and passes them to another aggregator.

    Attributes:
        inner: The aggregator of the clipped updates.
        max_norm: The bound.
        model: The model that the clients started from.
        norms: Client -> norm of its change; known after `survey`.
    """

    inner: Aggregator
    max_norm: float
    model: GlobalModel
    norms: Mapping[str, float] = field(default_factory=dict)

    needs_all = True

    @property
    def one_by_one(self) -> bool:
        """Whether the inner aggregator takes updates one by one: a norm depends on its own update alone."""
        return self.inner.one_by_one

    def survey(self, updates: Sequence[Update]) -> Clipped:
        """Computes every update's norm, with one tensor in memory at a time."""
        known = replace(self, norms={**self.norms, **{update.client: self._norm(update) for update in updates}})
        return replace(known, inner=self.inner.survey([known._clip(update) for update in updates]))

    def init(self, name: str) -> Any:
        """Returns the inner aggregator's initial state."""
        return self.inner.init(name)

    def add(self, state: Any, update: Update, *, name: str) -> Any:
        """Adds theta + min(1, C / ||delta_n||) delta_n instead of theta + delta_n."""
        return self.inner.add(state, self._clip(update), name=name)

    def finish(self, state: Any, *, name: str) -> Tensor:
        """Returns the inner aggregator's result."""
        return self.inner.finish(state, name=name)

    def metrics(self) -> dict[str, float]:
        """Returns the fraction of clients that were clipped, and the largest norm before clipping."""
        clipped = sum(norm > self.max_norm for norm in self.norms.values())
        mine = {"aggregate/clipped": clipped / len(self.norms), "aggregate/largest_norm": max(self.norms.values())}
        return {**self.inner.metrics(), **mine}

    def _norm(self, update: Update) -> float:
        sent = (name for name in self.model.parameters if update.weight_of(name))
        changes = (self.model.change(name, update.tensor(name)) for name in sent)
        return math.sqrt(math.fsum(float(change.square().sum()) for change in changes))

    def _clip(self, update: Update) -> Update:
        norm = self.norms[update.client]
        if norm <= self.max_norm:
            return update
        scale, parameters = self.max_norm / norm, set(self.model.parameters)

        def tensor(name: str) -> Tensor:
            sent = update.tensor(name)
            if name not in parameters:
                return sent
            return self.model.as_sent(name, self.model.change(name, sent).mul_(scale))

        return replace(update, tensor=tensor)
