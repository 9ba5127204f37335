"""Streams the logs of pods, a limited number at a time; the others wait their turn and lose no lines.

Each stream has a thread, since a request for the log of a pod on a dead node blocks. They are daemon threads, since
such a request must not delay the coordinator's exit, as the threads of an executor would.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from contextlib import suppress
from typing import Literal

import urllib3

from lwfed.launch.kubernetes.api import PATIENCE_S, Cluster, DeniedError, lines_of
from lwfed.launch.kubernetes.manifests import CONTAINER
from lwfed.patience import Patience
from lwfed.types.errors import LwfedError

AT_A_TIME = 16
"""The most streams at a time."""


Lines = queue.SimpleQueue[tuple[str, str] | DeniedError]
"""Lines of logs, each with its pod; an error says that the cluster denies reading logs, and no further line follows."""


class Logs:
    """Puts the lines of pods' logs into a queue.

    Args:
        cluster: The cluster of the pods.
        lines: The queue.
    """

    def __init__(self, cluster: Cluster, *, lines: Lines) -> None:
        self._cluster, self._lines = cluster, lines
        self._pods: dict[str, Literal["waiting", "read", "done"]] = {}
        self._todo: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._threads = 0
        self._streams: dict[str, urllib3.BaseHTTPResponse] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._denied = False

    def follow(self, pod: str) -> None:
        """Follows a pod's log, now or when another stream has ended."""
        if self._over.is_set() or self._denied or pod in self._pods:
            return
        self._pods[pod] = "waiting"
        self._todo.put(pod)
        if self._threads < AT_A_TIME:
            self._threads += 1
            threading.Thread(target=self._run, name="log", daemon=True).start()

    def misses(self, pod: str) -> bool:
        """Whether a pod's log is not followed: the cluster denies it, or the pod still waits its turn."""
        return self._denied or self._pods.get(pod) == "waiting"

    def busy(self) -> bool:
        """Whether any log is still followed."""
        return any(state != "done" for state in list(self._pods.values()))

    def tail(self, pod: str, *, lines: int) -> str:
        """Returns the last lines of a pod's log; empty if it cannot be read."""
        with suppress(LwfedError):
            return "\n".join(lines_of(self._cluster.log(pod, container=CONTAINER, tailLines=lines)))
        return ""

    def close(self) -> None:
        """Stops all streams."""
        self._over.set()
        for _ in range(self._threads):
            self._todo.put(None)
        with self._lock:
            for stream in self._streams.values():
                _shut(stream)

    def _run(self) -> None:
        while (pod := self._todo.get()) is not None:
            self._pods[pod] = "read"
            try:
                if not self._denied:
                    self._follow(pod)
            except DeniedError as error:
                with self._lock:
                    first, self._denied = not self._denied, True
                if first:
                    self._lines.put(error)
            except LwfedError:
                pass  # the pod is gone; `state` finds out why
            with self._lock:
                self._streams.pop(pod, None)
            self._pods[pod] = "done"

    def _follow(self, pod: str) -> None:
        """Reads each line of a log once, across broken connections."""
        last, patience = "", Patience(bound_s=PATIENCE_S, over=self._over)
        while not self._over.is_set():
            known, since, opened = last, ({"sinceTime": last} if last else {}), math.inf
            try:
                stream = self._cluster.log(pod, container=CONTAINER, follow="true", timestamps="true", **since)
                opened = time.monotonic()
                with self._lock:
                    self._streams[pod] = stream
                if self._over.is_set():  # `close` ran before it could see this stream
                    _shut(stream)
                for line in lines_of(stream):
                    when, _, text = line.partition(" ")
                    if when > known and not self._over.is_set():  # a new connection repeats the last lines
                        last = max(last, when)
                        patience.answered()
                        self._lines.put((pod, text))
                return
            except DeniedError:
                raise
            except LwfedError as error:
                if time.monotonic() - opened > patience.longest_s:  # the connection was good, though no line came
                    patience.answered()
                if not patience.wait(str(error)):
                    raise


def _shut(stream: urllib3.BaseHTTPResponse) -> None:
    """Ends another thread's wait for a stream."""
    with suppress(OSError, ValueError, RuntimeError, AttributeError):  # it has ended already
        stream.shutdown()
