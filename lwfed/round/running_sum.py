"""The sum of a round's updates, added up while clients still train.

For a coordinator that trains its clients itself: it has every update in memory once, and need not read it again. The
sum is taken in the same order and with the same operations as from the store, so it has the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lwfed.federated.aggregate import added, normalise_weights
from lwfed.federated.codecs import decode
from lwfed.types.encoded import Codec, is_encoded
from lwfed.types.tensors import TensorSpec

MAX_BYTES = 1 << 30
"""Of the sums in float64; larger models are added up tensor by tensor, from the store."""


class RunningSum:
    """Sums of one round, of clients that come in sorted order.

    Args:
        stage_key: The stage.
        server_round: The round.
        num_examples: The clients that are expected, with their weights.
        specs: Trained tensors.
        codec: How clients send them.
    """

    def __init__(
        self,
        stage_key: str,
        server_round: int,
        *,
        num_examples: Mapping[str, int],
        specs: Mapping[str, TensorSpec],
        codec: Codec,
    ) -> None:
        self._round = (stage_key, server_round)
        self._weights = normalise_weights(num_examples)
        self._specs, self._codec = specs, codec
        self._expected = sorted(num_examples)
        self._digests: dict[str, str] = {}
        self._totals: dict[str, Tensor] = {}

    def add(self, client: str, sent: Mapping[str, Tensor], *, digest: str) -> None:
        """Adds what a client sent; one that is not the next in order ends the summing.

        Args:
            client: Its id.
            sent: What its update holds, on the CPU.
            digest: The update's digest.
        """
        if self._expected[len(self._digests) :][:1] != [client]:
            self._expected, self._totals = [], {}
            return
        for name, spec in self._specs.items():
            tensor = decode(name, sent) if is_encoded(spec, self._codec) else sent[name]
            self._totals[name] = added(self._totals.get(name), tensor, weight=self._weights[client])
        self._digests[client] = digest

    def take(self, stage_key: str, server_round: int, *, accepted: Mapping[str, str]) -> dict[str, Tensor] | None:
        """Gives the sums of a round, if all who were expected and nobody else is accepted; once: they are changed.

        The weights were made for all of them: a sum over fewer is another's, whatever its digests.

        Args:
            stage_key: The stage.
            server_round: The round.
            accepted: Client -> digest of its update.
        """
        totals, self._totals = self._totals, {}
        whole = list(self._digests) == self._expected and self._digests == accepted
        return totals if whole and totals and self._round == (stage_key, server_round) else None


def begin_sum(
    stage_key: str,
    server_round: int,
    *,
    clients: Sequence[str],
    known: Mapping[str, int],
    specs: Mapping[str, TensorSpec],
    codec: Codec,
) -> RunningSum | None:
    """Begins the sum of a round, if every client's weight is known and the sums are small enough to be held.

    Args:
        stage_key: The stage.
        server_round: The round.
        clients: Who takes part.
        known: Client -> number of its examples, as far as it is known.
        specs: Trained tensors.
        codec: How clients send them.
    """
    if not clients or any(client not in known for client in clients):
        return None
    if sum(8 * spec.numel for spec in specs.values()) > MAX_BYTES:
        return None
    num_examples = {client: known[client] for client in clients}
    return RunningSum(stage_key, server_round, num_examples=num_examples, specs=specs, codec=codec)
