"""Records that a run is over, with its files and the model that MLflow registers; loads no torch for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lwfed.run import runs
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.tracking.protocol import Tracker


def tell_finish(run: runs.Run, summary: Mapping[str, Any], *, store: Store, tracker: Tracker) -> None:
    """Records that a run is over, with what the step `finish` wrote.

    Args:
        run: The run.
        summary: Its summary.
        store: Where it is.
        tracker: Where it is recorded.
    """
    run = runs.read_run(store, run["run_id"])  # its stages were noted while it went on
    keys = [paths.report(run["run_id"]), *store.list(paths.figure(run["run_id"], ""))]
    spec = runs.spec_of(run)
    model = {
        "uri": uri_of(store.uri, run["stages"][-1]["key"]),
        "digest": summary["digest"],
        "kind": spec.model.objective.kind,
        "modalities": list(spec.model.modalities),
        "classes": run["data"]["classes"],
    }
    tracker.finish(summary, artifacts=[store.fetch(key) for key in keys if store.has(key)], model=model)


def uri_of(store: str, key: str) -> str:
    """Returns the URI by which a stage's checkpoint is served: `<store URI>#<stage key>`."""
    return f"{store}#{key}"
