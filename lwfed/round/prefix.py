"""The cached outputs of a client's frozen blocks: read from its disk, or computed once per stage and written there.

At the next stage only the newly frozen blocks run, on the cached outputs of the earlier ones. Blocks whose outputs are
cached are neither fetched nor loaded. If outputs cannot be cached, each step computes them, and the update says why.
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
from lwfed.data.prefix_cache import CachedPrefix, Inputs, find_cached, write_cache
from lwfed.data.protocol import Example
from lwfed.models.build import load_units, skeleton
from lwfed.models.protocol import State
from lwfed.models.sample import items_after
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
"""Tokens per batch while a cache is filled; a constant, because sums depend on the batch's shape."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The cached outputs that a client trains on.

    Attributes:
        cached: Modality -> cached outputs, for the modalities that have them.
        states: Modality -> `kept`, `filled`, or `recomputed: ` and the reason; part of the update's metrics.
        fill_s: Seconds spent filling caches.
        nbytes: Bytes on disk.
    """

    cached: Mapping[str, CachedPrefix] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    fill_s: float = 0.0
    nbytes: int = 0

    def metrics(self) -> dict[str, Any]:
        """Returns the entries for the update's metrics."""
        if not self.states:
            return {}
        return {"prefix": dict(self.states), "prefix_fill_s": self.fill_s, "prefix_cache_bytes": self.nbytes}


@contextmanager
def prefix_folder(ctx: ClientContext) -> Iterator[Path]:
    """Opens the folder for a client's cached outputs: its own, or else a temporary one for this round.

    A client without a folder computes them again in each round, with the same numbers because the batches are the same.
    A client's ranks run on one machine and share the first rank's folder.
    """
    own = ctx.folder("prefix")
    if own is not None or not ctx.plan.levers.views:  # nothing is cached without views
        yield own or Path(tempfile.gettempdir())
        return
    with tempfile.TemporaryDirectory(prefix="lwfed-prefix-") as scratch:
        yield Path(ranks.each(lambda: scratch)[0])


def prefixes_of(ctx: ClientContext, checkpoint: Checkpoint, *, examples: Sequence[Example], folder: Path) -> Prefixes:
    """Returns the frozen blocks' outputs for the modalities whose plan caches them, computing those not cached yet.

    A modality that no example has is left out.

    A client's ranks share the work and end the same way: if one rank fails, all raise the error or report no room.

    Args:
        ctx: The client's part of the round.
        checkpoint: The global model, for the frozen blocks' digests.
        examples: The examples that the client trains on.
        folder: The cache's folder; see `prefix_folder`.

    Raises:
        DataError: A file cannot be read.
        CheckpointError: A frozen block is missing or damaged.
    """
    plan, bench = ctx.plan, ctx.bench
    views = plan.levers.views
    if not views:
        return Prefixes()
    started = time.monotonic()
    cached, states = dict[str, CachedPrefix](), dict[str, str]()
    for modality, count in views.items():
        if modality in ctx.work.lacks:
            continue
        function = _function(ctx, modality)
        inputs = Inputs(
            modality, tuple(examples), bench.inputs(ctx.stage), plan.seed, plan.data.augment, count, function
        )
        chain = tuple(checkpoint.blocks[unit].digest for unit in frozen_units(plan, modality))
        code = code_version(frozenset({plan.model.encoders[modality].family, plan.data.source}))
        found = _agreed(find_cached(folder, inputs, chain=chain, code=code))
        if found is not None and found.chain == chain:
            cached[modality], states[modality] = found, "kept"
            continue
        if not ranks.agree(_has_room(folder, inputs, items=_items(ctx, modality))):
            states[modality] = f"recomputed: there is no room for it in {folder}"
            continue
        try:
            with closing(_outputs(ctx, checkpoint, inputs, found)) as outputs:
                cached[modality] = write_cache(folder, inputs, outputs, chain=chain, code=code)
            states[modality] = "filled"
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            states[modality] = f"recomputed: it cannot be written to {folder}: {error.strerror or error}"
    nbytes = sum(prefix.nbytes for prefix in cached.values())
    return Prefixes(cached=cached, states=states, fill_s=time.monotonic() - started, nbytes=nbytes)


def _function(ctx: ClientContext, modality: str) -> str:
    """Returns the digest of everything besides weights and inputs that decides the outputs."""
    encoder = ctx.plan.model.encoders[modality].model_dump(mode="json", exclude={"blocks_per_stage"})
    autocast = autocast_type(ctx.plan.training.precision, ctx.device)
    return digest_of(
        {"encoder": encoder, "precision": str(autocast), "device": ctx.device.type, "data": ctx.stage.data_version}
    )


def _agreed(found: CachedPrefix | None) -> CachedPrefix | None:
    """Returns what was found if all ranks found the same, else None, so that all ranks start from the same outputs."""
    seen = ranks.each(lambda: found.chain if found is not None else None)
    return found if all(chain == seen[0] for chain in seen) else None


def _items(ctx: ClientContext, modality: str) -> int:
    """Returns the number of items of one input's outputs; a text's at its largest length."""
    plan = ctx.plan
    encoder = ctx.bench.skeleton(ctx.key).encoder(modality)
    return items_after(encoder, plan.model.encoders[modality], depth=plan.cut[modality])


def _has_room(folder: Path, inputs: Inputs, *, items: int) -> bool:
    """Returns whether the disk has room for the outputs, before hours go into computing them; texts may need less."""
    place = folder
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free > 4 * len(inputs) * items


def frozen_units(plan: StagePlan, modality: str) -> tuple[str, ...]:
    """Returns the units of a modality's frozen prefix, from input to output; empty if nothing is frozen."""
    count = plan.cut[modality]
    return (f"{modality}.stem", *(f"{modality}.blocks.{i}" for i in range(count))) if count else ()


def _outputs(
    ctx: ClientContext, checkpoint: Checkpoint, inputs: Inputs, before: CachedPrefix | None
) -> Generator[tuple[Tensor, Tensor | None], None, None]:
    """Yields this rank's batches of frozen blocks' outputs, from the inputs or from cached outputs of fewer blocks."""
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
    """Returns the approximate number of tokens per input."""
    settings = inputs.settings
    about = {"text": settings.max_tokens, "image": (settings.image_size // 16) ** 2, "audio": settings.frames}
    about |= {sensor: window.length for sensor, window in settings.windows.items()}
    return max(1, about[inputs.modality])


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
