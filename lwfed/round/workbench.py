"""What one process keeps at hand between steps: the store, the data it opened, skeletons and weights.

Everything here can be had again from the store; a fresh process starts with an empty bench and ends in the same digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from pydantic import ValidationError
from torch import Tensor

from lwfed.data.inputs import InputSettings, settings_for
from lwfed.data.opening import open_source
from lwfed.data.protocol import Example, Source
from lwfed.models.build import input_settings, skeleton, without_prefix
from lwfed.models.multimodal import Multimodal
from lwfed.plan.stages import DataPlan, StagePlan, key_of_values
from lwfed.round.context import ClientContext, RoundContext
from lwfed.round.runtime import pick_device
from lwfed.round.shares import SERVER, readable_examples, root_for, shares_at, split_share
from lwfed.run.stage import Stage
from lwfed.run.tasks import ClientTask, Place, RoundTask
from lwfed.spec.model import ModelSpec
from lwfed.store import paths
from lwfed.store.blocks import read_block
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint
from lwfed.store.counting import CountingStore
from lwfed.store.manifest import block_key
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError


class Workbench:
    """A process's open store, data and weights.

    Args:
        store: The store.
        holds_model: What is trained stays in memory between clients too: for a process that trains several in turn.
    """

    def __init__(self, store: Store, *, holds_model: bool = False) -> None:
        self.store = store
        self.holds_model = holds_model
        self.source = lru_cache(maxsize=2)(_open)
        self.stage = lru_cache(maxsize=4)(self._stage)
        self.skeleton = lru_cache(maxsize=2)(self._skeleton)
        self._shares = lru_cache(maxsize=1)(self._share)
        self._inputs = lru_cache(maxsize=1)(lambda key: inputs_of(self.stage(key).plan.model))
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._model: dict[str, dict[str, Tensor]] = {}

    @staticmethod
    def at(uri: str) -> Workbench:
        """Opens the bench of a store's URI."""
        return Workbench(open_store(uri))

    def round(self, task: RoundTask) -> RoundContext:
        """Returns what is known of the round of a task. Raises CheckpointError where its stage is not begun."""
        return RoundContext(
            stage=self.stage(task.stage_key),
            server_round=task.server_round,
            store=self.store,
            place=task.place,
            run_id=task.run_id,
        )

    def client(self, task: ClientTask) -> ClientContext:
        """Returns what is known of a client's part of a round. Raises as `round` does, and SpecError without device."""
        return ClientContext(
            **vars(self.round(task)),
            client=task.client,
            bench=self,
            counted=CountingStore(self.store),
            device=pick_device(task.place.device),
        )

    def _stage(self, key: str) -> Stage:
        values = self.store.read_ref(paths.stage_plan(key))
        if values is None:
            raise CheckpointError(f"the stage {key[:12]} is not in the store {self.store.uri}", remedy="start it again")
        decides = {name: values.get(name) for name in ("input_digest", "code_version", "data_version")}
        if key_of_values(values.get("plan"), **decides) != key:
            raise CheckpointError(
                f"the plan of stage {key[:12]} is not what its key says: {paths.stage_plan(key)} is damaged",
                remedy="remove the stage's folder and run it again, or train again with --fresh",
            )
        try:
            plan = StagePlan.model_validate(values["plan"])
        except ValidationError:
            raise CheckpointError(
                f"the plan of stage {key[:12]} is of another version of lwfed",
                remedy="use that version, or train again",
            ) from None
        return Stage(
            key=key,
            plan=plan,
            input_digest=values["input_digest"],
            num_classes=values["num_classes"],
            data_version=values["data_version"],
        )

    def data(self, stage: Stage, place: Place, who: str = SERVER) -> Source:
        """Opens the data of a stage at a place: a client's, or the server's test data."""
        return self.source(stage.plan.data, root_for(place.root, who), place.workers)

    def examples(self, stage: Stage, place: Place, split: str, who: str = SERVER) -> list[Example]:
        """Returns the examples of a split that can be read."""
        source = self.data(stage, place, who)
        return readable_examples(source, split, modalities=stage.plan.model.modalities, store=self.store)

    def share(self, stage: Stage, place: Place, client: str) -> tuple[list[Example], list[Example]]:
        """Returns a client's examples: those it trains on and those it holds out.

        Raises:
            DataError: It has too few to train on.
        """
        examples, shares = self._shares(stage.key, place.model_copy(update={"root": root_for(place.root, client)}))
        return split_share(client, examples=examples, shares=shares, plan=stage.plan)

    def _share(self, key: str, place: Place) -> tuple[list[Example], dict[str, list[int]]]:
        stage = self.stage(key)
        examples = self.examples(stage, place, "train")
        return examples, shares_at(stage.plan, examples)

    def _skeleton(self, key: str, without: tuple[str, ...] = ()) -> Multimodal:
        """Builds a stage's model without weights, and without the frozen blocks of some modalities."""
        plan = self.stage(key).plan
        whole = skeleton(plan.model, depth=plan.depth, num_classes=self.stage(key).num_classes)
        return without_prefix(whole, cut={modality: plan.cut[modality] for modality in without})

    def inputs(self, stage: Stage) -> InputSettings:
        """Says how a stage's model wants its inputs."""
        return self._inputs(stage.key)

    def frozen(
        self,
        checkpoint: Checkpoint,
        units: Sequence[str],
        *,
        store: Store,
        cache: BlockCache,
        device: torch.device,
        spare: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """Returns the tensors of frozen units, which nobody changes and all clients of this process share.

        Other blocks are removed from the client's folder, but for units to `spare`.
        """
        blocks = [checkpoint.blocks[unit] for unit in units]
        cache.keep_only([*blocks, *(checkpoint.blocks[unit] for unit in spare)])
        wanted = {f"{block.digest}@{device}": block for block in blocks}
        self._kept = {name: tensors for name, tensors in self._kept.items() if name in wanted}
        for name, block in wanted.items():
            if name in self._kept:
                cache.hold(store, block)
            elif block.digest in self._model:  # it was trained until now
                cache.hold(store, block)
                self._kept[name] = {k: t.to(device) for k, t in self._model[block.digest].items()}
            else:
                self._kept[name] = {k: t.to(device) for k, t in cache.read(store, block).items()}
        return {name: tensor for tensors in self._kept.values() for name, tensor in tensors.items()}

    def hold(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        """Keeps what is trained of a global model, for the clients of the next round; nobody may change it."""
        units = {unit: block for unit, block in checkpoint.blocks.items() if tensors.keys() >= block.tensors.keys()}
        self._model = {block.digest: {name: tensors[name] for name in block.tensors} for block in units.values()}

    def forget_model(self) -> None:
        """Keeps nothing of the global model any longer."""
        self._model = {}

    def copy_of(
        self, checkpoint: Checkpoint, units: Sequence[str], *, store: CountingStore, device: torch.device
    ) -> dict[str, Tensor]:
        """Returns copies of trained units, which a client may change; they are read once a round.

        Args:
            checkpoint: The global model.
            units: Which units.
            store: Counts them as read, as a process of the client's own would.
            device: Where to.
        """
        blocks = [checkpoint.blocks[unit] for unit in units]
        model = self._model
        self._model = {}
        for block in blocks:
            found = model.get(block.digest)
            if found is None:
                found = read_block(store, block_key(block), block)
            else:
                store.count_as_read(block.nbytes)
            self._model[block.digest] = {name: tensor.to(device) for name, tensor in found.items()}
        return {name: tensor.clone() for block in blocks for name, tensor in self._model[block.digest].items()}


def _open(data: DataPlan, root: str | None, workers: int) -> Source:
    return open_source(data.at(root=root, workers=workers))


def inputs_of(model: ModelSpec) -> InputSettings:
    """Says how a model wants its inputs."""
    return settings_for({modality: input_settings(encoder) for modality, encoder in model.encoders.items()})
