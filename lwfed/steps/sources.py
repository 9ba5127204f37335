"""Opens the data of a run, and finds unreadable files before any work starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from lwfed.catalog.source import data_source
from lwfed.data.digests import FileDigests, list_files, version_of
from lwfed.data.left_out import UNREADABLE, UNUSED
from lwfed.data.partition import group_members, split_validation
from lwfed.data.protocol import Example, Source, open_source
from lwfed.plan.cohort import eligible_clients
from lwfed.round.shares import SERVER, root_for
from lwfed.run.events import Checking, Emit, Hashing, Warning
from lwfed.spec.data import CLIENT_MARK
from lwfed.spec.load import build_spec, to_values
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.store.refs import read_object
from lwfed.types.errors import DataError


def server_source(spec: RunSpec) -> Source:
    """Opens the data on which the server evaluates; these are all data if clients have none of their own."""
    return open_source(spec.data.model_copy(update={"root": root_for(spec.data.root, SERVER)}))


def client_sources(spec: RunSpec) -> dict[str, Source]:
    """Opens the own data (`{client}` in `data.root`) of the clients that take part; none if clients share all data."""
    if CLIENT_MARK not in (spec.data.root or ""):
        return {}
    return {
        client: open_source(spec.data.model_copy(update={"root": root_for(spec.data.root, client)}))
        for client in eligible_clients(spec.federation)
    }


def with_num_clients(spec: RunSpec, source: Source, *, bad: Container[str] = ()) -> RunSpec:
    """Returns a spec with one client per group of the examples that clients share, if it leaves their number open.

    Args:
        spec: The experiment.
        source: The server's data.
        bad: Examples that cannot be read and are skipped.

    Raises:
        DataError: An example has no group.
        SpecError: The quorum is larger than the number of groups.
    """
    if spec.federation.num_clients is not None:
        return spec
    kept = [example for example in source.examples("train") if example.id not in bad]
    shared, _ = split_validation(kept, fraction=spec.data.validation_fraction)
    groups = group_members(shared, plan=spec.federation.partition)
    return build_spec(to_values(spec), overrides=[f"federation.num_clients={len(groups)}"])


def data_versions(
    spec: RunSpec, source: Source, *, digests: FileDigests, emit: Emit, found: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Returns the versions of all data of a run: of the server's, and of each client's own.

    Args:
        spec: The experiment.
        source: The server's data.
        digests: Digests of the files.
        emit: Receives `Hashing`.
        found: Client -> its description of data that only it can see (`inspect_client`); None: all data are here.
    """
    versions = {SERVER: version_of(source, hashed(source, digests, emit=emit))}
    if found:
        return versions | {client: its["version"] for client, its in sorted(found.items())}
    clients = client_sources(spec)
    return versions | {c: version_of(own, hashed(own, digests, emit=emit)) for c, own in clients.items()}


def hashed(source: Source, digests: FileDigests, *, emit: Emit) -> dict[str, str]:
    """Returns the digests of a source's files and reports progress."""
    return list_files(source, digests, progress=lambda done, total: emit(Hashing(done=done, total=total)))


def usable(source: Source, split: str, *, version: str, spec: RunSpec, store: Store, emit: Emit) -> Sequence[Example]:
    """Returns the readable examples; each file is checked once per version of the data, and the result is stored.

    Raises:
        DataError: A file cannot be read and the spec does not skip such files, or none can be read.
    """
    bad = checked(source, split, version=version, spec=spec, store=store, emit=emit)
    return readable(source, split, bad, spec=spec, emit=emit)


def checked(source: Source, split: str, *, version: str, spec: RunSpec, store: Store, emit: Emit) -> Mapping[str, str]:
    """Returns the examples that cannot be read, with the reasons, and stores them; see `unreadable`."""
    if data_source(spec.data.source).built_in:
        return {}
    ref = paths.checked_data(version, spec.model.modalities, split)
    known = read_object(store, ref, bad=dict)
    bad = unreadable(source, split, spec=spec, known=None if known is None else known["bad"], emit=emit)
    if known is None or known["bad"] != bad:
        store.write_ref(ref, {"bad": bad})
    return bad


def unreadable(
    source: Source, split: str, *, spec: RunSpec, known: Mapping[str, str] | None, emit: Emit
) -> Mapping[str, str]:
    """Reads every file of a split; returns the examples that cannot be read, with the reasons.

    Args:
        source: The data.
        split: `train` or `test`.
        spec: The experiment.
        known: Earlier results; only these examples are checked again, since they may be fixed. None: check all.
        emit: Receives `Checking`.
    """
    again = known is not None and spec.data.on_bad_example == "fail"
    if data_source(spec.data.source).built_in or (known is not None and not again):
        return known or {}
    doubtful = [e for e in source.examples(split) if known is None or e.id in known]
    if not doubtful:
        return {}
    from lwfed.data.batches import check_examples

    def report(done: int, total: int) -> None:
        emit(Checking(split=split, done=done, total=total))

    return check_examples(
        source, examples=doubtful, modalities=spec.model.modalities, workers=spec.data.workers, progress=report
    )


def readable(source: Source, split: str, bad: Mapping[str, str], *, spec: RunSpec, emit: Emit) -> Sequence[Example]:
    """Returns the examples of a split without the bad ones.

    Raises:
        DataError: There are bad examples and the spec does not skip them, or none is left.
    """
    examples = source.examples(split)
    if bad and spec.data.on_bad_example == "fail":
        first = next(iter(sorted(bad)))
        raise DataError(
            f"{len(bad)} of {len(examples)} {split} examples cannot be read: {bad[first]}",
            remedy="fix or remove them, or skip them with -o data.on_bad_example=skip",
        )
    if bad:
        names = ", ".join(sorted(bad)[:5])
        emit(Warning(message=f"{len(bad)} {split} example(s) cannot be read and are skipped: {names}"))
    kept = [example for example in examples if example.id not in bad]
    if not kept:
        raise DataError(f"no {split} example can be read", remedy=f"check {spec.data.root}")
    return kept


def with_validation(
    source: Source, examples: Sequence[Example], *, fraction: float
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Returns the examples that clients share, and those for validation: the source's own, or a fraction of the former.

    Args:
        source: The server's data.
        examples: Its readable training examples.
        fraction: Fraction to set apart, in [0, 1).

    Raises:
        DataError: A fraction is wanted and is fewer than two examples.
    """
    if not fraction:
        return examples, source.examples("validation")
    shared, chosen = split_validation(examples, fraction=fraction)
    if len(chosen) < 2:
        raise DataError(
            f"data.validation_fraction {fraction:g} leaves {len(chosen)} example(s) for validation",
            remedy="raise it, set it to 0, or in a local partition add training examples to the server's folder",
        )
    return shared, chosen


def left_out(
    sources: Iterable[Source], *, bad: Mapping[str, int], unused: int = 0, found: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Counts what all data of a run leave out.

    Args:
        sources: The data that are here: the server's, and the clients' own.
        bad: Split -> number of its examples that cannot be read.
        unused: Number of training examples of no client that takes part.
        found: Client -> its description of data that only it can see; None: all data are here.

    Returns:
        What is left out -> how many, sorted.
    """
    counts = Counter({UNREADABLE: sum(bad.values()), UNUSED: unused})
    for source in sources:
        counts += Counter(source.left_out())
    for its in (found or {}).values():
        counts += Counter(its.get("left_out", {}))
    return dict(sorted(counts.items()))


def spec_at(spec: RunSpec, *, root: str | None) -> RunSpec:
    """Returns a spec with the data's folder on this machine; None leaves it unchanged."""
    if root is None:
        return spec
    return spec.model_copy(update={"data": spec.data.model_copy(update={"root": root})})
