"""A client's batches of one round, split into micro-batches and among the client's ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from lwfed import ranks
from lwfed.data.batches import Batch, epoch_length, train_batches
from lwfed.data.prefix_cache import CachedPrefix
from lwfed.data.protocol import Example
from lwfed.federated.local import MicroBatch
from lwfed.round.batching import part, read_ahead, tensors_of
from lwfed.round.context import ClientContext


@dataclass(frozen=True)
class ClientBatches:
    """A round's batches.

    Attributes:
        num_steps: Number of steps.
        steps: The parts of each step's batch, on the device.
    """

    num_steps: int
    steps: Generator[list[MicroBatch], None, None]


def micro_batches(
    ctx: ClientContext, examples: Sequence[Example], *, cached: Mapping[str, CachedPrefix]
) -> ClientBatches:
    """Draws a client's batches of a round; the next batch is read while one is in use.

    Args:
        ctx: The client's part of the round.
        examples: The examples that the client trains on.
        cached: Modality -> cached outputs of its frozen blocks, read instead of its inputs.
    """
    plan, training = ctx.plan, ctx.plan.training
    per_epoch = epoch_length(len(examples), training.batch_size)
    num_steps = training.local_steps or training.local_epochs * per_epoch
    batches = train_batches(
        ctx.bench.data(ctx.stage, ctx.place, ctx.client),
        examples=examples,
        settings=ctx.bench.inputs(ctx.stage),
        batch_size=training.batch_size,
        seed=plan.seed,
        first_view=(plan.first_round + ctx.server_round - 2) * -(-num_steps // per_epoch),
        augment=plan.data.augment,
        workers=ctx.place.workers,
        num_batches=num_steps,
        views=plan.levers.views,
        cached=cached,
        length_buckets=plan.data.length_buckets,
        pin=ctx.device.type == "cuda",
    )
    return ClientBatches(num_steps, _parts(ctx, batches))


def _parts(ctx: ClientContext, batches: Generator[Batch, None, None]) -> Generator[list[MicroBatch], None, None]:
    """Yields the parts of each step's batch, on the device."""
    wholes: deque[tuple[tuple[str, ...], list[int]]] = deque()

    def cut() -> Iterator[list[Batch]]:
        for batch in batches:
            count = max(1, min(ctx.plan.training.gradient_accumulation, len(batch.ids) // (2 * ranks.size())))
            parts = [part(batch, index, count) for index in range(count)]
            wholes.append((batch.ids, [len(one.ids) for one in parts]))
            yield [part(one, ranks.rank(), ranks.size()) for one in parts]

    with closing(batches), closing(read_ahead(cut(), device=ctx.device)) as steps:
        for number, mine in enumerate(steps, start=1):
            ids, sizes = wholes.popleft()
            yield [
                MicroBatch(
                    value=one,
                    share=size / len(ids),
                    rows=len(one.ids),
                    name=f"batch {number} of {ctx.client} (examples {', '.join(islice(ids, 3))} ...)",
                    tensors=tensors_of(one),
                )
                for one, size in zip(mine, sizes, strict=True)
            ]
