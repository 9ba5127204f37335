"""Opens the data of a run, and finds unreadable files before any work starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lwfed.catalog.source import data_source
from lwfed.data.digests import FileDigests, list_files, version_of
from lwfed.data.incomplete import lacked_by, usable_of
from lwfed.data.left_out import UNREADABLE, UNUSED
from lwfed.data.partition import group_members, split_validation
from lwfed.data.protocol import Example, Source, open_source
from lwfed.formats import left_out_text
from lwfed.round.shares import SERVER, check_of, root_for, windows_of
from lwfed.run.events import Checking, Emit, Hashing, Warning, fetching_reporter
from lwfed.spec.data import CLIENT_MARK
from lwfed.spec.load import build_spec, to_values
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.store.refs import read_object
from lwfed.types.errors import DataError, SpecError


def source_of(who: str, spec: RunSpec, *, cache: Path | None = None, emit: Emit | None = None) -> Source:
    """Opens the data of a client, or of the server.

    Args:
        who: A client's id, or `server`.
        spec: The experiment.
        cache: Folder for files fetched from a bucket; None: the machine's cache folder.
        emit: Receives `Fetching`.
    """
    data = spec.data.model_copy(update={"root": root_for(spec.data.root, who)})
    return open_source(data, cache=cache, fetching=fetching_reporter(emit))


def server_source(spec: RunSpec, *, cache: Path | None = None, emit: Emit | None = None) -> Source:
    """Opens the data on which the server evaluates; these are all data if clients have none of their own."""
    return source_of(SERVER, spec, cache=cache, emit=emit)


def client_sources(spec: RunSpec, *, cache: Path | None = None, emit: Emit | None = None) -> dict[str, Source]:
    """Opens the own data (`{client}` in `data.root`) of the clients that take part; none if clients share all data."""
    if CLIENT_MARK not in (spec.data.root or ""):
        return {}
    return {client: source_of(client, spec, cache=cache, emit=emit) for client in spec.federation.eligible_ids}


def refuse_without_validation(spec: RunSpec, source: Source | None, *, what: str) -> None:
    """Raises SpecError if something is to be decided by validation examples and there are none.

    Args:
        spec: The experiment.
        source: The server's data; None if only other machines see them: then a fraction must be set.
        what: What needs them.
    """
    if not spec.data.validation_fraction and (source is None or not source.examples("validation")):
        raise SpecError(
            f"{what} needs validation examples: choosing by test examples would make their scores too good",
            remedy="set -o data.validation_fraction=0.1, or data.shapes.validation for shapes",
        )


def refuse_classes(spec: RunSpec, source: Source) -> None:
    """Raises SpecError if the zero-shot classes or the classes' weights do not fit the data's labels."""
    named = spec.evaluation.classes
    if named and source.classes and len(named) != len(source.classes):
        raise SpecError(
            f"`evaluation.classes` names {len(named)} classes and the data have {len(source.classes)}",
            remedy=f"name one class for each of: {', '.join(source.classes)}",
        )
    objective = spec.model.objective
    weights = objective.class_weights if objective.kind == "supervised" else None
    if isinstance(weights, tuple) and len(weights) != len(source.classes):
        raise SpecError(
            f"`model.objective.class_weights` has {len(weights)} entries for {len(source.classes)} classes",
            remedy=f"give one weight for each of: {', '.join(source.classes)}",
        )


def with_num_clients(spec: RunSpec, source: Source, *, bad: Container[str] = ()) -> RunSpec:
    """Returns a spec with one client per group of the examples that clients share, if it leaves their number open.

    Args:
        spec: The experiment.
        source: The server's data.
        bad: Examples that cannot be read and are skipped.

    Raises:
        DataError: An example has no group, or there is no example.
        SpecError: The quorum is larger than the number of groups.
    """
    if spec.federation.num_clients is not None:
        return spec
    readable = (example for example in source.examples("train") if example.id not in bad)
    kept, missing = usable_of(readable, model=spec.model, incomplete=spec.data.incomplete)
    if not kept:
        raise _no_example("train", missing, first="", root=spec.data.root)
    shared, _ = split_validation(kept, fraction=spec.data.validation_fraction)
    groups = group_members(shared, plan=spec.federation.partition)
    return build_spec(to_values(spec), overrides=[f"federation.num_clients={len(groups)}"])


def data_versions(
    spec: RunSpec,
    source: Source,
    *,
    digests: FileDigests,
    emit: Emit,
    found: Mapping[str, Any] | None = None,
    cache: Path | None = None,
) -> dict[str, str]:
    """Returns the versions of all data of a run: of the server's, and of each client's own.

    Args:
        spec: The experiment.
        source: The server's data.
        digests: Digests of the files.
        emit: Receives `Fetching` and `Hashing`.
        found: Client -> its description of data that only it can see (`inspect_client`); None: all data are here.
        cache: Folder for files fetched from a bucket; None: the machine's cache folder.
    """
    versions = {SERVER: version_of(source, hashed(source, digests, emit=emit))}
    if found:
        return versions | {client: its["version"] for client, its in sorted(found.items())}
    clients = client_sources(spec, cache=cache, emit=emit)
    return versions | {c: version_of(own, hashed(own, digests, emit=emit)) for c, own in clients.items()}


def hashed(source: Source, digests: FileDigests, *, emit: Emit) -> dict[str, str]:
    """Returns the digests of a source's files and reports progress."""
    return list_files(source, digests, progress=lambda done, total: emit(Hashing(done=done, total=total)))


def usable(
    source: Source, split: str, *, version: str, spec: RunSpec, store: Store, emit: Emit
) -> tuple[Sequence[Example], Counter[str]]:
    """Returns the examples that can be read and used, and why others are left out -> how many.

    Each file is checked once per version of the data, and the result is stored.

    Raises:
        DataError: A file cannot be read and the spec does not skip such files, or no example is left.
    """
    bad = checked(source, split, version=version, spec=spec, store=store, emit=emit)
    return readable(source, split, bad, spec=spec, emit=emit)


def checked(source: Source, split: str, *, version: str, spec: RunSpec, store: Store, emit: Emit) -> Mapping[str, str]:
    """Returns the examples that cannot be read, with the reasons, and stores them; see `unreadable`."""
    if data_source(spec.data.source).built_in:
        return {}
    ref = check_of(version, spec.model, split)
    known = read_object(store, ref, bad=dict)
    bad = unreadable(source, split, spec=spec, known=None if known is None else known["bad"], emit=emit)
    if known is None or known["bad"] != bad:
        store.write_ref(ref, {"bad": bad})
    return bad


def unreadable(
    source: Source, split: str, *, spec: RunSpec, known: Mapping[str, str] | None, emit: Emit
) -> Mapping[str, str]:
    """Reads every file of a split; returns the examples that the model cannot read, with the reasons.

    Args:
        source: The data.
        split: `train` or `test`.
        spec: The experiment.
        known: Earlier results; of these, examples are checked again if they may be fixed, or lack a modality: earlier
            versions refused to read those. None: check all.
        emit: Receives `Checking`.
    """
    if data_source(spec.data.source).built_in:
        return {}
    again = spec.data.on_bad_example == "fail"
    doubtful = [
        example
        for example in source.examples(split)
        if known is None or (example.id in known and (again or lacked_by(example, spec.model.modalities)))
    ]
    names = {example.id for example in doubtful}
    still = {name: problem for name, problem in (known or {}).items() if name not in names and not again}
    if not doubtful:
        return still
    from lwfed.data.batches import check_examples

    def report(done: int, total: int) -> None:
        emit(Checking(split=split, done=done, total=total))

    return still | check_examples(
        source, examples=doubtful, modalities=spec.model.modalities, windows=windows_of(spec.model),
        workers=spec.data.workers, progress=report,
    )  # fmt: skip


def readable(
    source: Source, split: str, bad: Mapping[str, str], *, spec: RunSpec, emit: Emit
) -> tuple[Sequence[Example], Counter[str]]:
    """Returns the examples of a split that can be read and used, and why others are left out -> how many.

    Args:
        source: The data.
        split: `train`, `validation` or `test`.
        bad: The examples that cannot be read.
        spec: The experiment.
        emit: Receives `Warning`.

    Raises:
        DataError: There are bad examples and the spec does not skip them, or none is left.
    """
    examples = source.examples(split)
    first = next((f": {bad[name]}" for name in sorted(bad)), "")
    if bad and spec.data.on_bad_example == "fail":
        raise DataError(
            f"{len(bad)} of {len(examples)} {split} examples cannot be read{first}",
            remedy="fix or remove them, or skip them with -o data.on_bad_example=skip",
        )
    if bad:
        names = ", ".join(sorted(bad)[:5])
        emit(Warning(message=f"{len(bad)} {split} example(s) cannot be read and are skipped: {names}"))
    kept, missing = usable_of(
        (example for example in examples if example.id not in bad), model=spec.model, incomplete=spec.data.incomplete
    )
    if not kept:
        raise _no_example(split, missing, first=first, root=spec.data.root)
    return kept, missing + Counter({UNREADABLE: len(bad)})


def _no_example(split: str, missing: Mapping[str, int], *, first: str, root: str | None) -> DataError:
    why = f"that can be used; {left_out_text(missing)}" if missing else f"or none can be read{first}"
    return DataError(f"there is no {split} example, {why}", remedy=f"check {root}")


def with_validation(
    examples: Sequence[Example], *, own: Sequence[Example], fraction: float
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Returns the examples that clients share, and those for validation: the source's own, or a fraction of the former.

    Args:
        examples: The server's readable training examples.
        own: Its readable validation examples, for a fraction of 0.
        fraction: Fraction to set apart, in [0, 1).

    Raises:
        DataError: A fraction is wanted and is fewer than two examples.
    """
    if not fraction:
        return examples, own
    shared, chosen = split_validation(examples, fraction=fraction)
    if len(chosen) < 2:
        raise DataError(
            f"data.validation_fraction {fraction:g} leaves {len(chosen)} example(s) for validation",
            remedy="raise it, set it to 0, or in a local partition add training examples to the server's folder",
        )
    return shared, chosen


def refuse_absent(spec: RunSpec, source: Source) -> None:
    """Raises DataError if no example has a modality, or no example a label, that the spec needs.

    Where clients have folders of their own, the server's examples may lack a modality.
    """
    examples = [example for split in ("train", "validation", "test") for example in source.examples(split)]
    needed = () if CLIENT_MARK in (spec.data.root or "") else spec.model.modalities
    absent = [m for m in needed if not any(example.has(m) for example in examples)]
    if spec.model.objective.kind == "supervised" and not source.classes:
        absent.append("label")
    if absent and examples:
        fields = sorted({name for example in examples for name in example.fields})
        raise DataError(
            f"no example of {spec.data.root} has a modality or label that the spec needs: {', '.join(absent)}; "
            f"its further fields: {', '.join(fields)}",
            remedy=data_source(spec.data.source).absent,
        )


def refuse_other_classes(spec: RunSpec, classes: Sequence[str], *, theirs: Mapping[str, Sequence[str]]) -> None:
    """Raises DataError if a client's classes are not the server's, since labels are their numbers."""
    for client, own in sorted(theirs.items()) if spec.model.objective.kind == "supervised" else ():
        if list(own) != list(classes):
            other = sorted(set(own) ^ set(classes)) or list(own)
            raise DataError(
                f"the classes of {client} are not the server's: {', '.join(other[:5])}",
                remedy="let all folders have the same classes, or with a table name them in data.classes",
            )


def left_out(
    sources: Iterable[Source], *, missing: Mapping[str, int], unused: int = 0, found: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Counts what all data of a run leave out.

    Args:
        sources: The data that are here: the server's, and the clients' own.
        missing: Why examples are left out -> how many.
        unused: Number of training examples of no client that takes part.
        found: Client -> its description of data that only it can see; None: all data are here.

    Returns:
        What is left out -> how many, sorted.
    """
    counts = Counter(missing) + Counter({UNUSED: unused})
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
