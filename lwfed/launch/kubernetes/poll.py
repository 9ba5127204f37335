"""Polls a call's Jobs and pods: lists both by label once a second, and compares each list with the one before.

A list is complete, unlike a watch: a lost connection, a slow reader or an expired resource version loses nothing. It
also needs no thread, no bookmarks and no way to be stopped from outside; the `stop` of the client's own `Watch` waits
for the next event. A list can only miss a state that comes and goes within a second.
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
"""Seconds between two polls."""
SHARE = 0.2
"""The largest share of a coordinator's time that polls take; with thousands of pods they are further apart."""

Resource = Literal["jobs", "pods"]
RESOURCES: tuple[Resource, ...] = ("jobs", "pods")


@dataclass(frozen=True, slots=True)
class Change:
    """A change of an object between two polls.

    Attributes:
        resource: The kind of object.
        kind: `ADDED`, `MODIFIED` or `DELETED`.
        value: The object as last seen.
    """

    resource: Resource
    kind: Literal["ADDED", "MODIFIED", "DELETED"]
    value: Mapping[str, Any]


class Poll:
    """Polls the Jobs and pods that match a selector.

    Args:
        cluster: The cluster.
        selector: A label selector.
        warn: Receives a line once per outage.
        patience_s: Seconds without an answer after which polling fails.
    """

    def __init__(
        self, cluster: Cluster, *, selector: str, warn: Callable[[str], None], patience_s: float | None = None
    ) -> None:
        self._cluster, self._selector = cluster, selector
        self._known: dict[Resource, dict[str, Mapping[str, Any]]] = {resource: {} for resource in RESOURCES}
        self._patience = Patience(
            bound_s=PATIENCE_S if patience_s is None else patience_s,
            report=lambda problem, left_s: warn(f"{problem}; retrying for {left_s:.0f} s"),
        )
        self._next_at = 0.0

    @property
    def due_in_s(self) -> float:
        """Seconds until the next poll; 0 if it is due."""
        return max(0.0, self._next_at - time.monotonic())

    def look(self) -> list[Change]:
        """Returns the changes since the last poll; none while the API does not answer.

        Raises:
            UnreachableError: The API does not answer for `patience_s`, or denies access.
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
        """Compares a list with the previous one by UID and resource version, and keeps it for the next poll."""
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
            raise UnreachableError(f"the cluster's list of {resource} is malformed: {error!r}") from None
        self._known[resource] = after
        return changes
