"""What one process keeps in memory between steps: the store, opened data, model skeletons and weights.

All of it can be read again from the store: a new process starts with an empty workbench and gets the same digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from lwfed import environment
from lwfed.data.digests import FileDigests, changed_files, list_files, version_of
from lwfed.data.inputs import InputSettings, settings_for
from lwfed.data.protocol import Example, Source, open_source
from lwfed.models.build import input_settings, skeleton, tensor_specs, without_prefix
from lwfed.models.identity import tokenizer_version
from lwfed.models.multimodal import Multimodal
from lwfed.params import by_unit
from lwfed.plan.cohort import sample_round
from lwfed.plan.stages import DataPlan, StagePlan, key_of_values
from lwfed.round.context import ClientContext, RoundContext
from lwfed.round.forward import KeptOutputs
from lwfed.round.runtime import pick_device
from lwfed.round.shares import SERVER, examples_of, root_for, shares_at, split_share
from lwfed.run.client_folder import maintain_folder
from lwfed.run.events import Emit, fetching_reporter
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
from lwfed.store.refs import damaged, read_object
from lwfed.types.encoded import encoded_specs
from lwfed.types.errors import CheckpointError, DataError
from lwfed.types.tensors import layout, unit_of


class Opened(NamedTuple):
    """Opened data.

    Attributes:
        source: The data.
        as_listed: Version of data -> whether they say of their examples what was said when that version was listed.
    """

    source: Source
    as_listed: dict[str, bool]


class Workbench:
    """A process's open store, data and weights.

    Args:
        store: The store.
        holds_model: Keep the trained tensors in memory between clients too, for a process that trains several in turn,
            and the outputs of frozen blocks for the next evaluation.
        emit: Receives `Fetching`.
    """

    def __init__(self, store: Store, *, holds_model: bool = False, emit: Emit | None = None) -> None:
        self.store = store
        self.holds_model = holds_model
        self.outputs = KeptOutputs() if holds_model else None
        self._opened = lru_cache(maxsize=2)(partial(_open, emit=emit))
        self.stage = lru_cache(maxsize=4)(self._stage)
        self.skeleton = lru_cache(maxsize=4)(self._skeleton)
        self.upload_bytes = lru_cache(maxsize=16)(self._upload_bytes)
        self.cohort = lru_cache(maxsize=128)(self._cohort)
        self._shares = lru_cache(maxsize=1)(self._share)
        self._inputs = lru_cache(maxsize=1)(self._input_settings)
        self._file_digests: dict[Path, FileDigests] = {}
        self._start: tuple[tuple[str, int], Checkpoint] | None = None
        self._maintained: tuple[str | None, str | None, str, int] | None = None
        self._frozen: dict[str, dict[str, Tensor]] = {}
        self._model: dict[str, dict[str, Tensor]] = {}

    @staticmethod
    def at(uri: str) -> Workbench:
        """Returns a workbench for the store at a URI."""
        return Workbench(open_store(uri))

    def round(self, task: RoundTask) -> RoundContext:
        """Returns the context of a task's round. Raises CheckpointError if its stage has not started."""
        return RoundContext(
            stage=self.stage(task.stage_key),
            server_round=task.server_round,
            store=self.store,
            place=task.place,
            run_id=task.run_id,
        )

    def client(self, task: ClientTask) -> ClientContext:
        """Returns the context of a client task. Raises as `round` does, and SpecError if the device is missing."""
        return ClientContext(
            **vars(self.round(task)),
            client=task.client,
            bench=self,
            counted=CountingStore(self.store),
            device=pick_device(task.place.device),
        )

    def checkpoint(self, ctx: RoundContext, server_round: int) -> Checkpoint:
        """Returns the result of a round of a stage, which all clients of the next round start from, read once.

        Raises:
            CheckpointError: The round is not committed, or its model belongs to another plan.
        """
        place = (ctx.key, server_round)
        if self._start is None or self._start[0] != place:
            self._start = (place, ctx.committed(server_round))
        return self._start[1]

    def maintain(self, task: ClientTask) -> str | None:
        """Maintains the folder of a task's run, once per round for all clients of this process.

        Returns why the client cannot write to its part of the folder, or None; see `maintain_folder`.
        """
        place = (task.place.cache, task.run_id, task.stage_key, task.server_round)
        marked, self._maintained = self._maintained == place, place
        return maintain_folder(task, store=self.store, marked=marked)

    def _stage(self, key: str) -> Stage:
        values = read_object(self.store, paths.stage_plan(key))
        if values is None:
            raise CheckpointError(f"the stage {key[:12]} is not in the store {self.store.uri}", remedy="start it again")
        decides: dict[str, Any] = {name: values.get(name) for name in ("input_digest", "code_version", "data_version")}
        try:
            sound = key_of_values(values.get("plan", {}), **decides) == key
        except ValueError:  # numbers or text that JSON lacks
            sound = False
        if not sound:
            raise CheckpointError(
                f"the plan of stage {key[:12]} does not match its key: {paths.stage_plan(key)} is damaged",
                remedy="remove the stage's folder and run it again, or train again with --fresh",
            )
        try:
            plan = StagePlan.model_validate(values["plan"])
        except ValidationError:
            raise CheckpointError(
                f"the plan of stage {key[:12]} was written by another version of lwfed",
                remedy="use that version, or train again",
            ) from None
        classes, versions = values.get("num_classes"), values.get("data_versions", {})
        counts, tokenizers = values.get("class_counts", []), values.get("tokenizers", {})
        counted = isinstance(counts, list) and all(isinstance(count, int) for count in counts)
        named = isinstance(versions, dict) and isinstance(tokenizers, dict)
        if not isinstance(classes, int | None) or not named or not counted:
            raise damaged(paths.stage_plan(key), "its classes, versions or tokenizers are wrong")
        return Stage(
            key=key,
            plan=plan,
            input_digest=values["input_digest"],
            num_classes=classes,
            data_version=values["data_version"],
            data_versions=versions,
            tokenizers=tokenizers,
            class_counts=tuple(counts),
        )

    def data(self, stage: Stage, place: Place, who: str = SERVER) -> Source:
        """Opens a stage's data on this machine: a client's data, or the server's test data."""
        return self._open(stage, place, who).source

    def _open(self, stage: Stage, place: Place, who: str) -> Opened:
        return self._opened(stage.plan.data, root_for(place.root, who), place.workers, place.shared)

    def examples(self, stage: Stage, place: Place, split: str, who: str = SERVER) -> list[Example]:
        """Returns the examples of a split that can be read and used."""
        source, version = self.data(stage, place, who), self._version(stage, who)
        return examples_of(source, split, plan=stage.plan, version=version, store=self.store)

    def unchanged(self, stage: Stage, place: Place, examples: Sequence[Example], who: str = SERVER) -> list[Example]:
        """Returns the examples whose files, captions and labels are still those that were checked.

        A client with its own folder keeps its files' digests to itself: only the version of all its data is compared.

        Raises:
            DataError: A file has changed, and the spec does not skip such examples or the file is not known; or what
                the data say of their examples has.
        """
        opened, version, digests = self._open(stage, place, who), self._version(stage, who), self._digests(place)
        source = opened.source
        if version is None or source.root is None:
            return list(examples)
        listed = self.store.read_ref(paths.data_files(version))
        if listed is None:
            if version_of(source, list_files(source, digests)) != version:
                raise DataError(f"the data of {who} changed after the run was prepared", remedy="start a new run")
            return list(examples)
        if version not in opened.as_listed:
            opened.as_listed[version] = version_of(source, listed) == version
        if not opened.as_listed[version]:
            where = source.root if isinstance(source.root, Path) else source.root.title()
            raise DataError(
                f"the table, captions or labels in {where} changed after the run was prepared",
                remedy="restore them, or start a new run",
            )
        changed = changed_files(source, examples, listing=listed, digests=digests)
        if changed and stage.plan.data.on_bad_example == "fail":
            raise DataError(
                f"{len(changed)} file(s) of {who} changed after the run was prepared, such as {min(changed.values())}",
                remedy="restore them, start a new run, or skip them with -o data.on_bad_example=skip",
            )
        return [example for example in examples if example.id not in changed]

    def _version(self, stage: Stage, who: str) -> str | None:
        return stage.data_versions.get(who, stage.data_versions.get(SERVER))

    def _digests(self, place: Place) -> FileDigests:
        folder = environment.cache_folder() if place.shared is None else Path(place.shared)
        return self._file_digests.setdefault(folder, FileDigests(folder))

    def share(self, stage: Stage, place: Place, client: str) -> tuple[list[Example], list[Example]]:
        """Returns a client's examples: those it trains on and those it holds out.

        Raises:
            DataError: The client has too few to train on.
        """
        local = stage.plan.cohort.partition.kind == "local"
        examples, shares = self._shares(stage.key, place, client if local else SERVER)
        return split_share(client, examples=examples, shares=shares, plan=stage.plan)

    def _share(self, key: str, place: Place, who: str) -> tuple[list[Example], dict[str, list[int]]]:
        stage = self.stage(key)
        examples = self.examples(stage, place, "train", who)
        return examples, shares_at(stage.plan, examples)

    def _cohort(self, key: str, server_round: int) -> frozenset[str]:
        """Returns the clients that a round of a stage asks, if sizes do not decide it."""
        return frozenset(sample_round(self.stage(key).plan, server_round, sizes={}))

    def _skeleton(self, key: str, without: tuple[str, ...] = (), lacks: tuple[str, ...] = ()) -> Multimodal:
        """Builds a stage's model without weights.

        Args:
            key: The stage.
            without: Modalities whose frozen blocks are left out.
            lacks: Modalities that are left out.
        """
        plan = self.stage(key).plan
        whole = skeleton(plan.model, depth=plan.depth, num_classes=self.stage(key).num_classes, lacks=lacks)
        return without_prefix(whole, cut={modality: plan.cut[modality] for modality in without})

    def _upload_bytes(self, key: str, trained: tuple[str, ...]) -> int:
        """Returns the bytes of the files of an update of some units, encoded."""
        specs, codec = tensor_specs(self.skeleton(key)), self.stage(key).plan.exchange.upload
        units = by_unit({name: spec for name, spec in specs.items() if unit_of(name) in trained})
        return sum(layout(encoded_specs(members, codec)).nbytes for members in units.values())

    def inputs(self, stage: Stage) -> InputSettings:
        """Returns the input settings of a stage's model. Raises DataError if its tokenizer has changed."""
        return self._inputs(stage.key)

    def _input_settings(self, key: str) -> InputSettings:
        stage = self.stage(key)
        for modality, version in stage.tokenizers.items():
            encoder = stage.plan.model.encoders[modality]
            if tokenizer_version(encoder) != version:
                raise DataError(
                    f"the tokenizer {encoder.tokenizer} is not the one that the run was prepared with",
                    remedy="restore it, or start a new run",
                )
        return inputs_of(stage.plan.model)

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
        """Returns the tensors of frozen units, which are read-only and shared by all clients of this process.

        Removes all other blocks from the client's folder, except those of the units in `spare`.
        """
        blocks = [checkpoint.blocks[unit] for unit in units]
        cache.keep_only([*blocks, *(checkpoint.blocks[unit] for unit in spare)])
        wanted = {f"{block.digest}@{device}": block for block in blocks}
        self._frozen = {name: tensors for name, tensors in self._frozen.items() if name in wanted}
        for name, block in wanted.items():
            if name in self._frozen:
                cache.hold(store, block)
            elif block.digest in self._model:  # trained until the previous stage
                cache.hold(store, block)
                self._frozen[name] = {k: t.to(device) for k, t in self._model[block.digest].items()}
            else:
                self._frozen[name] = {k: t.to(device) for k, t in cache.read(store, block).items()}
        return {name: tensor for tensors in self._frozen.values() for name, tensor in tensors.items()}

    def hold(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        """Keeps the trained tensors of a global model for the next round's clients, which must not change them."""
        units = {unit: block for unit, block in checkpoint.blocks.items() if tensors.keys() >= block.tensors.keys()}
        self._model = {block.digest: {name: tensors[name] for name in block.tensors} for block in units.values()}

    def forget_model(self) -> None:
        """Drops the global model's trained tensors, and what is kept for evaluations."""
        self._model = {}
        if self.outputs is not None:
            self.outputs.clear()

    def copy_of(
        self, checkpoint: Checkpoint, units: Sequence[str], *, store: CountingStore, device: torch.device
    ) -> dict[str, Tensor]:
        """Returns copies of trained units, which the client may change; the units are read once per round.

        Args:
            checkpoint: The global model.
            units: The units to copy.
            store: Counts the units as read, as if the client had a process of its own.
            device: The device to copy to.
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
            if any(tensor.device != device for tensor in found.values()):
                found = {name: tensor.to(device) for name, tensor in found.items()}
            self._model[block.digest] = found
        return {name: tensor.clone() for block in blocks for name, tensor in self._model[block.digest].items()}


def _open(data: DataPlan, root: str | None, workers: int, shared: str | None, *, emit: Emit | None) -> Opened:
    cache = None if shared is None else Path(shared)
    return Opened(open_source(data.at(root=root, workers=workers), cache=cache, fetching=fetching_reporter(emit)), {})


def inputs_of(model: ModelSpec) -> InputSettings:
    """Returns a model's input settings."""
    return settings_for({modality: input_settings(encoder) for modality, encoder in model.encoders.items()})
