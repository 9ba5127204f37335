"""Prepares a run: checks everything that can be wrong before any work starts, and predicts the costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lwfed.catalog.costs import Architecture
from lwfed.cost.architectures import architectures_of, cache_key
from lwfed.cost.groups import fitted_blocks, group_costs
from lwfed.cost.ledger import end_to_end_cost, stage_costs
from lwfed.data.digests import FileDigests, version_of
from lwfed.data.left_out import UNREADABLE
from lwfed.data.protocol import Example, Source
from lwfed.plan.stages import StagePlan, plan_stages
from lwfed.plan.strategies import title_of
from lwfed.round.shares import SERVER, check_of
from lwfed.run import runs
from lwfed.run.events import Emit
from lwfed.run.runs import Options
from lwfed.run.specs import with_absolute_paths
from lwfed.run.version import chosen_by, code_version
from lwfed.spec.load import to_values
from lwfed.spec.model import EncoderSpec, ModelSpec
from lwfed.spec.run import RunSpec
from lwfed.steps.captions import CaptionTokens, caption_tokens, refuse_unknown
from lwfed.steps.counting import count_clients, counts_of
from lwfed.steps.incomplete import refuse_incomplete, refuse_parts, refuse_unscored, refuse_untrained
from lwfed.steps.quorums import refuse_uncovered
from lwfed.steps.resume import refuse_another_plan, resumed, with_stages_of
from lwfed.steps.sources import (
    checked,
    client_sources,
    data_versions,
    hashed,
    left_out,
    readable,
    refuse_absent,
    refuse_classes,
    refuse_other_classes,
    refuse_without_validation,
    server_source,
    spec_at,
    usable,
    with_num_clients,
    with_validation,
)
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.canonical import digest_of
from lwfed.types.errors import DataError
from lwfed.types.records import DataRecord, RunRecord


def draft(
    spec: RunSpec,
    *,
    store: Store,
    options: Options,
    emit: Emit = lambda event: None,
    cache: Path | None = None,
    root: str | None = None,
    found: Mapping[str, Any] | None = None,
) -> RunRecord:
    """Drafts a run without writing or checking anything large; needs no torch if formulas describe the encoders.

    But where clients are counted by groups and bad examples are skipped, all training examples are checked first.

    Args:
        spec: The experiment.
        store: The store with its parent run.
        options: Its options.
        emit: Receives `Fetching` and `Hashing`.
        cache: Folder for counted architectures, digests of files, and files fetched from a bucket.
        root: The data's folder on this machine; None: the spec's.
        found: Client -> its description of data that only it can see; see `inspect_client`.

    Returns:
        A RunRecord; `prepare` fills in `data.clients`.

    Raises:
        SpecError: Stage cuts do not fit the encoders, or a stage not the devices of its clients.
        DataError: The data or the weights are missing, or the weights have an unsupported format.
        ResumeError: The run exists with another plan.
    """
    refuse_weights(spec.model)
    architectures = architectures_of(spec.model, folder=cache, count=count_architecture)
    depths = {modality: item.depth for modality, item in architectures.items()}
    spec = with_absolute_paths(spec, store=store)
    source = server_source(spec_at(spec, root=root), cache=cache, emit=emit)
    refuse_absent(spec, source)
    refuse_incomplete(spec, [source])
    digests, bad = FileDigests(cache), frozenset[str]()
    if spec.federation.num_clients is None and spec.data.on_bad_example == "skip":
        version = version_of(source, hashed(source, digests, emit=emit))
        found_bad = checked(source, "train", version=version, spec=spec, store=store, emit=emit)
        readable(source, "train", found_bad, spec=spec, emit=lambda event: None)
        bad = frozenset(found_bad)
    spec = with_num_clients(spec, source, bad=bad)
    refuse_classes(spec, source)
    if spec.stages.gate is not None and spec.stages.gate.kind == "improvement":
        refuse_without_validation(spec, source, what="`stages.gate`")
    num_classes = len(source.classes) if spec.model.objective.kind == "supervised" else None
    fitted = fitted_blocks(spec, depths=depths, architectures=architectures, num_classes=num_classes)
    plans = plan_stages(spec, depths=depths, fitted=fitted)
    here = spec_at(spec, root=root)
    versions = data_versions(here, source, digests=digests, emit=emit, found=found, cache=cache)
    data = versions if len(versions) > 1 else versions[SERVER]
    now = datetime.now(UTC)
    run_id = options.run_id or runs.new_run_id(spec, now=now)
    run = RunRecord(
        run_id=run_id,
        name=spec.name,
        created=now.isoformat(timespec="seconds"),
        spec=to_values(spec),
        strategy=title_of(spec),
        stages=[],
        parent=None,
        salt=run_id if options.fresh else "",
        depths=depths,
        **({"fitted": fitted} if fitted else {}),
        model=_resolved(spec.model).model_dump(mode="json"),
        num_classes=num_classes,
        data=DataRecord(
            source=spec.data.source,
            version=digest_of({"data": data, "weights": _weights_versions(spec)}),
            versions=versions,
            num_train=len(source.examples("train")),
            num_test=len(source.examples("test")),
            clients={},
            classes=list(source.classes),
            tokenizers=_tokenizers(spec.model),
        ),
        code_version=code_version(chosen_by(spec)),
        **_predict(plans, architectures=architectures, num_classes=num_classes),
    )
    if options.parent is not None:
        run = with_stages_of(run, options.parent, store=store)
    refuse_another_plan(run, store=store)
    return run


def prepare(
    run: RunRecord,
    *,
    store: Store,
    emit: Emit,
    cache: Path | None = None,
    root: str | None = None,
    found: Mapping[str, Any] | None = None,
) -> RunRecord:
    """Checks the data and the clients' shares, and writes the run to the store.

    Args:
        run: The run, as returned by `draft`.
        store: The store.
        emit: Receives `Fetching`, `Hashing`, `Checking` and `Warning`.
        cache: Folder for counted architectures, digests of files, and files fetched from a bucket.
        root: The data's folder on this machine; None: the spec's.
        found: Client -> its description of data that only it can see.

    Returns:
        The complete run.

    Raises:
        DataError: Files cannot be read, or a client has too few examples or none that teaches something.
        SpecError: No validation example can have the metric that decides.
    """
    existing = resumed(run, store=store)
    if existing is not None:
        return existing
    spec = spec_at(runs.spec_of(run), root=root)
    versions, source = run.data.versions, server_source(spec, cache=cache, emit=emit)
    own = {} if found else client_sources(spec, cache=cache, emit=emit)
    here = {SERVER: source, **own}
    refuse_incomplete(spec, own.values())
    _list_files(here, versions=versions, digests=FileDigests(cache), store=store, emit=emit)

    missing = Counter[str]()

    def read(who: str, split: str) -> Sequence[Example]:
        examples, others = usable(here[who], split, version=versions[who], spec=spec, store=store, emit=emit)
        missing.update(others)
        return examples

    tested = read(SERVER, "test")
    fraction = spec.data.validation_fraction
    everything = read(SERVER, "train") if fraction or not (found or own) else ()
    given = () if fraction else source.examples("validation")
    shared, validation = with_validation(everything, own=given and read(SERVER, "validation"), fraction=fraction)
    refuse_unscored(spec, tested=tested, validation=validation, emit=emit)
    theirs = {client: data.classes for client, data in own.items()}
    theirs |= {client: its["classes"] for client, its in (found or {}).items() if "classes" in its}
    refuse_other_classes(spec, run.data.classes, theirs=theirs)
    tokens, unused = CaptionTokens(), 0
    kept = {client: read(client, "train") for client in own}
    refuse_unknown(spec, {"the server": tested, **(kept or {"the clients": shared})}, emit=emit)
    if found:
        for its in found.values():  # clients may not write it: their credentials only allow their own prefix
            store.write_ref(check_of(its["version"], spec.model, "train"), {"bad": its["bad"]})
        missing[UNREADABLE] += sum(len(its["bad"]) for its in found.values())
        clients = counts_of(found)
    else:
        train = kept if own else dict.fromkeys(spec.federation.eligible_ids, shared)
        clients = count_clients(spec, runs.plans_of(run)[0], train)
        unused = 0 if own else len(shared) - clients.used
        tokens = caption_tokens(spec, train.values(), emit=emit)
    refuse_parts(spec, sizes=clients.sizes, lacks=clients.lacks)
    refuse_untrained(spec, lacks=clients.lacks, sizes=clients.sizes)
    architectures = architectures_of(spec.model, folder=cache, count=count_architecture)
    known = run.data.changed(clients=clients.sizes, **({"lacks": clients.lacks} if clients.lacks else {}))
    run = run.changed(data=known)
    plans = runs.plans_of(run)
    refuse_uncovered(plans, sizes=clients.sizes, lacks=clients.lacks, emit=emit)
    predicted = _predict(
        [_with_reached_batch(plan, most_examples=max(clients.sizes.values())) for plan in plans],
        architectures=architectures,
        num_classes=run.num_classes,
        tokens=tokens,
    )
    counts: dict[str, Any] = {
        "num_test": len(tested),
        "num_train": clients.used,
        "num_validation": len(validation),
    }
    images = len({example.item("image") for example in tested if example.has("image")})
    if 0 < images < len(tested):
        counts["num_test_images"] = images
    if spec.model.balances_classes:
        counts["class_counts"] = [clients.labels[str(label)] for label in range(run.num_classes or 0)]
    if others := left_out(here.values(), missing=missing, unused=unused, found=found):
        counts["left_out"] = others
    run = run.changed(data=run.data.changed(**counts), **predicted)
    if not store.write_ref(paths.run(run.run_id), run.to_values(), if_absent=True):  # another process was first
        return resumed(run, store=store) or run
    return run


def _list_files(
    here: Mapping[str, Source], *, versions: Mapping[str, str], digests: FileDigests, store: Store, emit: Emit
) -> None:
    """Writes the digests of all files that this machine sees, by which a file that changes later is found.

    Raises:
        DataError: A file has changed since the run was drafted.
    """
    for who, data in here.items():
        listing = hashed(data, digests, emit=emit)
        if version_of(data, listing) != versions[who]:
            raise DataError("the data are changing", remedy="wait until nothing writes to them, and start again")
        if listing:
            store.write_ref(paths.data_files(versions[who]), listing, if_absent=True)


_COUNTED: dict[str, dict[str, Any]] = {}
"""What this process has counted: an encoder's key -> its counts."""


def count_architecture(encoder: EncoderSpec) -> dict[str, Any]:
    """Counts an encoder that the ledger's table lacks, once per process; imports torch."""
    from lwfed.models.inspect import count

    key = cache_key(encoder)
    if key not in _COUNTED:
        _COUNTED[key] = count(encoder)
    return _COUNTED[key]


def refuse_weights(model: ModelSpec) -> None:
    """Raises DataError if local weights are missing, damaged or of an unsupported format or type, first of all."""
    for encoder in model.encoders.values():
        if encoder.weights:
            from lwfed.models.weights import checked_files, is_hub_id

            if not is_hub_id(encoder.weights):
                checked_files(encoder.weights)


def _resolved(model: ModelSpec) -> ModelSpec:
    """Replaces encoders' folders or hub ids, which other machines may lack, by their whole configuration."""
    if all(encoder.weights is None for encoder in model.encoders.values()):
        return model
    from lwfed.models.pretrained import resolved

    return model.model_copy(update={"encoders": {m: resolved(encoder) for m, encoder in model.encoders.items()}})


def _weights_versions(spec: RunSpec) -> dict[str, str]:
    """Returns modality -> identity of its weights and tokenizer, for encoders that have files."""
    named = {m: encoder for m, encoder in spec.model.encoders.items() if encoder.weights or encoder.tokenizer}
    if not named:
        return {}
    from lwfed.models.identity import weights_version

    versions = {modality: weights_version(encoder) for modality, encoder in named.items()}
    return {modality: version for modality, version in versions.items() if version}


def _tokenizers(model: ModelSpec) -> dict[str, str]:
    """Returns modality -> identity of its tokenizer, for encoders whose tokenizer has files."""
    from lwfed.models.identity import tokenizer_version

    versions = {modality: tokenizer_version(encoder) for modality, encoder in model.encoders.items()}
    return {modality: version for modality, version in versions.items() if version}


def _predict(
    plans: Sequence[StagePlan],
    *,
    architectures: Mapping[str, Architecture],
    num_classes: int | None,
    tokens: CaptionTokens | None = None,
) -> dict[str, Any]:
    tokens = tokens or CaptionTokens()
    price: Any = {"architectures": architectures, "num_classes": num_classes, "tokens": tokens.padded}
    costs = stage_costs(plans, **price, kept_tokens=tokens.alone)
    whole = end_to_end_cost(plans, **price)
    kinds = group_costs(plans, **price, kept_tokens=tokens.alone)
    predicted = [
        cost.to_values() | ({"kinds": {name: other.to_values() for name, other in others.items()}} if others else {})
        for cost, others in zip(costs, kinds, strict=True)
    ]
    return {"predicted": predicted, "end_to_end": whole.to_values()}


def _with_reached_batch(plan: StagePlan, *, most_examples: int) -> StagePlan:
    """Returns a plan with the batch size that the clients' numbers of examples allow."""
    batch = min(plan.training.batch_size, most_examples)
    return plan.model_copy(update={"training": plan.training.model_copy(update={"batch_size": batch})})
