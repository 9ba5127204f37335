"""Follows the logs of pods, so many at a time; the others wait their turn, and what they said is not lost."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress

import urllib3

from lwfed.launch.kubernetes.api import Cluster, DeniedError, lines_of
from lwfed.launch.kubernetes.manifests import CONTAINER
from lwfed.launch.kubernetes.watch import Line, Queue, Warned, shut
from lwfed.types.errors import LwfedError

AT_A_TIME = 16
RECONNECTS = 20
"""Connections in a row that break before a line comes, after which a log is given up."""


class Logs:
    """Tells the lines of pods' logs.

    Args:
        cluster: Where.
        news: Told.
        at_a_time: Most streams at a time.
    """

    def __init__(self, cluster: Cluster, *, news: Queue, at_a_time: int = AT_A_TIME) -> None:
        self._cluster, self._news, self._most = cluster, news, at_a_time
        self._lock = threading.Lock()
        self._waiting: deque[str] = deque()
        self._streams: dict[str, urllib3.BaseHTTPResponse | None] = {}
        self._begun: set[str] = set()
        self._over = threading.Event()
        self._denied = False

    def follow(self, pod: str) -> None:
        """Follows a pod's log, now or when another's has ended."""
        with self._lock:
            if self._over.is_set() or self._denied or pod in self._begun:
                return
            self._begun.add(pod)
            if len(self._streams) >= self._most:
                self._waiting.append(pod)
                return
            self._streams[pod] = None
        threading.Thread(target=self._run, args=(pod,), name="log", daemon=True).start()

    def tells(self, pod: str) -> bool:
        """Whether a pod's lines have been told, or will be soon."""
        with self._lock:
            return pod in self._begun and pod not in self._waiting and not self._denied

    def busy(self) -> bool:
        """Whether a log is still followed."""
        with self._lock:
            return bool(self._streams)

    def tail(self, pod: str, *, lines: int) -> str:
        """Gives the last lines of a pod's log; empty where they cannot be had."""
        with suppress(LwfedError):
            return "\n".join(lines_of(self._cluster.log(pod, container=CONTAINER, tailLines=lines)))
        return ""

    def close(self) -> None:
        """Ends all soon."""
        self._over.set()
        with self._lock:
            self._waiting.clear()
            streams = list(self._streams.values())
        for stream in streams:
            shut(stream)

    def _run(self, pod: str) -> None:
        following: str | None = pod
        while following is not None:
            try:
                self._follow(following)
            except DeniedError as error:
                with self._lock:
                    first, self._denied = not self._denied, True
                    self._waiting.clear()
                if first:
                    self._news.put(Warned(f"logs of pods are not shown here: {error}"))
            except LwfedError:
                pass  # the pod is gone; why it ended is heard elsewhere
            with self._lock:
                self._streams.pop(following, None)
                following = self._waiting.popleft() if self._waiting and not self._over.is_set() else None
                if following is not None:
                    self._streams[following] = None

    def _follow(self, pod: str) -> None:
        """Tells a log's lines once each, over broken connections."""
        last, tries = "", 0
        while True:
            known, since = last, ({"sinceTime": last} if last else {})
            try:
                stream = self._cluster.log(pod, container=CONTAINER, follow="true", timestamps="true", **since)
                with self._lock:
                    self._streams[pod] = stream
                if self._over.is_set():  # closed in this moment: nobody else ends it
                    shut(stream)
                for line in lines_of(stream):
                    if self._over.is_set():
                        return
                    when, _, text = line.partition(" ")
                    if when > known:  # a connection begins with what the one before has told
                        last, tries = max(last, when), 0
                        self._news.put(Line(pod, text))
                return
            except DeniedError:
                raise
            except LwfedError:
                tries += 1
                if self._over.wait(min(0.25 * 2**tries, 5.0)) or tries == RECONNECTS:
                    raise
