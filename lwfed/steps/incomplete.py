"""Checks of examples that lack a modality, before any work starts, and their count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lwfed.catalog.source import data_source
from lwfed.data.incomplete import examples_with, lacked_by, shared_by, usable_of
from lwfed.data.partition import split_validation
from lwfed.data.protocol import Example, Source
from lwfed.plan.groups import untrained
from lwfed.run.events import Emit, Warning
from lwfed.spec.gates import ImprovementGateSpec
from lwfed.spec.model import ModelSpec
from lwfed.spec.run import RunSpec
from lwfed.types.errors import DataError, SpecError
from lwfed.types.modalities import retrieval_task

SPLITS = ("train", "validation", "test")


def refuse_incomplete(spec: RunSpec, sources: Iterable[Source]) -> None:
    """Raises DataError if `data.incomplete` is `fail` and an example lacks a modality of the model."""
    modalities = spec.model.modalities
    for source in sources if spec.data.incomplete == "fail" else ():
        for split in SPLITS:
            examples = source.examples(split)
            found = [example for example in examples if lacked_by(example, modalities)]
            if found:
                raise DataError(
                    f"{len(found)} of {len(examples)} {split} examples lack a modality: {found[0].id} has no "
                    f"{' and no '.join(lacked_by(found[0], modalities))}",
                    remedy="complete or remove them; or set data.incomplete=use, which takes what they have, or "
                    "data.incomplete=skip, which leaves them out",
                )


def lacking(examples: Sequence[Example], model: ModelSpec) -> dict[str, int]:
    """Returns modality -> number of examples that lack it, if any do."""
    return {m: len(examples) - count for m, count in examples_with(examples, model.modalities).items()}


def refuse_untaught(client: str, examples: Sequence[Example], *, spec: RunSpec) -> None:
    """Refuses a client some of whose training examples lack a modality, if it cannot train on them.

    A pair of modalities, or one where classes are learnt, teaches something if two examples have it.

    Raises:
        DataError: No two examples have such a pair or modality.
        SpecError: The client has several devices, which would need the same modalities.
    """
    model = spec.model
    lacked = lacking(examples, model)
    if not lacked:
        return
    if spec.launch.devices > 1:
        raise SpecError(
            f"{sum(bool(lacked_by(e, model.modalities)) for e in examples)} examples of {client} lack a modality "
            f"({', '.join(lacked)}), and each of its {spec.launch.devices} devices would have other modalities",
            remedy="set launch.devices=1, or leave them out with data.incomplete=skip",
        )
    if max(shared_by(examples, model.modalities, fewest=model.fewest_modalities).values()) < 2:
        what = "the same two modalities" if model.fewest_modalities > 1 else "a modality in common"
        raise DataError(
            f"no two of the {len(examples)} training examples of {client} have {what}: it can learn nothing",
            remedy="give the client more data, or fewer clients with federation.num_clients",
        )


def refuse_parts(spec: RunSpec, *, sizes: Mapping[str, int], lacks: Mapping[str, Mapping[str, int]]) -> None:
    """Raises SpecError if examples lack a modality and clients are sampled by size, or more than needed are asked.

    The weights that make a sample by size unbiased are those of whole clients. The first updates of an over-sampled
    round may lack a modality that those of the clients it stops would have.

    Args:
        spec: The experiment.
        sizes: Client -> number of examples it trains on.
        lacks: Client -> modality -> number of these that lack it.
    """
    short = untrained(lacks, sizes=sizes)
    if short and spec.federation.oversample > 1:
        client, modalities = next(iter(short.items()))
        raise SpecError(
            f"`federation.oversample` is {spec.federation.oversample:g}, and {client} has no {modalities[0]}: a round "
            "may end before it has an update of it",
            remedy="set federation.oversample=1",
        )
    if lacks and spec.federation.sampling == "by_size":
        client, lacked = next(iter(lacks.items()))
        modality, count = next(iter(lacked.items()))
        raise SpecError(
            f"`federation.sampling` is by_size, and {count} of {sizes[client]} examples of {client} lack {modality}: "
            "the weights of such a sample are those of clients that have everything",
            remedy="sample uniformly or round_robin, or leave such examples out with data.incomplete=skip",
        )


def refuse_untrained(spec: RunSpec, *, lacks: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int]) -> None:
    """Raises DataError if all training examples of all clients lack a modality of the model.

    Args:
        spec: The experiment.
        lacks: Client -> modality -> number of its examples that lack it.
        sizes: Client -> number of its examples.
    """
    for modality in spec.model.modalities:
        if all(lacks.get(client, {}).get(modality, 0) == size for client, size in sizes.items()):
            raise DataError(
                f"no client has a training example with {modality}", remedy=data_source(spec.data.source).absent
            )


def refuse_unscored(spec: RunSpec, *, tested: Sequence[Example], validation: Sequence[Example], emit: Emit) -> None:
    """Warns of metrics that will be missing. Raises SpecError if a gate is decided by such a metric."""
    gate = spec.stages.gate
    if isinstance(gate, ImprovementGateSpec):
        metric = gate.metric or spec.validation_metric
        refuse_metric(metric, validation, model=spec.model, what="`stages.gate`")
    for split, examples in (("test", tested), ("validation", validation)):
        if examples:
            warn_of_pairs(split, examples, model=spec.model, emit=emit)


def warn_of_pairs(split: str, examples: Sequence[Example], *, model: ModelSpec, emit: Emit) -> None:
    """Warns of pairs of modalities that no example of the server has, whose metrics will be missing."""
    if model.fewest_modalities < 2:
        return
    missing = [pair for pair, count in shared_by(examples, model.modalities, fewest=2).items() if not count]
    for a, b in missing:
        emit(
            Warning(
                message=f"no {split} example has both {a} and {b}: there will be no {split}/{retrieval_task(a, b)} and "
                f"{split}/{retrieval_task(b, a)}"
            )
        )


def validation_of(spec: RunSpec, source: Source) -> list[Example]:
    """Returns the server's validation examples, not yet checked: its own, or a fraction of those to train on."""
    fraction = spec.data.validation_fraction
    examples = source.examples("train" if fraction else "validation")
    kept, _ = usable_of(examples, model=spec.model, incomplete=spec.data.incomplete)
    return split_validation(kept, fraction=fraction)[1] if fraction else kept


def refuse_metric(metric: str, examples: Sequence[Example], *, model: ModelSpec, what: str) -> None:
    """Raises SpecError if a metric on validation examples can never exist, because none has its modalities.

    Args:
        metric: Such as `validation/t2i/R@1`.
        examples: The validation examples.
        model: The model.
        what: What the metric decides.
    """
    if model.fewest_modalities < 2:
        return
    pairs = shared_by(examples, model.modalities, fewest=2)
    counts: Mapping[str, int] = {retrieval_task(*way): n for pair, n in pairs.items() for way in (pair, pair[::-1])}
    name = metric.removeprefix("validation/").partition("/")[0]
    counts = {**counts, "loss": max(pairs.values()) - 1, "zero_shot": sum(e.has("image") for e in examples)}
    if counts.get(name, 1) < 1:
        known = next((task for task, count in counts.items() if count > 0 and task not in ("loss", "zero_shot")), None)
        needed = "two examples that share two modalities" if name == "loss" else "an example with its modalities"
        raise SpecError(
            f"{what} is decided by {metric}, which needs {needed}; the {len(examples)} validation examples have none",
            remedy="add validation examples"
            + (f", or name another metric, such as validation/{known}/R@1" if known else ""),
        )
