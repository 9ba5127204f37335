"""A federation of agents for tests: their processes, a supervisor that starts them again, and what they say."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.nest import Command, Nest

QUICK = {
    "lwfed.agent.beating.BEAT_S": 2.0,
    "lwfed.agent.beating.STEP_S": 0.2,
    "lwfed.agent.serve.PAUSE_S": 0.2,
    "lwfed.agent.wanted.LIST_S": 0.5,
}
"""Constants of agents, shorter so that tests need not wait."""
ALERT = {
    "lwfed.launch.agents.state.ANSWER_S": 1.0,
    "lwfed.launch.agents.state.SILENT_S": 3.0,
    "lwfed.launch.agents.asking.EVERY_S": 0.05,
}
"""Constants of the coordinator, likewise."""


@dataclass
class Federation:
    """Agents and coordinators that share a store, all with the same folder to work in."""

    nest: Nest
    folder: Path
    store: str
    environment: dict[str, str] = field(default_factory=dict)

    def agent(
        self, client: str, *options: str | Path, policy: dict[str, Any] | None = None, quick: bool = True,
        constants: dict[str, float] | None = None, slow_s: float = 0.15, **extra: str,
    ) -> Command:  # fmt: skip
        """Starts an agent, which keeps files in a folder of its own unless its policy says otherwise."""
        path = self.folder / f"{client}.yaml"
        path.write_text(yaml.safe_dump({"cache": str(self.folder / "kept" / client), **(policy or {})}))
        return self.nest.start(
            "agent", "--store", self.store, "--client", client, "--policy", path, *options, cwd=self.folder,
            constants={**(QUICK if quick else {}), **(constants or {})}, slow_s=slow_s, **{**self.environment, **extra},
        )  # fmt: skip

    def coordinator(
        self, spec: Path, *options: str | Path, constants: dict[str, float] | None = None, run_id: str = "one"
    ) -> Command:
        """Starts a run whose clients are agents."""
        return self.nest.start(
            "run", spec, "--run-id", run_id, "-ostore.uri=" + self.store, "-olaunch.kind=agents", *options, "--json",
            cwd=self.folder, constants={**ALERT, **(constants or {})}, **self.environment,
        )  # fmt: skip

    @contextmanager
    def agents(self, *clients: str, **options: Any) -> Iterator[dict[str, Command]]:
        """Has agents for a while."""
        started = {client: self.agent(client, **options) for client in clients}
        try:
            yield started
        finally:
            for command in started.values():
                command.kill()

    def beat(self, client: str, run_id: str = "one") -> dict[str, Any]:
        """What an agent last said; empty if nothing."""
        path = Path(self.store) / "agents" / "beats" / run_id / f"{client}.json"
        try:
            return dict(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return {}

    def record(self, stage: int, server_round: int) -> dict[str, Any]:
        """The record of a round."""
        keys = [item["key"] for item in json.loads((Path(self.store) / "runs/one/run.json").read_bytes())["stages"]]
        path = Path(self.store) / "stages" / keys[stage - 1] / "rounds" / f"{server_round:03d}" / "record.json"
        return dict(json.loads(path.read_bytes()))


@contextmanager
def supervised(start: Callable[[], Command], *, every_s: float = 0.1) -> Iterator[list[Command]]:
    """Starts a command again whenever it ends, as systemd does; yields all that were started."""
    started, over, lock = [start()], threading.Event(), threading.Lock()

    def watch() -> None:
        while not over.wait(every_s):
            with lock:
                if started[-1].poll() is not None:
                    started.append(start())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield started
    finally:
        over.set()
        thread.join()
        started[-1].kill()


def wait_until(
    happened: Callable[[], Any], *, commands: Sequence[Command] = (), timeout: float = 400, every_s: float = 0.02
) -> Any:
    """Waits until something happened while commands run; returns it."""
    ends_at = time.monotonic() + timeout
    while not (found := happened()):
        said = "\n".join(f"{command.arguments}: {command.out}{command.err}" for command in commands)
        assert all(command.poll() is None for command in commands), f"a command ended before it happened:\n{said}"
        assert time.monotonic() < ends_at, f"it did not happen\n{said}"
        time.sleep(every_s)
    return found
