"""Reads what runs want of an agent: one small object per run, read again only when it changes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from lwfed.run.agents import Wants
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError

LIST_S = 10.0
"""Seconds between two listings of the runs, for an agent that works for any."""


@dataclass(slots=True)
class Wanted:
    """What runs want of one agent.

    Attributes:
        store: The store.
        run_id: The only run to look at; None: any.
        current: Run -> what it wants, as last read.
    """

    store: Store
    run_id: str | None
    current: dict[str, Wants] = field(default_factory=dict)
    _marks: dict[str, str | None] = field(default_factory=dict)
    _listed_at: float = -LIST_S

    def look(self) -> None:
        """Reads again what has changed. Raises UnreachableError if the store does not answer."""
        for run_id in self._runs():
            try:
                seen = self.store.read_ref_if_changed(paths.wants(run_id), self._marks.get(run_id))
                if seen is None:
                    continue
                self._marks[run_id] = seen.mark
                wants = None if seen.value is None else Wants.of(seen.value)
            except CheckpointError:  # of another version of lwfed: nothing that this one can do
                wants = None
            if wants is not None and wants.run_id == run_id:
                self.current[run_id] = wants
            else:
                self.current.pop(run_id, None)

    @property
    def poll_s(self) -> float:
        """Seconds to the next look; runs say how often they may be asked."""
        return min((wants.poll_s for wants in self.current.values()), default=2.0)

    def _runs(self) -> list[str]:
        if self.run_id is not None:
            return [self.run_id]
        now = time.monotonic()
        if now - self._listed_at >= LIST_S:
            names = (PurePosixPath(key).stem for key in self.store.list(paths.AGENT_RUNS))
            found = {name for name in names if not name.startswith(".")}  # a run's name is a folder's, too
            self._listed_at = now
            self._marks = {run_id: self._marks.get(run_id) for run_id in found}
            self.current = {run_id: wants for run_id, wants in self.current.items() if run_id in found}
        return sorted(self._marks)
