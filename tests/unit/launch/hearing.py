"""A watch under test: what it hears of Jobs with the label `run=r`."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from lwfed.launch.kubernetes.api import Cluster
from lwfed.launch.kubernetes.watch import Heard, News, Queue, Watch
from tests.unit.launch.api_server import ApiServer


def add(server: ApiServer, name: str, run: str = "r") -> None:
    """Makes a Job of a run."""
    server.add("jobs", {"metadata": {"name": name, "labels": {"run": run}}, "spec": {}})


@contextmanager
def watching(
    cluster: Cluster, news: Queue, *, resource: Literal["jobs", "pods"] = "jobs", patience_s: float = 30
) -> Iterator[Watch]:
    """Gives a watch of the run `r`, for a while."""
    watch = Watch(cluster, resource, selector="run=r", news=news, patience_s=patience_s)
    try:
        yield watch
    finally:
        watch.close()
        watch._thread.join(timeout=10)
        assert not watch._thread.is_alive(), "a closed watch ends"


def told(news: Queue, count: int, *, within_s: float = 10) -> list[tuple[str, str]]:
    """Takes so many news; gives (kind, name) of each."""
    found = []
    for _ in range(count):
        try:
            item = news.get(timeout=within_s)
        except queue.Empty:
            raise AssertionError(f"{count} news were expected, {found} have come") from None
        assert isinstance(item, Heard), item
        found.append((item.kind, item.value["metadata"]["name"]))
    return found


def silent(news: Queue) -> bool:
    """Whether nothing is told for a moment."""
    try:
        item: News = news.get(timeout=0.3)
    except queue.Empty:
        return True
    raise AssertionError(item)
