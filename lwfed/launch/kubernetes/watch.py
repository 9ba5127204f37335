"""Hears what becomes of Jobs and pods: a list, then a watch from there, for as long as it takes; in threads."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import urllib3

from lwfed.launch.kubernetes.api import PATIENCE_S, PAUSE_S, Cluster, DeniedError, GoneError, lines_of
from lwfed.types.errors import LwfedError, SpecError, UnreachableError

TELL_S = 5.0
"""Seconds without an answer after which people are told."""


@dataclass(frozen=True, slots=True)
class Heard:
    """News of an object.

    Attributes:
        resource: What it is.
        kind: `ADDED`, `MODIFIED` or `DELETED`.
        value: The object.
    """

    resource: Literal["jobs", "pods"]
    kind: str
    value: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a pod's log."""

    pod: str
    text: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something to tell that ends nothing."""

    text: str


@dataclass(frozen=True, slots=True)
class Broken:
    """What ends the work: nothing more will be heard."""

    error: LwfedError


News = Heard | Line | Warned | Broken
Queue = queue.SimpleQueue[News]


class Watch:
    """Tells all news of one resource, of what a selector selects, until it is closed.

    Args:
        cluster: Where.
        resource: `jobs` or `pods`.
        selector: By label.
        news: Told.
        patience_s: Seconds without an answer after which it gives up.
    """

    def __init__(
        self,
        cluster: Cluster,
        resource: Literal["jobs", "pods"],
        *,
        selector: str,
        news: Queue,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._cluster, self._resource, self._selector = cluster, resource, selector
        self._news, self._patience_s = news, patience_s
        self._over = threading.Event()
        self._stream: urllib3.BaseHTTPResponse | None = None
        self._known: dict[str, Mapping[str, Any]] = {}
        self._answered_at = self._failing_since = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"watch-{resource}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it soon."""
        self._over.set()
        shut(self._stream)

    def _run(self) -> None:
        version, pause, told = "", PAUSE_S, False
        while not self._over.is_set():
            tried_at = time.monotonic()
            try:
                version = self._follow(version or self._list())
                pause, told = PAUSE_S, False
            except GoneError:
                version = ""
            except (SpecError, DeniedError) as error:
                self._put(Broken(error))
                return
            except UnreachableError as error:
                if self._answered_at >= tried_at:  # it answered, and fell silent or broke only then
                    pause, told, self._failing_since = PAUSE_S, False, time.monotonic()
                silent_s = time.monotonic() - self._failing_since
                if silent_s > self._patience_s:
                    self._put(Broken(error))
                    return
                if not told and silent_s > TELL_S:
                    told = True
                    self._put(Warned(f"{error.problem}; asking again for {self._patience_s:g} s"))
                self._over.wait(pause)
                pause, version = min(2 * pause, 10.0), ""
            except Exception as error:  # a thread that dies in silence would leave the coordinator waiting for ever
                self._put(Broken(UnreachableError(f"the watch of {self._resource} failed: {error!r}")))
                return

    def _list(self) -> str:
        """Tells all there is, and of what is gone since; gives the version it is true for."""
        found = self._cluster.find(self._resource, labelSelector=self._selector)
        self._answered_at = time.monotonic()
        items = {item["metadata"]["uid"]: item for item in found.get("items") or ()}
        for uid in set(self._known) - set(items):
            self._tell("DELETED", self._known[uid])
        for item in items.values():
            self._tell("ADDED", item)
        return str(found["metadata"]["resourceVersion"])

    def _follow(self, version: str) -> str:
        """Tells news from a version on until the server ends the watch; gives the last version."""
        stream = self._cluster.watch(self._resource, selector=self._selector, version=version)
        self._stream = stream
        self._answered_at = time.monotonic()
        if self._over.is_set():  # closed in this moment: nobody else ends it
            shut(stream)
        for line in lines_of(stream):
            if self._over.is_set():
                break
            self._answered_at = time.monotonic()
            event = _event(line)
            kind, value = event["type"], event["object"]
            if kind == "ERROR":
                if value.get("code") == 410:
                    raise GoneError
                raise UnreachableError(
                    f"the watch of {self._resource} ended: {value.get('message', 'no reason given')}"
                )
            version = value["metadata"]["resourceVersion"]
            if kind != "BOOKMARK":
                self._tell(kind, value)
        return version

    def _tell(self, kind: str, value: Mapping[str, Any]) -> None:
        uid = value["metadata"]["uid"]
        if kind == "DELETED":
            self._known.pop(uid, None)
        else:
            self._known[uid] = value
        self._put(Heard(self._resource, kind, value))

    def _put(self, item: News) -> None:
        if not self._over.is_set():
            self._news.put(item)


def _event(line: str) -> dict[str, Any]:
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        raise UnreachableError("the connection broke in the middle of a line") from None
    return event


def shut(stream: urllib3.BaseHTTPResponse | None) -> None:
    """Ends another thread's wait for a stream."""
    if stream is not None:
        with suppress(OSError, ValueError, RuntimeError, AttributeError):  # it has ended by itself
            stream.shutdown()
