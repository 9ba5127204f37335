"""Finds differences between specs of runs: those that make a comparison unfair, and those that name groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lwfed.run import runs
from lwfed.spec.load import to_values
from lwfed.tracking.metrics import flatten_params
from lwfed.types.errors import CheckpointError
from lwfed.types.records import RunRecord

UNRELATED = (
    *("seed", "name", "strategy", "stages.window", "store", "tracking"),
    *("launch", "kubernetes", "data.root", "data.workers"),
)
"""Keys of a spec in which runs of one group may differ, since they do not affect the computation."""


def differences(compared: Sequence[RunRecord]) -> list[str]:
    """Returns the differences that make a comparison unfair: in data, test data or model."""
    found = []
    for what, settings in (("data", _data), ("model", _model)):
        values = {run.run_id: settings(run) for run in compared}
        for key in sorted(set().union(*values.values())):
            named: dict[str, str] = {}
            for run_id, value in values.items():
                named.setdefault(value.get(key, "nothing"), run_id)
            if len(named) > 1:
                shown = " and ".join(f"{value[:40]} ({run_id})" for value, run_id in list(named.items())[:3])
                found.append(f"{what}: {key} is {shown}")
    data_keys = [text for text in found if text.startswith("data: ")]
    if len(data_keys) > 1:  # the version only repeats the other differences
        found = [text for text in found if not text.startswith("data: version")]
    return found


def work_of(run: RunRecord) -> dict[str, str]:
    """Returns the part of a run's spec that decides its work, as dotted names and texts."""
    flat = flatten_params(_complete(run))
    return {
        name: value
        for name, value in flat.items()
        if not any(name == key or name.startswith(f"{key}.") for key in UNRELATED)
    }


def _complete(run: RunRecord) -> Mapping[str, Any]:
    """Returns a run's spec with all keys, at their defaults if they are newer than the run; as stored if damaged."""
    try:
        return to_values(runs.spec_of(run))
    except CheckpointError:
        return run.spec


def _data(run: RunRecord) -> dict[str, str]:
    spec, data = run.spec["data"], run.data
    drawn = flatten_params(spec["shapes"], prefix="shapes.") if data.source == "shapes" else {}
    return {"source": data.source, "version": data.version[:12], "num_test": str(data.num_test), **drawn}


def _model(run: RunRecord) -> dict[str, str]:
    """Returns the model's settings, without its division into stages."""
    flat = flatten_params(_complete(run)["model"])
    depths = {f"{modality} blocks": str(depth) for modality, depth in run.depths.items()}
    return {name: value for name, value in flat.items() if not name.endswith("blocks_per_stage")} | depths


def labels_of(groups: Mapping[str, tuple[str, Mapping[str, str]]]) -> dict[str, str]:
    """Returns labels of groups: the strategy and, if it has several groups, the first two keys in which they differ."""
    labels = {}
    for key, (strategy, work) in groups.items():
        peers = [other for _, (name, other) in groups.items() if name == strategy]
        odd = [name for name in work if any(other.get(name) != work[name] for other in peers)]
        parts = [f"{name.rpartition('.')[2]} {work[name][:16]}" for name in odd[:2]]
        labels[key] = ", ".join([strategy.replace("_", " "), *parts])
    return labels


def setting_notes(works: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Returns a sentence on the keys in which the groups' specs differ, if they do."""
    values = list(works.values())
    names = sorted({name for work in values for name in work})
    odd = [name for name in names if len({work.get(name) for work in values}) > 1]
    odd = [name for name in odd if not any(other.startswith(f"{name}.") for other in odd)]
    if not odd:
        return []
    return [f"Their specs differ in {', '.join(odd[:12])}{' and others' if len(odd) > 12 else ''}."]
