"""What a real cluster told of Jobs and pods in trouble, and how its API server refuses: recorded, and read here.

A file has what it is (`about`), the clients by index, the news in their order (seconds, resource, kind, object) and the
events. Kept of an object is what a reader may look at; addresses, managed fields and the pod's template are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Recording:
    """A Job's life."""

    clients: tuple[str, ...]
    heard: list[tuple[float, str, str, dict[str, Any]]]
    events: list[dict[str, Any]]

    @property
    def job(self) -> dict[str, Any]:
        """The Job, as it was last."""
        return [value for _, resource, _, value in self.heard if resource == "jobs"][-1]

    @property
    def uid(self) -> str:
        """Identity of the Job."""
        return str(self.job["metadata"]["uid"])

    def pods(self, index: int = 0) -> list[dict[str, Any]]:
        """All news of the pods of an index, in their order."""
        label = "batch.kubernetes.io/job-completion-index"
        pods = [value for _, resource, _, value in self.heard if resource == "pods"]
        return [pod for pod in pods if pod["metadata"]["labels"][label] == str(index)]

    def events_of(self, uid: str) -> list[dict[str, Any]]:
        """The events of an object, oldest first."""
        found = [event for event in self.events if event["involvedObject"]["uid"] == uid]
        return sorted(found, key=lambda event: str(event["lastTimestamp"]))


def names() -> list[str]:
    """Names of all recordings."""
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "answers")


def recording(name: str) -> Recording:
    """Reads a recording."""
    values = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    heard = [(at, resource, kind, value) for at, resource, kind, value in values["heard"]]
    return Recording(tuple(values["clients"]), heard, values["events"])


def answer(what: str) -> tuple[int, Any]:
    """Gives how a real API server answers: status and body."""
    found = json.loads((FOLDER / "answers.json").read_text(encoding="utf-8"))["answers"][what]
    return found["status"], found["body"]
