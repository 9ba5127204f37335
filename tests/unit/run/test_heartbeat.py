"""Who watches a heartbeat ends when it stops, never while it beats, and never because the store is away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lwfed.run.heartbeat import beating, watch
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.errors import UnreachableError


class Scene:
    """A clock that only sleeping moves, and a store that shows a beat for each look."""

    def __init__(self, looks: list[Any]) -> None:
        self.looks, self.now, self.gone_at = list(looks), 0.0, float("nan")

    def read_ref(self, key: str) -> Any:
        assert key == paths.heartbeat("r")
        seen = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(seen, Exception):
            raise seen
        return seen

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def play(self) -> float:
        """Watches to the end; returns when the coordinator was taken for gone."""

        def gone() -> None:
            self.gone_at = self.now

        store: Any = self
        watch(
            store, "r", every_s=10, timeout_s=30, on_gone=gone, sleep=self.sleep, clock=lambda: self.now
        )  # fmt: skip
        return self.gone_at


def test_a_beat_that_stops_ends_the_watch_after_the_timeout() -> None:
    assert Scene([{"beat": 1}]).play() == 40  # seen at 10, and unchanged for 30


def test_a_beat_that_goes_on_never_does() -> None:
    assert Scene([{"beat": n} for n in range(20)]).play() == 230


def test_a_coordinator_that_never_showed_life_is_gone() -> None:
    assert Scene([None]).play() == 30


def test_time_without_a_store_does_not_count() -> None:
    away = UnreachableError("the store does not answer")
    assert Scene([{"beat": 1}, *[away] * 50, {"beat": 1}]).play() == 540


def test_a_new_coordinator_starts_the_time_again() -> None:
    assert Scene([{"beat": 9, "by": "a"}, {"beat": 9, "by": "a"}, {"beat": 1, "by": "b"}]).play() == 60


def test_a_coordinator_beats_until_it_is_done(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with beating(store, "r", every_s=0.02, by="me"):
        ends_at = time.monotonic() + 5
        while (store.read_ref(paths.heartbeat("r")) or {"beat": 0})["beat"] < 3:
            assert time.monotonic() < ends_at
            time.sleep(0.01)
    last = store.read_ref(paths.heartbeat("r"))
    time.sleep(0.1)
    assert store.read_ref(paths.heartbeat("r")) == last
    assert last["by"] == "me"
