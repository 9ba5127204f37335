"""Tiny runs of three strategies and two seeds, trained once for all tests of comparisons."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lwfed.report.compare.compare import RunHistory
from lwfed.run import runs
from lwfed.store.local import LocalStore
from tests.tiny import run_tiny

Make = Callable[..., list[RunHistory]]


@pytest.fixture(scope="session")
def make_histories(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Returns the records of runs: `make("layerwise:0", "end_to_end:1", ...)`; more overrides after a space."""
    root = tmp_path_factory.mktemp("compared")
    made: dict[str, RunHistory] = {}

    def make(*wanted: str) -> list[RunHistory]:
        for text in wanted:
            if text not in made:
                head, *more = text.split()
                strategy, _, seed = head.partition(":")
                done = run_tiny(root, f"strategy={strategy}", f"seed={seed}", *more)
                run = runs.read_run(LocalStore(root), done.run.run_id)
                made[text] = (run, *runs.history(LocalStore(root), run))
        return [made[text] for text in wanted]

    return make


@pytest.fixture(scope="session")
def six(make_histories: Make) -> list[RunHistory]:
    """Three strategies, two seeds."""
    return make_histories(*(f"{s}:{n}" for n in (0, 1) for s in ("layerwise", "end_to_end", "progressive")))
