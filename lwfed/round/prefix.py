"""The cached outputs of a client's frozen blocks: read from its disk, or computed once per stage and written there.

Only what training draws is computed: in a stage's first round for all rounds that are certain to come, otherwise round
by round. At the next stage only the newly frozen blocks run, on the cached outputs of the earlier ones; what an earlier
stage did not draw is computed from the inputs. Blocks whose outputs are cached are not loaded. If outputs cannot be
cached, each step computes them, and the update says why.

Whatever an output is computed from, it is the same: with bf16 or int8 it is rounded after the blocks that earlier
stages froze, too (`levers.rounded_at` in the plan).
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lwfed import ranks
from lwfed.data.kept_rows import decode, rounded
from lwfed.data.prefix_cache import CachedPrefix, Entry, add_part, keep_only
from lwfed.data.prefix_inputs import FillBatch, Inputs, fill_batches
from lwfed.data.protocol import Example
from lwfed.models.build import load_units, skeleton
from lwfed.models.protocol import State
from lwfed.models.sample import shape_after
from lwfed.plan.stages import StagePlan
from lwfed.round.batching import move
from lwfed.round.context import ClientContext
from lwfed.round.download import frozen_cache
from lwfed.round.draws import drawn_in, rounds_to_come
from lwfed.round.runtime import autocast_type
from lwfed.run.version import code_version
from lwfed.store.checkpoint import Checkpoint
from lwfed.types.canonical import digest_of
from lwfed.types.kept import row_bytes

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM})
FILL_TOKENS = 16_384
"""Tokens per batch while a cache is filled; a constant, because sums depend on the batch's shape."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The cached outputs that a client trains on.

    Attributes:
        cached: Modality -> cached outputs, for the modalities that have them.
        states: Modality -> `kept`, `filled`, or `recomputed: ` and the reason; part of the update's metrics.
        filled: Modality -> number of units that need not run -> number of outputs computed without them.
        fill_s: Seconds spent filling caches.
    """

    cached: Mapping[str, CachedPrefix] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    filled: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    fill_s: float = 0.0

    def metrics(self) -> dict[str, Any]:
        """Returns the entries for the update's metrics, after training."""
        if not self.states:
            return {}
        filled = {m: {str(units): count for units, count in counts.items()} for m, counts in self.filled.items()}
        return {
            "prefix": dict(self.states),
            "prefix_fill_s": self.fill_s,
            "prefix_cache_bytes": sum(prefix.nbytes for prefix in self.cached.values()),
            "prefix_read_bytes": sum(prefix.read_bytes for prefix in self.cached.values()),
            **({"prefix_filled": filled} if filled else {}),
        }


@contextmanager
def prefix_folder(ctx: ClientContext) -> Iterator[Path]:
    """Opens the folder for a client's cached outputs: its own, or else a temporary one for this round.

    A client without a folder computes in each round what the round draws, and ends in the same numbers.
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
    views = ctx.plan.levers.views
    if not views:
        return Prefixes()
    started = time.monotonic()
    cached, states = dict[str, CachedPrefix](), dict[str, str]()
    filled = dict[str, dict[int, int]]()
    for modality in views:
        if modality in ctx.work.lacks:
            continue
        entry = _entry(ctx, checkpoint, modality, tuple(examples))
        kept = _read(folder, entry)
        missing = _missing(ctx, kept)
        if not missing:
            cached[modality], states[modality] = kept, "kept"
            continue
        if not ranks.agree(_has_room(ctx, folder, entry, count=len(missing))):
            states[modality] = f"recomputed: there is no room for it in {folder}"
            continue
        sources = [found for earlier in entry.earlier() if (found := _read(folder, earlier)).num_parts]
        origins = _origins(sources, missing)
        try:
            cached[modality] = _fill(ctx, checkpoint, folder, entry, origins)
            states[modality] = "filled"
            _tidy(ctx, folder, cached[modality], sources)
            filled[modality] = {origin.units: len(origin.numbers) for origin in origins}
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            states[modality] = f"recomputed: it cannot be written to {folder}: {error.strerror or error}"
    return Prefixes(cached=cached, states=states, filled=filled, fill_s=time.monotonic() - started)


def _entry(ctx: ClientContext, checkpoint: Checkpoint, modality: str, examples: tuple[Example, ...]) -> Entry:
    plan = ctx.plan
    settings, views = ctx.bench.inputs(ctx.stage), plan.levers.views[modality]
    return Entry(
        Inputs(modality, examples, settings, plan.seed, plan.data.augment, views, _function(ctx, modality)),
        chain=tuple(checkpoint.blocks[unit].digest for unit in frozen_units(plan, modality)),
        code=code_version(frozenset({plan.model.encoders[modality].family, plan.data.source})),
        codec=plan.levers.prefix_dtype,
        rounded_at=plan.levers.rounded_at.get(modality, ()),
    )


def _function(ctx: ClientContext, modality: str) -> str:
    """Returns the digest of everything besides weights and inputs that decides the outputs."""
    encoder = ctx.plan.model.encoders[modality].model_dump(mode="json", exclude={"blocks_per_stage"})
    autocast = autocast_type(ctx.plan.training.precision, ctx.device)
    return digest_of(
        {"encoder": encoder, "precision": str(autocast), "device": ctx.device.type, "data": ctx.stage.data_version}
    )


def _read(folder: Path, entry: Entry) -> CachedPrefix:
    """Reads an entry, with what all ranks found, so that all start from the same outputs."""
    found = CachedPrefix(folder, entry)
    if ranks.size() > 1:
        agreed = set.intersection(*(set(numbers) for numbers in ranks.each(lambda: found.numbers)))
        found.forget(set(found.numbers) - agreed)
    return found


def _missing(ctx: ClientContext, kept: CachedPrefix) -> list[int]:
    """Returns the inputs to compute now: if the round lacks any, all that it and the rounds to come lack."""
    everything = range(len(kept.inputs))
    if not kept.lacks(everything) or not kept.lacks(drawn_in(ctx.plan, (ctx.server_round,), inputs=kept.inputs)):
        return []
    rounds: tuple[int, ...] = (ctx.server_round,)
    if ctx.folder("prefix") is not None:  # otherwise nothing lasts
        rounds = rounds_to_come(
            ctx.plan, ctx.server_round, client=ctx.client, cohort=partial(ctx.bench.cohort, ctx.key)
        )
    return kept.lacks(drawn_in(ctx.plan, rounds, inputs=kept.inputs))


def _has_room(ctx: ClientContext, folder: Path, entry: Entry, *, count: int) -> bool:
    """Returns whether the disk has room for outputs, before hours go into computing them; texts may need less."""
    place = folder
    while not place.exists():
        place = place.parent
    plan, modality = ctx.plan, entry.inputs.modality
    length, width = shape_after(plan.model.encoders[modality], depth=plan.cut[modality])
    return shutil.disk_usage(place).free > count * length * row_bytes(width, entry.codec)


def frozen_units(plan: StagePlan, modality: str) -> tuple[str, ...]:
    """Returns the units of a modality's frozen prefix, from input to output; empty if nothing is frozen."""
    count = plan.cut[modality]
    return (f"{modality}.stem", *(f"{modality}.blocks.{i}" for i in range(count))) if count else ()


class Origin(NamedTuple):
    """What some inputs' outputs are computed from.

    Attributes:
        cached: Outputs of fewer blocks; None: the inputs themselves.
        numbers: The inputs.
    """

    cached: CachedPrefix | None
    numbers: list[int]

    @property
    def units(self) -> int:
        """Number of units that need not run."""
        return 0 if self.cached is None else len(self.cached.entry.chain)


def _origins(sources: Sequence[CachedPrefix], missing: list[int]) -> list[Origin]:
    """Returns where to start for each input: the most blocks whose output is cached, or the input."""
    found: list[Origin] = []
    for cached in sources:
        lacking = set(cached.lacks(missing))
        if len(lacking) < len(missing):
            found.append(Origin(cached, [number for number in missing if number not in lacking]))
            missing = [number for number in missing if number in lacking]
    return [*found, Origin(None, missing)] if missing else found


def _tidy(ctx: ClientContext, folder: Path, kept: CachedPrefix, sources: Sequence[CachedPrefix]) -> None:
    """Removes the modality's other entries, but for those from which a later round of the stage may need something."""
    needed = [] if ctx.plan.knows_rounds else [source.entry for source in sources if kept.lacks(source.numbers)]
    if ranks.rank() == 0:
        keep_only(folder, [kept.entry, *needed], modality=kept.inputs.modality)


def _fill(
    ctx: ClientContext, checkpoint: Checkpoint, folder: Path, entry: Entry, origins: Sequence[Origin]
) -> CachedPrefix:
    """Computes and writes outputs."""
    inputs = entry.inputs
    size = max(2, FILL_TOKENS // _tokens_of(inputs))
    batches = fill_batches(inputs, [o.numbers for o in origins], size=size, whole=ctx.device.type != "cpu")
    numbers = [number for _, batch in batches for number in batch.numbers]
    mine = [(origins[index], batch) for index, batch in batches[ranks.rank() :: ranks.size()]]
    with closing(_outputs(ctx, checkpoint, entry, mine)) as outputs:
        return add_part(folder, entry, outputs, numbers=numbers)


def _outputs(
    ctx: ClientContext, checkpoint: Checkpoint, entry: Entry, batches: Sequence[tuple[Origin, FillBatch]]
) -> Generator[tuple[Tensor, Tensor | None], None, None]:
    """Yields batches of frozen blocks' outputs, from the inputs or from cached outputs of fewer blocks.

    One block at a time, and from block to block in fp32, as if each had been the last one of an earlier stage.
    """
    plan, device, inputs = ctx.plan, ctx.device, entry.inputs
    units, cut = frozen_units(plan, inputs.modality), plan.cut[inputs.modality]
    cache = frozen_cache(ctx)
    others = [modality for modality in plan.model.modalities if modality != inputs.modality]
    module = skeleton(plan.model, depth=plan.depth, num_classes=ctx.stage.num_classes, lacks=others)
    for unit in units[min((origin.units for origin, _ in batches), default=len(units)) :]:
        tensors = cache.read(ctx.counted, checkpoint.blocks[unit])
        load_units(module, {name: tensor.to(device) for name, tensor in tensors.items()}, units=[unit])
    encoder = module.encoder(inputs.modality).eval().requires_grad_(False)
    autocast = autocast_type(plan.training.precision, device)
    source = ctx.bench.data(ctx.stage, ctx.place, ctx.client)
    loaded = inputs.load(source, [batch for origin, batch in batches if not origin.units], workers=ctx.place.workers)
    with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for origin, batch in batches:
            if origin.cached is None:
                state = encoder.embed(repeated(move(next(loaded), device), rows=batch.rows))
            else:
                found = origin.cached.at(batch.numbers, length=batch.length)
                found = repeated(move(found, device), rows=batch.rows)
                state = State(decode(found["tokens"]), found.get("mask"))
            start = max(origin.units - 1, 0)
            for block in range(start, cut):
                state = encoder.advance(state, start=block, stop=block + 1)
                if block + 1 < cut:
                    codec = entry.codec if block + 1 in entry.rounded_at else "fp32"
                    state = state._replace(tokens=rounded(state.tokens, codec))
            count = len(batch.numbers)
            yield state.tokens[:count], None if state.mask is None else state.mask[:count]


def repeated(value: Any, *, rows: int) -> Any:
    """Repeats the last row of an encoder's input, a tensor or a dictionary of them, until it has a number of rows."""
    if isinstance(value, dict):
        return {name: repeated(tensor, rows=rows) for name, tensor in value.items()}
    short = rows - value.shape[0]
    return torch.cat([value, value[-1:].expand(short, *value.shape[1:])]) if short else value


def _tokens_of(inputs: Inputs) -> int:
    """Returns the approximate number of tokens per input."""
    settings = inputs.settings
    about = {"text": settings.max_tokens, "image": (settings.image_size // 16) ** 2, "audio": settings.frames}
    about |= {sensor: window.length for sensor, window in settings.windows.items()}
    return max(1, about[inputs.modality])
