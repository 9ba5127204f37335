"""What one process keeps at hand between steps: the store, the data it opened, skeletons and frozen weights.

Everything here can be had again from the store; a fresh process starts with an empty bench and ends in the same digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lwfed.data.inputs import InputSettings, settings_for
from lwfed.data.partition import holdout, partition
from lwfed.data.source import Example, Source, open_source
from lwfed.models.build import input_settings, skeleton
from lwfed.models.multimodal import Multimodal
from lwfed.plan.stages import DataPlan, StagePlan, key_of_values
from lwfed.spec.model import ModelSpec
from lwfed.steps.tasks import Place
from lwfed.store import paths
from lwfed.store.blocks import read_file
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint
from lwfed.store.local import open_store
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError, DataError
from lwfed.types.seeds import derive


@dataclass(frozen=True)
class Stage:
    """A stage as it is written down in the store.

    Attributes:
        key: Its address.
        plan: What decides its result.
        input_digest: Digest of the checkpoint it starts from; empty at the first.
        num_classes: C, or None without labels.
    """

    key: str
    plan: StagePlan
    input_digest: str
    num_classes: int | None


class Workbench:
    """A process's open store, data and weights."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.source = lru_cache(maxsize=2)(_open)
        self.stage = lru_cache(maxsize=4)(self._stage)
        self.skeleton = lru_cache(maxsize=1)(self._skeleton)
        self.train_examples = lru_cache(maxsize=1)(self._train_examples)
        self.shares = lru_cache(maxsize=1)(self._shares)
        self._inputs = lru_cache(maxsize=1)(lambda key: inputs_of(self.stage(key).plan.model))
        self._kept: dict[str, dict[str, Tensor]] = {}

    @staticmethod
    def at(uri: str) -> Workbench:
        """Opens the bench of a store's URI."""
        return Workbench(open_store(uri))

    def _stage(self, key: str) -> Stage:
        values = self.store.read_ref(paths.stage_plan(key))
        if values is None:
            raise CheckpointError(f"the stage {key[:12]} is not in the store {self.store.uri}", remedy="start it again")
        decides = {name: values.get(name) for name in ("input_digest", "code_version", "data_version")}
        if key_of_values(values.get("plan"), **decides) != key:
            raise CheckpointError(
                f"the plan of stage {key[:12]} is not what its key says: {paths.stage_plan(key)} is damaged",
                remedy="remove the stage's folder and run it again, or train anew with --fresh",
            )
        return Stage(
            key=key,
            plan=StagePlan.model_validate(values["plan"]),
            input_digest=values["input_digest"],
            num_classes=values["num_classes"],
        )

    def data(self, stage: Stage, place: Place) -> Source:
        """Opens the data of a stage at a place."""
        return self.source(stage.plan.data, place.root, place.workers)

    def examples(self, stage: Stage, place: Place, split: str) -> list[Example]:
        """Gives the examples of a split that can be read."""
        source = self.data(stage, place)
        known = self.store.read_ref(paths.checked_data(source.version(), split))
        bad = known["bad"] if known else {}
        return [example for example in source.examples(split) if example.id not in bad]

    def share(self, stage: Stage, place: Place, client: str) -> tuple[list[Example], list[Example]]:
        """Gives a client's examples: those it trains on and those it holds out.

        Raises:
            DataError: It has fewer than two to train on.
        """
        plan = stage.plan
        examples = self.train_examples(stage.key, place)
        indices = self.shares(stage.key, place)[client]
        train, held_out = holdout(
            indices, fraction=plan.evaluation.holdout_fraction, seed=derive(plan.seed, "holdout", client)
        )
        if len(train) < 2:
            raise DataError(
                f"{client} has {len(train)} example(s) to train on; BatchNorm and negatives need two",
                remedy="lower federation.num_clients or evaluation.holdout_fraction, or raise partition.min_size",
            )
        return [examples[i] for i in train], [examples[i] for i in held_out]

    def _train_examples(self, key: str, place: Place) -> list[Example]:
        return self.examples(self.stage(key), place, "train")

    def _shares(self, key: str, place: Place) -> dict[str, list[int]]:
        stage = self.stage(key)
        return partition(
            self.train_examples(key, place),
            plan=stage.plan.cohort.partition,
            num_clients=stage.plan.cohort.num_clients,
            seed=derive(stage.plan.seed, "partition"),
        )

    def _skeleton(self, key: str) -> Multimodal:
        stage = self.stage(key)
        return skeleton(stage.plan.model, depth=stage.plan.depth, num_classes=stage.num_classes)

    def inputs(self, stage: Stage) -> InputSettings:
        """Says how a stage's model wants its inputs."""
        return self._inputs(stage.key)

    def frozen(
        self, checkpoint: Checkpoint, units: Sequence[str], *, store: Store, cache: BlockCache, device: torch.device
    ) -> dict[str, Tensor]:
        """Gives the tensors of frozen units, which nobody changes and all clients of this process share."""
        blocks = [checkpoint.blocks[unit] for unit in units]
        cache.keep_only(blocks)
        wanted = {f"{block.digest}@{device}": block for block in blocks}
        self._kept = {name: tensors for name, tensors in self._kept.items() if name in wanted}
        for name, block in wanted.items():
            path = cache.fetch(store, block)
            if name not in self._kept:
                self._kept[name] = {k: t.to(device) for k, t in read_file(path, block).items()}
        return {name: tensor for tensors in self._kept.values() for name, tensor in tensors.items()}


def _open(data: DataPlan, root: str | None, workers: int) -> Source:
    return open_source(data.at(root=root, workers=workers))


def inputs_of(model: ModelSpec) -> InputSettings:
    """Says how a model wants its inputs."""
    return settings_for({modality: input_settings(encoder) for modality, encoder in model.encoders.items()})
