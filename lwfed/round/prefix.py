"""The outputs of a client's frozen blocks, made once per stage: found on its disk, else computed and kept there.

From one stage to the next only the newly frozen blocks are applied to what is kept. Blocks whose outputs are kept are
neither fetched nor loaded. Where they cannot be kept, they are computed in each step, and the update says why.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lwfed import ranks
from lwfed.data.kept_prefix import Inputs, KeptPrefix, find_kept, keep
from lwfed.data.protocol import Example
from lwfed.models.build import load_units, skeleton
from lwfed.models.protocol import State
from lwfed.plan.stages import StagePlan
from lwfed.round.batching import move
from lwfed.round.context import ClientContext
from lwfed.round.download import frozen_cache
from lwfed.round.runtime import autocast_type
from lwfed.run.version import code_version
from lwfed.store.checkpoint import Checkpoint
from lwfed.types.canonical import digest_of

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM})
FILL_TOKENS = 16_384
"""Tokens that pass a block at a time while a cache is filled; a constant, since sums depend on the batch's shape."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What a client's training finds of its frozen blocks.

    Attributes:
        kept: Modality -> outputs, for those that are kept.
        states: Modality -> `kept`, `filled`, or `recomputed: ` and why; part of the update's metrics.
        fill_s: Seconds that filling took.
        nbytes: Bytes on the disk.
    """

    kept: Mapping[str, KeptPrefix] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    fill_s: float = 0.0
    nbytes: int = 0

    def metrics(self) -> dict[str, Any]:
        """Returns what goes into the update's metrics."""
        if not self.states:
            return {}
        return {"prefix": dict(self.states), "prefix_fill_s": self.fill_s, "prefix_cache_bytes": self.nbytes}


@contextmanager
def prefix_folder(ctx: ClientContext) -> Iterator[Path]:
    """Opens the folder in which a client's frozen outputs are kept: its own, else one for this round alone.

    A client without a folder computes them again in each round: the same numbers, since the batches are the same. Its
    ranks are on one machine and share the first one's folder.
    """
    own = ctx.folder("prefix")
    if own is not None:
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="lwfed-prefix-") as scratch:
        yield Path(ranks.each(lambda: scratch)[0])


def prefixes_of(ctx: ClientContext, checkpoint: Checkpoint, *, examples: Sequence[Example], folder: Path) -> Prefixes:
    """Returns the outputs of the frozen blocks of those modalities whose plan keeps them, computed where need be.

    The ranks of a client share the work, and end alike: what fails on one is raised on all, or reported as no room.

    Args:
        ctx: The client's part of the round.
        checkpoint: The global model, for the frozen blocks' digests.
        examples: Those that the client trains on.
        folder: Where they are kept; see `prefix_folder`.

    Raises:
        DataError: A file cannot be read.
        CheckpointError: A frozen block is missing or damaged.
    """
    plan, bench = ctx.plan, ctx.bench
    views = plan.levers.views
    if not views:
        return Prefixes()
    started = time.monotonic()
    kept, states = dict[str, KeptPrefix](), dict[str, str]()
    for modality, count in views.items():
        function = _function(ctx, modality)
        inputs = Inputs(
            modality, tuple(examples), bench.inputs(ctx.stage), plan.seed, plan.data.augment, count, function
        )
        chain = tuple(checkpoint.blocks[unit].digest for unit in frozen_units(plan, modality))
        code = code_version(frozenset({plan.model.encoders[modality].family, plan.data.source}))
        found = _agreed(find_kept(folder, inputs, chain=chain, code=code))
        if found is not None and found.chain == chain:
            kept[modality], states[modality] = found, "kept"
            continue
        if not ranks.agree(_has_room(folder, inputs, width=bench.skeleton(ctx.key).encoder(modality).width)):
            states[modality] = f"recomputed: there is no room for it in {folder}"
            continue
        try:
            with closing(_outputs(ctx, checkpoint, inputs, found)) as outputs:
                kept[modality] = keep(folder, inputs, outputs, chain=chain, code=code)
            states[modality] = "filled"
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            states[modality] = f"recomputed: it cannot be kept in {folder}: {error.strerror or error}"
    nbytes = sum(prefix.nbytes for prefix in kept.values())
    return Prefixes(kept=kept, states=states, fill_s=time.monotonic() - started, nbytes=nbytes)


def _function(ctx: ClientContext, modality: str) -> str:
    """Returns the digest of what decides outputs besides weights and inputs."""
    encoder = ctx.plan.model.encoders[modality].model_dump(mode="json", exclude={"blocks_per_stage"})
    autocast = autocast_type(ctx.plan.training.precision, ctx.device)
    return digest_of(
        {"encoder": encoder, "precision": str(autocast), "device": ctx.device.type, "data": ctx.stage.data_version}
    )


def _agreed(found: KeptPrefix | None) -> KeptPrefix | None:
    """Returns what was found, where all ranks found the same: they begin alike, or not at all."""
    seen = ranks.each(lambda: found.chain if found is not None else None)
    return found if all(chain == seen[0] for chain in seen) else None


def _has_room(folder: Path, inputs: Inputs, *, width: int) -> bool:
    """Whether the disk has room for what is kept, before hours are spent on it; texts may take less."""
    place = folder
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free > 4 * len(inputs) * _tokens_of(inputs) * width


def frozen_units(plan: StagePlan, modality: str) -> tuple[str, ...]:
    """Names the units of a modality's frozen prefix, in the order data pass them; none where nothing is frozen."""
    count = plan.cut[modality]
    return (f"{modality}.stem", *(f"{modality}.blocks.{i}" for i in range(count))) if count else ()


def _outputs(
    ctx: ClientContext, checkpoint: Checkpoint, inputs: Inputs, before: KeptPrefix | None
) -> Generator[tuple[Tensor, Tensor | None], None, None]:
    """Yields this rank's batches of the frozen blocks' outputs, from the inputs or what was kept of fewer blocks."""
    plan, device, modality = ctx.plan, ctx.device, inputs.modality
    units = frozen_units(plan, modality)
    done = len(before.chain) if before is not None else 0
    cache = frozen_cache(ctx)
    module = skeleton(plan.model, depth=plan.depth, num_classes=ctx.stage.num_classes)
    for unit in units[done:]:
        tensors = cache.read(ctx.counted, checkpoint.blocks[unit])
        load_units(module, {name: tensor.to(device) for name, tensor in tensors.items()}, units=[unit])
    encoder = module.encoder(modality).eval().requires_grad_(False)
    size = max(2, FILL_TOKENS // _tokens_of(inputs))
    autocast = autocast_type(plan.training.precision, device)
    with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        if before is not None:
            for start in inputs.batch_starts(size):
                found = before.at(range(start, min(start + size, len(inputs))))
                state = State(found["tokens"].to(device), _on(found.get("mask"), device))
                yield encoder.advance(state, start=done - 1, stop=plan.cut[modality])
            return
        source = ctx.bench.data(ctx.stage, ctx.place, ctx.client)
        for value in inputs.batches(source, batch_size=size, workers=ctx.place.workers):
            state = encoder.embed(move(value, device))
            yield encoder.advance(state, start=0, stop=plan.cut[modality])


def _tokens_of(inputs: Inputs) -> int:
    """Returns about how many tokens an input has."""
    settings = inputs.settings
    about = {"text": settings.max_tokens, "image": (settings.image_size // 16) ** 2, "audio": settings.frames}
    return max(1, about[inputs.modality])


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
