"""A launcher on trial: its calls go on in threads, while the test plays what pods do."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lwfed.launch.kubernetes.launcher import KubernetesLauncher
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import ClientTask, RoundTask
from lwfed.spec.load import build_spec
from lwfed.store.local import LocalStore
from tests.events import emit_to
from tests.unit.launch.api_server import NAMESPACE

KEY = "1a2b3c4d" * 8
CLIENTS = ("client-000", "client-001")


class Working:
    """A call of the launcher in a thread of its own."""

    def __init__(self, deed: Any) -> None:
        self.outcomes: list[Outcome] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(deed,))
        self._thread.start()

    def _run(self, deed: Any) -> None:
        try:
            for outcome in deed() or ():
                self.outcomes.append(outcome)
        except BaseException as error:
            self.error = error

    def wait(self) -> dict[str, Outcome]:
        """Waits for its end; returns the outcomes, or raises what it raised."""
        self._thread.join(timeout=20)
        assert not self._thread.is_alive(), "the call goes on"
        if self.error is not None:
            raise self.error
        found = {outcome.client: outcome for outcome in self.outcomes}
        assert len(found) == len(self.outcomes), "one outcome a client"
        return found


class Trial:
    """A launcher, its store, and what it told."""

    def __init__(self, root: Path) -> None:
        self.store, self.told = LocalStore(root), list[tuple[str, dict[str, Any]]]()
        self.launchers: list[KubernetesLauncher] = []
        self.calls: list[Working] = []

    def emit(self, kind: str, values: dict[str, Any]) -> None:
        self.told.append((kind, values))

    def lines(self, kind: str) -> list[str]:
        key = "message" if kind == "warning" else "line"
        return [values[key] for name, values in self.told if name == kind]

    def launcher(self, **values: Any) -> KubernetesLauncher:
        settings = {"namespace": NAMESPACE, "image": "lwfed:1", **values}
        spec = build_spec({"launch": {"kind": "kubernetes"}, "kubernetes": settings})
        self.launchers.append(KubernetesLauncher(spec, store=self.store, run_id="r"))
        return self.launchers[-1]

    def tasks(self, clients: Sequence[str] = CLIENTS) -> list[ClientTask]:
        return [
            ClientTask(store=self.store.uri, run_id="r", stage_key=KEY, server_round=1, client=client)
            for client in clients
        ]

    def train(
        self, clients: Sequence[str] = CLIENTS, *, deadline_s: float = 60, need: int | None = None, **values: Any
    ) -> Working:
        """Has clients train."""
        launcher, tasks = self.launcher(**values), self.tasks(clients)
        options: dict[str, Any] = {"deadline_s": deadline_s, "emit": emit_to(self.emit), "need": need}
        self.calls.append(Working(lambda: launcher.clients("train-client", tasks, **options)))
        return self.calls[-1]

    def aggregate(self, **values: Any) -> Working:
        """Has the server aggregate."""
        launcher, task = self.launcher(**values), RoundTask(store="s", run_id="r", stage_key=KEY, server_round=1)
        self.calls.append(Working(lambda: launcher.server("aggregate-round", task, emit=emit_to(self.emit))))
        return self.calls[-1]
