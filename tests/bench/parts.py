"""CPU seconds of a run split by part: each function of a table is timed on the thread that runs it.

Parts do not overlap: while a part runs inside another one, the outer one's time stands still. Work that a thread pool
does for a part counts for that part.
"""

from __future__ import annotations

import functools
import importlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

STARTS, MEASURING, REST = "process starts", "measuring", "rest"
PARTS: dict[str, tuple[str, ...]] = {
    "preparation": (
        "lwfed.steps.prepare.draft",
        "lwfed.steps.prepare.prepare",
        "lwfed.round.train_stage._appended",
    ),
    "fill": ("lwfed.round.train_client.prefixes_of",),
    "loading": (
        "lwfed.round.train_client.load",
        "lwfed.round.workbench.Workbench._skeleton",
        "lwfed.data.reading.Reader.item",
        "lwfed.data.batches._finish",
        "lwfed.data.reading.tokenize",
    ),
    "training steps": ("lwfed.round.train_client.train",),
    "exchange": (
        "lwfed.round.train_client.fetch_model",
        "lwfed.round.train_client.commit",
        "lwfed.launch.in_process.commit",
    ),
    "aggregation": ("lwfed.launch.in_process.aggregate_round", "lwfed.round.updates.RunningFold.add"),
    "evaluation": (
        "lwfed.round.aggregate_round.evaluate_checkpoint",
        "lwfed.round.evaluate_round.evaluate_checkpoint",
        "lwfed.report.retrieval.embed",
    ),
}
"""Part -> the functions whose time it is, by the name under which they are looked up. A step whose FLOPs are counted is
`MEASURING`."""


class Clock:
    """Counts CPU seconds of all threads by part."""

    def __init__(self) -> None:
        self.seconds = Counter[str]()
        self._here = threading.local()
        self._lock = threading.Lock()

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that does the same, with its time counted for a part."""

        @functools.wraps(work)
        def inside(*args: Any, **kwargs: Any) -> Any:
            stack = self._stack()
            self._turn(stack)
            stack.append(part)
            try:
                return work(*args, **kwargs)
            finally:
                self._turn(stack)
                stack.pop()

        return inside

    def carried(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function whose time counts for the part of the thread that calls `carried`."""
        stack = self._stack()
        return self.timed(stack[-1], work) if stack else work

    def install(self) -> None:
        """Times the functions of `PARTS`; imports all that a run needs."""
        for part, names in PARTS.items():
            for name in names:
                owner, attribute = _owner(name)
                setattr(owner, attribute, self.timed(part, getattr(owner, attribute)))
        local = importlib.import_module("lwfed.federated.local")
        plain, measuring = local._gradients, self.timed(MEASURING, local._gradients)

        def gradients(*args: Any, **kwargs: Any) -> Any:
            return (plain if kwargs.get("cost") is None else measuring)(*args, **kwargs)

        local._gradients = gradients  # type: ignore[attr-defined]
        submit = ThreadPoolExecutor.submit

        def submit_here(pool: ThreadPoolExecutor, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
            return submit(pool, self.carried(work), *args, **kwargs)

        ThreadPoolExecutor.submit = submit_here  # type: ignore[method-assign]

    def split(self) -> dict[str, float]:
        """Returns the seconds of each part so far; what no part has is the rest."""
        with self._lock:
            found = dict(self.seconds)
        return {**found, REST: time.process_time() - sum(found.values())}

    def _stack(self) -> list[str]:
        if not hasattr(self._here, "stack"):
            self._here.stack, self._here.since = [], time.thread_time()
        return self._here.stack

    def _turn(self, stack: list[str]) -> None:
        """Counts the time since the last turn for the part that runs on this thread."""
        now = time.thread_time()
        if stack:
            with self._lock:
                self.seconds[stack[-1]] += now - self._here.since
        self._here.since = now


def started(clock: Clock) -> None:
    """Counts all CPU time so far as the start of the process."""
    clock.seconds[STARTS] = time.process_time()


def peak_bytes() -> int:
    """Returns the largest resident memory of this process (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _owner(name: str) -> tuple[Any, str]:
    """Returns the module or class that has a dotted name's last part, and that part."""
    parent, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(parent), attribute
    except ModuleNotFoundError:
        owner, last = _owner(parent)
        return getattr(owner, last), attribute
