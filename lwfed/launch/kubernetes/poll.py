"""What becomes of a call's Jobs and pods: two lists by label, once a second, each compared with the one before.

Lists and not watches: a list says all there is, so that a lost connection, a slow reader or a forgotten version loses
nothing, and it needs no thread, no bookmarks and no end from outside. The client's own `Watch` has no such end: its
`stop` waits for the next event. What a list misses is a state that comes and goes within a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lwfed.launch.kubernetes.api import PATIENCE_S, Cluster, DeniedError
from lwfed.patience import Patience
from lwfed.types.errors import UnreachableError

EVERY_S = 1.0
"""Seconds between two looks."""
SHARE = 0.2
"""Most of a coordinator's time that looks take: with thousands of pods they are further apart."""

Resource = Literal["jobs", "pods"]
RESOURCES: tuple[Resource, ...] = ("jobs", "pods")


@dataclass(frozen=True, slots=True)
class Change:
    """What became of an object between two looks.

    Attributes:
        resource: What it is.
        kind: `ADDED`, `MODIFIED` or `DELETED`.
        value: The object, as it was last seen.
    """

    resource: Resource
    kind: Literal["ADDED", "MODIFIED", "DELETED"]
    value: Mapping[str, Any]


class Poll:
    """Looks at the Jobs and pods that a selector selects.

    Args:
        cluster: Where.
        selector: By label.
        warn: Takes a line, once per outage.
        patience_s: Seconds without an answer after which it gives up.
    """

    def __init__(
        self, cluster: Cluster, *, selector: str, warn: Callable[[str], None], patience_s: float | None = None
    ) -> None:
        self._cluster, self._selector = cluster, selector
        self._known: dict[Resource, dict[str, Mapping[str, Any]]] = {resource: {} for resource in RESOURCES}
        self._patience = Patience(
            bound_s=PATIENCE_S if patience_s is None else patience_s,
            say=lambda trouble, left_s: warn(f"{trouble}; trying again for {left_s:.0f} s"),
        )
        self._next_at = 0.0

    @property
    def due_in_s(self) -> float:
        """Seconds until the next look; 0 where it is due."""
        return max(0.0, self._next_at - time.monotonic())

    def look(self) -> list[Change]:
        """Returns what has changed since the last look; nothing while the API is away.

        Raises:
            UnreachableError: It stays away, or does not let us.
        """
        began = time.monotonic()
        changes: list[Change] = []
        try:
            for resource in RESOURCES:
                changes += self._compared(resource, self._cluster.find(resource, labelSelector=self._selector))
        except DeniedError:
            raise
        except UnreachableError as error:
            pause_s = self._patience.failed(error.problem)
            if pause_s is None:
                raise
            self._next_at = time.monotonic() + pause_s
            return changes
        self._patience.answered()
        now = time.monotonic()
        self._next_at = now + max(EVERY_S, (now - began) / SHARE)
        return changes

    def _compared(self, resource: Resource, found: Mapping[str, Any]) -> list[Change]:
        """Compares a list with the one before, by identity and version, and keeps it for the next."""
        before = self._known[resource]
        try:
            after = {item["metadata"]["uid"]: item for item in found["items"] or ()}
            changes = [Change(resource, "DELETED", value) for uid, value in before.items() if uid not in after]
            for uid, value in after.items():
                if uid not in before:
                    changes.append(Change(resource, "ADDED", value))
                elif value["metadata"]["resourceVersion"] != before[uid]["metadata"]["resourceVersion"]:
                    changes.append(Change(resource, "MODIFIED", value))
        except (KeyError, TypeError) as error:
            raise UnreachableError(f"the cluster's list of {resource} makes no sense: {error!r}") from None
        self._known[resource] = after
        return changes
