"""Streams the logs of pods, so many at a time; the others wait their turn, and what they said is not lost.

A thread per stream, since a node that does not answer holds up a request for its pod's log.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import urllib3

from lwfed.launch.kubernetes.api import FIRST_PAUSE_S, PATIENCE_S, Cluster, DeniedError, lines_of
from lwfed.launch.kubernetes.manifests import CONTAINER
from lwfed.patience import Patience
from lwfed.types.errors import LwfedError

AT_A_TIME = 16
HELD_S = 5.0
"""Seconds after which a connection that breaks was a good one, though no line came."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a pod's log."""

    pod: str
    text: str


@dataclass(frozen=True, slots=True)
class Denied:
    """The cluster lets nobody read logs here: no further line comes."""

    error: DeniedError


Lines = queue.SimpleQueue[Line | Denied]


class Logs:
    """Puts the lines of pods' logs into a queue.

    Args:
        cluster: Where.
        lines: The queue.
        at_a_time: Most streams at a time.
    """

    def __init__(self, cluster: Cluster, *, lines: Lines, at_a_time: int = AT_A_TIME) -> None:
        self._cluster, self._lines = cluster, lines
        self._pool = ThreadPoolExecutor(at_a_time, thread_name_prefix="log")
        self._pods: dict[str, Future[None]] = {}
        self._streams: dict[str, urllib3.BaseHTTPResponse] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._denied = False

    def follow(self, pod: str) -> None:
        """Follows a pod's log, now or when another's has ended."""
        if not self._over.is_set() and pod not in self._pods:
            self._pods[pod] = self._pool.submit(self._run, pod)

    def covers(self, pod: str) -> bool:
        """Whether a pod's lines have been read, or are being read."""
        found = self._pods.get(pod)
        return found is not None and not self._denied and (found.running() or (found.done() and not found.cancelled()))

    def busy(self) -> bool:
        """Whether a log is still followed."""
        return any(not future.done() for future in self._pods.values())

    def tail(self, pod: str, *, lines: int) -> str:
        """Returns the last lines of a pod's log; empty where it cannot be read."""
        with suppress(LwfedError):
            return "\n".join(lines_of(self._cluster.log(pod, container=CONTAINER, tailLines=lines)))
        return ""

    def close(self) -> None:
        """Ends all soon."""
        self._over.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for stream in self._streams.values():
                _shut(stream)

    def _run(self, pod: str) -> None:
        if self._denied:
            return
        try:
            self._follow(pod)
        except DeniedError as error:
            with self._lock:
                first, self._denied = not self._denied, True
            if first:
                self._lines.put(Denied(error))
        except LwfedError:
            pass  # the pod is gone; why it ended is seen elsewhere
        finally:
            with self._lock:
                self._streams.pop(pod, None)

    def _follow(self, pod: str) -> None:
        """Reads each of a log's lines once, over broken connections."""
        last, patience = "", Patience(bound_s=PATIENCE_S, first_s=FIRST_PAUSE_S, over=self._over)
        while not self._over.is_set():
            known, since, began = last, ({"sinceTime": last} if last else {}), time.monotonic()
            try:
                stream = self._cluster.log(pod, container=CONTAINER, follow="true", timestamps="true", **since)
                with self._lock:
                    self._streams[pod] = stream
                if self._over.is_set():  # closed in this moment: nobody else ends it
                    _shut(stream)
                for line in lines_of(stream):
                    when, _, text = line.partition(" ")
                    if when > known and not self._over.is_set():  # a connection repeats the last one's last moment
                        last = max(last, when)
                        patience.answered()
                        self._lines.put(Line(pod, text))
                return
            except DeniedError:
                raise
            except LwfedError as error:
                if time.monotonic() - began > HELD_S:
                    patience.answered()
                if not patience.wait(str(error)):
                    raise


def _shut(stream: urllib3.BaseHTTPResponse) -> None:
    """Ends another thread's wait for a stream."""
    with suppress(OSError, ValueError, RuntimeError, AttributeError):  # it has ended by itself
        stream.shutdown()
