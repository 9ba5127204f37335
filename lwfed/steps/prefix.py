"""The outputs of a client's frozen blocks, had once a stage: found on its disk, else computed and kept there.

From one stage to the next only the newly frozen blocks are applied to what is kept. Blocks whose outputs are kept are
neither fetched nor loaded. Where they cannot be kept, they are computed in each step, and the update says why.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lwfed import ranks
from lwfed.data.prefix import Inputs, KeptPrefix, find_kept, keep
from lwfed.data.source import Example
from lwfed.models.build import load_units, skeleton
from lwfed.models.protocol import State
from lwfed.plan.stages import StagePlan
from lwfed.steps.batching import move
from lwfed.steps.runtime import autocast_type
from lwfed.steps.tasks import ClientTask
from lwfed.steps.version import code_version
from lwfed.steps.workbench import Stage, Workbench
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint
from lwfed.store.protocol import Store

FILL_TOKENS = 16_384
"""Tokens that pass a block at a time while a cache is filled; a constant, since sums depend on the batch's shape."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What a client's training finds of its frozen blocks.

    Attributes:
        kept: Modality -> outputs, for those that are kept.
        told: What the update tells of them: modality -> `kept`, `filled`, or `recomputed: ` and why.
        fill_s: Seconds that filling took.
        nbytes: Bytes on the disk.
    """

    kept: Mapping[str, KeptPrefix] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)
    fill_s: float = 0.0
    nbytes: int = 0

    def metrics(self) -> dict[str, Any]:
        """Gives what goes into the update's metrics."""
        if not self.told:
            return {}
        return {"prefix": dict(self.told), "prefix_fill_s": self.fill_s, "prefix_cache_bytes": self.nbytes}


def prefixes_of(
    task: ClientTask,
    *,
    bench: Workbench,
    stage: Stage,
    held: Sequence[Example],
    checkpoint: Checkpoint,
    store: Store,
    device: torch.device,
) -> Prefixes:
    """Gives the outputs of the frozen blocks of those modalities whose plan keeps them, computed where need be.

    Args:
        task: Which client.
        bench: The process's bench.
        stage: The stage.
        held: The examples that the client trains on.
        checkpoint: The global model, for the frozen blocks' digests.
        store: Counts what is fetched.
        device: Where to compute.

    Raises:
        DataError: A file cannot be read.
        CheckpointError: A frozen block is missing or damaged.
    """
    plan = stage.plan
    views = plan.levers.views
    if not views:
        return Prefixes()
    if task.place.cache is None:
        return Prefixes(told=dict.fromkeys(views, "recomputed: the client has no folder; give its pool a `cache`"))
    started = time.monotonic()
    folder = Path(task.place.cache) / task.client / "prefix"
    kept, told = dict[str, KeptPrefix](), dict[str, str]()
    for modality, count in views.items():
        inputs = Inputs(modality, tuple(held), bench.inputs(stage), plan.seed, plan.data.augment, count)
        chain = tuple(checkpoint.blocks[unit].digest for unit in frozen_units(plan, modality))
        found = find_kept(folder, inputs, chain=chain, code=code_version())
        if ranks.agree(found is not None and found.chain == chain):
            told[modality] = "kept"
        else:
            try:
                if ranks.rank() == 0:
                    outputs = _outputs(
                        task, inputs, found, bench=bench, stage=stage, checkpoint=checkpoint, store=store, device=device
                    )
                    keep(folder, inputs, outputs, chain=chain, code=code_version())
                full = ""
            except OSError as error:
                full = error.strerror or str(error)
            if not ranks.agree(not full):
                told[modality] = f"recomputed: it cannot be kept in {folder}: {full or 'see the first rank'}"
                continue
            found = find_kept(folder, inputs, chain=chain, code=code_version())
            told[modality] = "filled"
        assert found is not None
        kept[modality] = found
    nbytes = sum(prefix.nbytes for prefix in kept.values())
    return Prefixes(kept=kept, told=told, fill_s=time.monotonic() - started, nbytes=nbytes)


def frozen_units(plan: StagePlan, modality: str) -> tuple[str, ...]:
    """Names the units of a modality's frozen prefix, in the order data pass them; none where nothing is frozen."""
    count = plan.cut[modality]
    return (f"{modality}.stem", *(f"{modality}.blocks.{i}" for i in range(count))) if count else ()


def _outputs(
    task: ClientTask,
    inputs: Inputs,
    before: KeptPrefix | None,
    *,
    bench: Workbench,
    stage: Stage,
    checkpoint: Checkpoint,
    store: Store,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields the frozen blocks' outputs in batches, from the inputs or from what was kept of fewer blocks."""
    plan, modality = stage.plan, inputs.modality
    units = frozen_units(plan, modality)
    done = len(before.chain) if before is not None else 0
    cache = BlockCache(f"{task.place.cache}/{task.client}/{ranks.rank()}")
    module = skeleton(plan.model, depth=plan.depth, num_classes=stage.num_classes)
    for unit in units[done:]:
        tensors = cache.read(store, checkpoint.blocks[unit])
        load_units(module, {name: tensor.to(device) for name, tensor in tensors.items()}, units=[unit])
    encoder = module.encoder(modality).eval().requires_grad_(False)
    size = max(2, FILL_TOKENS // _tokens_of(inputs))
    autocast = autocast_type(plan.training.precision, device)
    with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        if before is not None:
            for start in range(0, len(inputs), size):
                found = before.at(range(start, min(start + size, len(inputs))))
                state = State(found["tokens"].to(device), _on(found.get("mask"), device))
                yield encoder.advance(state, start=done - 1, stop=plan.cut[modality])
            return
        source = bench.data(stage, task.place, task.client)
        for value in inputs.batches(source, batch_size=size, workers=task.place.workers):
            state = encoder.embed(move(value, device))
            yield encoder.advance(state, start=0, stop=plan.cut[modality])


def _tokens_of(inputs: Inputs) -> int:
    """Gives about how many tokens an input has."""
    settings = inputs.settings
    about = {"text": settings.max_tokens, "image": (settings.image_size // 16) ** 2, "audio": settings.frames}
    return max(1, about[inputs.modality])


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
