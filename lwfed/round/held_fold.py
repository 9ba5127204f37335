"""A round's sums, to which each client's update is added as soon as it is there, and then forgotten.

The weights of a mean are divided by their greatest common factor, and whose weights these are is known only when all
have trained. But a factor of two scales a binary sum without changing a bit of the mean. So the sums begin with the
weights of those who are expected, divided by the odd part of their greatest common factor. While failures leave that
odd part and the order as they are, the mean has the bits of one that knew its clients. Otherwise the sums are void, and
the clients train again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from lwfed.federated.aggregator import Aggregator, GlobalModel, Update, fold
from lwfed.federated.exchange import received
from lwfed.plan.stages import StagePlan
from lwfed.round.senders import Counted, Weights, weights_of


class HeldFold:
    """The sums of a round whose updates stay in memory.

    Args:
        plan: The stage.
        order: The clients that the round asks, in the order in which they train.
        need: Number of updates that it needs: the first of them that do not fail.
        counted: Client -> how much its update counts.
        aggregator: Combines the updates into one; it must take them one by one.
        model: The model that the clients start from.

    Attributes:
        is_void: Whether the sums are of no use, because a failure changed the weights or the order.
        added: The clients in the sums, in their order.
    """

    def __init__(
        self, plan: StagePlan, *, order: Sequence[str], need: int, counted: Mapping[str, Counted],
        aggregator: Aggregator, model: GlobalModel,
    ) -> None:  # fmt: skip
        self._plan, self._need, self._model = plan, need, model
        self._waiting = list(order)
        self._counted = dict(counted)
        self._aggregator = aggregator
        self._states: dict[str, Any] | None = None
        self.is_void = False
        self.added: list[str] = []
        self._weights: dict[str, Weights] = {}
        self._unit = 0
        self._weigh()

    def add(self, client: str, sent: Mapping[str, Tensor], *, counts: Counted) -> None:
        """Adds a client's update; the sums are void if it is not the next one, or counts otherwise than expected.

        Args:
            client: Its id.
            sent: The tensors of its update, on the CPU; not needed any more afterwards.
            counts: How much it counts.
        """
        if self._waiting[:1] != [client] or client not in self._weights or counts != self._counted[client]:
            self.is_void = True
        if self.is_void:
            return
        model, own = self._model, self._weights[client]

        def tensor(name: str) -> Tensor:
            return received(name, sent, spec=model.specs[name], codec=model.codec)

        update = Update(client, own.weight, tensor, by_unit=own.by_unit)
        self._aggregator = self._aggregator.survey([update])
        self.is_void = True  # if it fails halfway, for lack of memory, say
        self._states = fold(self._aggregator, [update], names=model.specs, states=self._states)
        self.is_void = False
        self._waiting.pop(0)
        self.added.append(client)

    def drop(self, client: str) -> None:
        """Goes on without a client that failed; the sums may be void."""
        if client in self._waiting:
            self._waiting.remove(client)
            self._weigh()

    def take(self, accepted: Collection[str]) -> tuple[Aggregator, dict[str, Any]] | None:
        """Returns the aggregator and the states of all tensors; None if the sums are not those of the accepted clients.

        Args:
            accepted: The accepted clients.
        """
        states, self._states = self._states, None
        if states is None or self.is_void or self.added != sorted(accepted):
            return None
        return self._aggregator, states

    def _weigh(self) -> None:
        """Finds the weights of the expected clients; the sums are void if they are not in proportion to those added."""
        expected = [*self.added, *self._waiting][: self._need]
        if expected != sorted(expected):  # a spare takes a place before those who have trained
            self.is_void = True
        if not expected:
            return
        weights = weights_of(self._plan, {client: self._counted[client] for client in expected}, reduced=False)
        common = math.gcd(*(weight for one in weights.values() for weight in (one.weight, *one.by_unit.values())))
        unit = common // (common & -common)  # without its factors of two
        if self.added and unit != self._unit:
            self.is_void = True
            return
        self._unit = unit
        self._weights = {
            client: Weights(one.weight // unit, {name: weight // unit for name, weight in one.by_unit.items()})
            for client, one in weights.items()
        }
