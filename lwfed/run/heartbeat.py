"""The coordinator's heartbeat: its pods end by themselves when it is gone for good.

Terminating a pipeline does not stop the pods. A beat is a number in the store; a pod watches that it changes, by its
own clock, so that no two clocks need to agree.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.errors import LwfedError


@contextmanager
def beating(store: Store, run_id: str, *, every_s: float, by: str) -> Iterator[None]:
    """Writes beats while the body runs; if the store does not answer, the next beat tries again.

    Args:
        store: The store to write to.
        run_id: The coordinator's run.
        every_s: Seconds between beats.
        by: Name of the coordinator, such as its pod.
    """
    over = threading.Event()
    key = paths.heartbeat(run_id)

    def beat() -> None:
        count = 0
        while True:
            count += 1
            with suppress(LwfedError):
                store.write_ref(key, {"beat": count, "by": by})
            if over.wait(every_s):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=every_s)


def watch(
    store: Store,
    run_id: str,
    *,
    every_s: float,
    timeout_s: float,
    on_gone: Callable[[], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Watches a coordinator until it is gone; meant to run in a thread.

    Time in which the store does not answer is not counted, because no beat could have been seen.

    Args:
        store: The store that holds the beats.
        run_id: The coordinator's run.
        every_s: Seconds between reads.
        timeout_s: Seconds without a new beat after which the coordinator is considered gone.
        on_gone: Called once, when the coordinator is gone.
        sleep: Sleeps for a number of seconds.
        clock: Returns seconds.
    """
    last, silent_s, looked = None, 0.0, clock()
    while silent_s < timeout_s:
        sleep(every_s)
        now = clock()
        try:
            seen = store.read_ref(paths.heartbeat(run_id))
        except LwfedError:
            looked = clock()
            continue
        silent_s = 0.0 if seen != last else silent_s + min(now - looked, 2 * every_s)
        last, looked = seen, now
    on_gone()
