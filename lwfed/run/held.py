"""A round's updates that stay in the memory of the process that trains its clients, instead of in the store.

The coordinator says which weights they have, and the launcher adds each to the round's sums as soon as it is there. A
kill loses the round, which then runs again and ends in the same digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lwfed.types.round_records import Accepted, AcceptedUpdate


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms on which a client's update counts, beside its number of examples.

    Attributes:
        weight: Its weight instead of the number of examples; None: that number.
        factor: What its weights are multiplied with; None: 1.
    """

    weight: int | None = None
    factor: int | None = None

    def to_values(self) -> dict[str, int]:
        """Returns those that are set."""
        both = {"weight": self.weight, "factor": self.factor}
        return {name: value for name, value in both.items() if value is not None}


@dataclass
class HeldUpdates:
    """The updates of the round in work.

    Attributes:
        stage_key: The stage.
        server_round: The round.
        terms: Client -> the terms on which its update counts, for all of the cohort.
        updates: Client -> its update, without a digest, once it is in the round's sums.
        accepted: The accepted set, once it is known.
    """

    stage_key: str = ""
    server_round: int = 0
    terms: Mapping[str, Terms] = field(default_factory=dict)
    updates: dict[str, AcceptedUpdate] = field(default_factory=dict)
    accepted: Accepted | None = None

    def begin(self, stage_key: str, server_round: int, *, terms: Mapping[str, Terms]) -> None:
        """Forgets the last round and begins one."""
        self.stage_key, self.server_round, self.terms = stage_key, server_round, terms
        self.updates, self.accepted = {}, None

    def accepted_in(self, stage_key: str, server_round: int) -> Accepted | None:
        """Returns a round's accepted set; None if it is another round's, or not known yet."""
        return self.accepted if (self.stage_key, self.server_round) == (stage_key, server_round) else None
