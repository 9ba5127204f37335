"""The split of the readable examples among clients, and the part that each client holds out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lwfed.data.incomplete import usable_of
from lwfed.data.inputs import Window
from lwfed.data.partition import holdout, partition, split_validation
from lwfed.data.protocol import Example, Source
from lwfed.plan.stages import StagePlan
from lwfed.spec.data import CLIENT_MARK, PartitionSpec
from lwfed.spec.model import ModelSpec
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.store.refs import read_object
from lwfed.types.errors import DataError
from lwfed.types.modalities import kind_of
from lwfed.types.seeds import derive

SERVER = "server"


def root_for(root: str | None, who: str) -> str | None:
    """Returns the folder of a client's data, or of the server's test data."""
    return None if root is None else root.replace(CLIENT_MARK, who)


def windows_of(model: ModelSpec) -> dict[str, Window]:
    """Returns sensor -> shape of the windows that its encoder takes; loads torch if there is one."""
    sensors = {modality: encoder for modality, encoder in model.encoders.items() if kind_of(modality) == "series"}
    if not sensors:
        return {}
    from lwfed.models.build import input_settings

    return {modality: Window(**input_settings(encoder)) for modality, encoder in sensors.items()}


def check_of(version: str, model: ModelSpec, split: str) -> str:
    """Returns the key of the examples of a split that a model cannot read; a sensor's windows must fit its encoder."""
    windows = windows_of(model)
    needs = [f"{m}-{windows[m].length}x{windows[m].axes}" if m in windows else m for m in model.modalities]
    return paths.checked_data(version, needs, split)


def readable_examples(
    source: Source, split: str, *, version: str | None, model: ModelSpec, store: Store
) -> list[Example]:
    """Returns the examples of a split, except those that preparing the run found unreadable.

    Args:
        source: The data.
        split: `train`, `validation` or `test`.
        version: The version of the data when they were checked; None if it is not known.
        model: The model that reads them.
        store: Holds the results of the check.
    """
    known = None if version is None else read_object(store, check_of(version, model, split), bad=dict)
    bad = known["bad"] if known else {}
    return [example for example in source.examples(split) if example.id not in bad]


def examples_of(source: Source, split: str, *, plan: StagePlan, version: str | None, store: Store) -> list[Example]:
    """Returns the examples of `train`, `validation` or `test` that can be read and used, as a plan divides the source.

    Validation examples are the source's own, or else a fraction of its training examples. In a local partition clients
    train on all of their own, so the server's training examples are for validation alone.
    """
    fraction, local = plan.data.validation_fraction, plan.cohort.partition.kind == "local"
    whole = not fraction or split == "test" or (split == "train" and local)
    readable = readable_examples(source, split if whole else "train", version=version, model=plan.model, store=store)
    kept, _ = usable_of(readable, model=plan.model, incomplete=plan.data.incomplete)
    return kept if whole else split_validation(kept, fraction=fraction)[split == "validation"]


def shares_of(
    examples: Sequence[Example], *, kind: PartitionSpec, num_clients: int, seed: str, validation_fraction: float = 0.0
) -> dict[str, list[int]]:
    """Splits training examples among clients by the run's seed: client -> indices.

    Args:
        examples: The training examples, without those for validation.
        kind: The kind of partition.
        num_clients: N.
        seed: The run's seed.
        validation_fraction: Fraction that was set apart, for messages.

    Raises:
        DataError: See `partition`.
    """
    try:
        return partition(examples, plan=kind, num_clients=num_clients, seed=derive(seed, "partition"))
    except DataError as error:
        if not validation_fraction:
            raise
        problem = f"{error.problem}, after data.validation_fraction {validation_fraction:g} set examples apart"
        raise DataError(problem, remedy=f"lower the fraction; or {error.remedy}") from None


def shares_at(plan: StagePlan, examples: Sequence[Example]) -> dict[str, list[int]]:
    """Splits training examples among all clients; returns the shares of a run's clients: client -> indices."""
    shares = shares_of(
        examples,
        kind=plan.cohort.partition,
        num_clients=plan.cohort.num_clients,
        seed=plan.seed,
        validation_fraction=plan.data.validation_fraction,
    )
    return {client: shares[client] for client in plan.cohort.eligible_ids}


def split_share(
    client: str, *, examples: Sequence[Example], shares: Mapping[str, Sequence[int]], plan: StagePlan
) -> tuple[list[Example], list[Example]]:
    """Returns a client's examples: those it trains on and those it holds out.

    Raises:
        DataError: The client has too few to train on.
    """
    train, held_out = holdout_of(
        client, shares[client], fraction=plan.evaluation.holdout_fraction, seed=plan.seed, devices=plan.devices
    )
    return [examples[i] for i in train], [examples[i] for i in held_out]


def holdout_of(
    client: str, share: Sequence[int], *, fraction: float, seed: str, devices: int
) -> tuple[list[int], list[int]]:
    """Splits the indices of a client's share into those it trains on and those it holds out.

    Raises:
        DataError: The client has too few to train on.
    """
    train, held_out = holdout(share, fraction=fraction, seed=derive(seed, "holdout", client))
    if len(train) < 2 * devices:
        raise DataError(
            f"{client} has {len(train)} example(s) to train on; BatchNorm and negatives need two per device",
            remedy="lower federation.num_clients or evaluation.holdout_fraction, or raise partition.min_size",
        )
    return train, held_out
