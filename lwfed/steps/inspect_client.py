"""A client inspects data that only it can see and reports their properties, but never an example."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from lwfed.catalog.source import data_source
from lwfed.data.digests import FileDigests, version_of
from lwfed.data.left_out import UNREADABLE
from lwfed.round.shares import holdout_of
from lwfed.run.events import Emit
from lwfed.run.tasks import InspectTask
from lwfed.spec.load import build_spec
from lwfed.steps.captions import refuse_unknown
from lwfed.steps.incomplete import lacking, refuse_incomplete, refuse_untaught
from lwfed.steps.sources import hashed, readable, source_of, spec_at, unreadable
from lwfed.store import paths
from lwfed.store.protocol import Store


def inspect_client(task: InspectTask, *, store: Store, emit: Emit, cache: Path | None = None) -> dict[str, Any]:
    """Opens and checks a client's own data, and commits their description.

    Args:
        task: The client and its spec.
        store: The run's store.
        emit: Receives `Fetching`, `Hashing`, `Checking` and `Warning`.
        cache: Folder for digests of files, and files fetched from a bucket, unless the place has one that is shared.

    Returns:
        The committed value: client, version, num_train (training examples), num_examples, bad (example -> why it
        cannot be read), left_out (what is part of no example or not used -> how many), classes, class_counts (label ->
        number of training examples) if the objective balances classes, and lacks (modality -> number of training
        examples without it) if there are such.

    Raises:
        DataError: The data are missing, unreadable, too few or teach nothing, or the tokenizer knows no word of their
            captions.
        SpecError: The client has several devices, and examples that lack a modality.
    """
    spec = spec_at(build_spec(task.spec), root=task.place.root)
    folder = cache if task.place.shared is None else Path(task.place.shared)
    source = source_of(task.client, spec, cache=folder, emit=emit)
    refuse_incomplete(spec, [source])
    version = version_of(source, hashed(source, FileDigests(folder), emit=emit))
    ref = paths.client_data(task.run_id, task.client)
    known = store.read_ref(ref)
    if known is not None and known["version"] != version:
        known = None
    bad = unreadable(source, "train", spec=spec, known=None if known is None else known["bad"], emit=emit)
    examples, missing = readable(source, "train", bad, spec=spec, emit=emit)
    del missing[UNREADABLE]  # told by name in `bad`
    if not data_source(spec.data.source).built_in:  # else nothing loads torch
        refuse_unknown(spec, {task.client: examples}, emit=emit)
    train, _ = holdout_of(
        task.client,
        range(len(examples)),
        fraction=spec.evaluation.holdout_fraction,
        seed=str(spec.seed),
        devices=spec.launch.devices,
    )
    mine = [examples[i] for i in train]
    refuse_untaught(task.client, mine, spec=spec)
    value: dict[str, Any] = {
        "client": task.client,
        "version": version,
        "num_examples": len(examples),
        "num_train": len(train),
        "bad": dict(bad),
        "left_out": dict(Counter(source.left_out()) + missing),
        "classes": list(source.classes),
    }
    if spec.model.balances_classes:
        value["class_counts"] = Counter(str(example.label) for example in mine)
    if lacked := lacking(mine, spec.model):
        value["lacks"] = lacked
    if value != known:
        store.write_ref(ref, value)
    return value
