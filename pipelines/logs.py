"""Reads the log of a task's pod: from Kubeflow Pipelines if the pod has ended, from the cluster while it runs.

Kubeflow's launcher and executor write about sixty lines around those of the task itself.

Seen on Kubeflow Pipelines 2.17.0 for one user: for an ended pod's node, the API returns the archived log; for a running
one it returns status 200 and an error as JSON, since it looks for the pod without a namespace. According to its
sources, a multi-user server can read a running pod's log by the pod's name, and so can the server of the web pages;
neither was seen.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from lwfed.types.errors import LwfedError, NotFoundError, UnreachableError
from pipelines.client.cluster import MAIN
from pipelines.client.errors import RefusedError
from pipelines.client.pace import USUAL, Pace
from pipelines.client.runs import KnownRun
from pipelines.states.records import Pod

if TYPE_CHECKING:
    from lwfed.launch.kubernetes.api import Cluster

ERROR_KEYS = {"error_message", "error_details"}
LAUNCHER = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w./-]+\.go:\d+\] ")
EXECUTOR = re.compile(r"\[KFP Executor [^\]]*\]: ")
ARGO = re.compile(r"time=\S+ level=\w+ .*\bargo=true\b")
OPENS, CLOSES = "{", "}"


class PodLogs:
    """Reads the logs of a run's pods; opens a connection to the cluster on first use, and closes it."""

    def __init__(self, run: KnownRun) -> None:
        self._run = run
        self._cluster: Cluster | None = None
        self._no_cluster: LwfedError | None = None

    def close(self) -> None:
        """Closes the connection to the cluster."""
        if self._cluster is not None:
            self._cluster.close()

    def read(self, pod: Pod) -> str:
        """Returns a pod's log so far.

        Raises:
            NotFoundError: The log does not exist or is not reachable.
            UnreachableError: The server does not answer.
        """
        runs, node = f"runs/{self._run.id}/nodes", quote(pod.node)
        archive = [f"/apis/v1alpha1/{runs}/{node}/log", f"/apis/v2beta1/{runs}/{node}/artifacts/main-logs:read"]
        live = f"/apis/v1alpha1/{runs}/{quote(pod.name)}/log"
        query = {"podname": pod.name, "runid": self._run.id, "podnamespace": self._run.namespace}
        pages = f"/k8s/pod/logs?{urlencode(query)}"
        ended = pod.state in ("SUCCEEDED", "FAILED")
        for path in [*archive, None, live, pages] if ended else [live, None, pages, *archive]:
            text = self._from_cluster(pod) if path is None else self._from_api(path, pod)
            if text:
                return text
        raise self._missing(pod)

    def follow(self, pod: Pod, *, runs: Callable[[], bool], pace: Pace = USUAL) -> Iterator[str]:
        """Yields the lines of a pod's log as they are written.

        Args:
            pod: The pod.
            runs: Whether it still runs; called before each poll, and when a stream has ended.
            pace: How long to wait between two polls, and for a server that is down.

        Raises:
            NotFoundError: The log is not reachable.
            UnreachableError: The server does not answer for too long.
        """
        shown = 0
        answered = time.monotonic()
        while True:
            running = runs()
            try:
                for line in itertools.islice(self._lines(pod, follow=running), shown, None):
                    shown += 1
                    answered = time.monotonic()
                    yield line
            except UnreachableError:
                if time.monotonic() - answered > pace.patience_s:
                    raise
            if not running:
                return
            time.sleep(pace.poll_s)

    def _lines(self, pod: Pod, *, follow: bool) -> Iterator[str]:
        """Yields a pod's lines from the first: live if the cluster streams them, else the complete lines so far."""
        cluster = self._reach() if follow else None
        if cluster is not None:
            streamed = False
            try:
                for line in cluster.log_lines(pod.name, container=MAIN, follow="true"):
                    streamed = True
                    yield line
                return
            except LwfedError as error:
                self._note_denial(error)
                broke = isinstance(error, UnreachableError) and self._cluster is not None
                if broke or streamed:
                    raise  # the caller requests the rest again
        *lines, rest = self.read(pod).split("\n")
        yield from lines if follow or not rest else [*lines, rest]  # the last line may be incomplete

    def _from_api(self, path: str, pod: Pod) -> str:
        try:
            return unwrapped(self._run.kfp.read(path, about=f"the log of {pod.name}"))
        except (RefusedError, NotFoundError):
            return ""

    def _from_cluster(self, pod: Pod) -> str:
        cluster = self._reach()
        if cluster is None:
            return ""
        try:
            return "".join(f"{line}\n" for line in cluster.log_lines(pod.name, container=MAIN))
        except LwfedError as error:
            self._note_denial(error)
            return ""

    def _note_denial(self, error: LwfedError) -> None:
        """Stops using a cluster that denies access, since another request cannot help."""
        from lwfed.launch.kubernetes.api import DeniedError

        if isinstance(error, DeniedError) and self._cluster is not None:
            self._cluster.close()
            self._cluster, self._no_cluster = None, error

    def _reach(self) -> Cluster | None:
        if self._cluster is None and self._no_cluster is None:
            from lwfed.launch.kubernetes.api import connect  # loads the Kubernetes client

            try:
                self._cluster = connect(self._run.namespace)
            except LwfedError as error:
                self._no_cluster = error
        return self._cluster

    def _missing(self, pod: Pod) -> NotFoundError:
        where = f"kubectl -n {self._run.namespace} logs {pod.name}"
        if self._cluster is None and self._no_cluster is not None:
            return NotFoundError(
                f"Kubeflow Pipelines has no log of {pod.name}, and the cluster is not reachable: "
                f"{self._no_cluster.problem}",
                remedy=f"set KUBECONFIG to a configuration that may read logs, or run elsewhere: {where}",
            )
        return NotFoundError(f"there is no log of {pod.name}", remedy=f"its container may never have started: {where}")


def unwrapped(content: bytes) -> str:
    """Extracts a log from an answer of the API.

    Args:
        content: The answer: text; or JSON with the text in base64, as for artifacts; or an error as JSON with status
            200.

    Returns:
        The log; empty if the answer has none.
    """
    if content.startswith(b"{"):
        try:
            values = json.loads(content)
        except ValueError:
            values = None
        if isinstance(values, dict) and set(values) == {"data"}:
            content = base64.b64decode(values["data"] or "")
        elif isinstance(values, dict) and values and set(values) <= ERROR_KEYS:
            return ""
    text = content.decode("utf-8", "replace")
    return text if text.strip() else ""


def own_lines(lines: Iterable[str]) -> Iterator[str]:
    """Removes the lines of Kubeflow's launcher and executor and of Argo.

    Args:
        lines: The lines of a task's log, as they arrive.

    Yields:
        The component's own lines. JSON of the launcher and the executor is removed with the line before it.
    """
    theirs = False  # whether the last line was Kubeflow's: only such a line is followed by JSON
    inside = False
    for line in lines:
        if inside:
            inside = line != CLOSES
        elif theirs and line == OPENS:
            inside = True
        elif LAUNCHER.match(line) or EXECUTOR.match(line) or ARGO.match(line):
            theirs, inside = True, line.endswith(OPENS)
        else:
            theirs = False
            yield line
