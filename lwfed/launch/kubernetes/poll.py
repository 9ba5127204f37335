"""Polls a call's Jobs and pods: lists both by label once a second.

A list is complete, unlike a watch: a lost connection, a slow reader or an expired resource version loses nothing. It
also needs no thread, no bookmarks and no way to be stopped from outside; the `stop` of the client's own `Watch` waits
for the next event. A list can only miss a state that comes and goes within a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lwfed.launch.kubernetes.api import PATIENCE_S, Cluster, DeniedError
from lwfed.patience import Patience
from lwfed.types.errors import UnreachableError

EVERY_S = 1.0
"""Seconds between two polls."""
SHARE = 0.2
"""The largest share of a coordinator's time that polls take; with thousands of pods they are further apart."""

Lists = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Jobs, and pods; the pods are listed later, so that they show all that their Jobs know of them."""


class Poll:
    """Polls the Jobs and pods that match a selector.

    Args:
        cluster: The cluster.
        selector: A label selector.
        warn: Receives a line once per outage.
    """

    def __init__(self, cluster: Cluster, *, selector: str, warn: Callable[[str], None]) -> None:
        self._cluster, self._selector = cluster, selector
        self._patience = Patience(
            bound_s=PATIENCE_S, report=lambda problem, left_s: warn(f"{problem}; retrying for {left_s:.0f} s")
        )
        self._next_at = 0.0

    @property
    def due_in_s(self) -> float:
        """Seconds until the next poll; 0 if it is due."""
        return max(0.0, self._next_at - time.monotonic())

    def look(self) -> Lists | None:
        """Returns the Jobs and pods that there are; None while the API does not answer.

        Raises:
            UnreachableError: The API does not answer for `PATIENCE_S`, or denies access.
        """
        began = time.monotonic()
        try:
            jobs = self._cluster.find("jobs", labelSelector=self._selector)
            pods = self._cluster.find("pods", labelSelector=self._selector)
        except DeniedError:
            raise
        except UnreachableError as error:
            pause_s = self._patience.failed(error.problem)
            if pause_s is None:
                raise
            self._next_at = time.monotonic() + pause_s
            return None
        self._patience.answered()
        now = time.monotonic()
        self._next_at = now + max(EVERY_S, (now - began) / SHARE)
        return jobs, pods
