"""A client's batches of one round: split among ranks and micro-batches, and copied to a device ahead of their use."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, repeat
from typing import Any

import torch
from torch import Tensor

from lwfed import ranks
from lwfed.data.batches import Batch, train_batches
from lwfed.data.kept_rows import decode
from lwfed.data.prefix_cache import CachedPrefix
from lwfed.data.protocol import Example
from lwfed.federated.local import MicroBatch
from lwfed.plan.groups import FEWEST
from lwfed.round.context import ClientContext
from lwfed.round.draws import epochs_of
from lwfed.store.ahead import prefetch


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
    """Draws a client's batches of a round: `local_steps`, or those of `local_epochs` epochs.

    The next batch is read while one is in use.

    Args:
        ctx: The client's part of the round.
        examples: The examples that the client trains on.
        cached: Modality -> cached outputs of its frozen blocks, read instead of its inputs.
    """
    plan, training = ctx.plan, ctx.plan.training
    first_view, num_steps = epochs_of(plan, ctx.server_round, num_examples=len(examples))
    batches = train_batches(
        ctx.bench.data(ctx.stage, ctx.place, ctx.client),
        examples=examples,
        settings=ctx.bench.inputs(ctx.stage),
        batch_size=training.batch_size,
        seed=plan.seed,
        first_view=first_view,
        augment=plan.data.augment,
        workers=ctx.place.workers,
        num_batches=num_steps,
        views=plan.levers.views,
        cached=cached,
        length_buckets=plan.data.length_buckets,
        pin=ctx.device.type == "cuda",
    )
    return ClientBatches(num_steps, _parts(ctx, batches, ahead=num_steps > 1))


def _parts(
    ctx: ClientContext, batches: Generator[Batch, None, None], *, ahead: bool
) -> Generator[list[MicroBatch], None, None]:
    """Yields the parts of each step's batch, on the device; `ahead`: read by a thread, before they are asked for."""
    wholes: deque[tuple[tuple[str, ...], list[int]]] = deque()

    def cut() -> Iterator[list[Batch]]:
        for batch in batches:
            count = max(1, min(ctx.plan.training.gradient_accumulation, len(batch.ids) // (2 * ranks.size())))
            parts = [part(batch, index, count) for index in range(count)]
            wholes.append((batch.ids, [len(one.ids) for one in parts]))
            yield [part(one, ranks.rank(), ranks.size()) for one in parts]

    def here() -> Generator[list[Batch], None, None]:
        for parts in cut():
            yield [to_device(one, ctx.device) for one in parts]

    with closing(batches), closing(read_ahead(cut(), device=ctx.device) if ahead else here()) as steps:
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


def read_ahead(batches: Iterator[list[Batch]], *, device: torch.device) -> Generator[list[Batch], None, None]:
    """Yields batches, split into parts, on a device; the next batch is read and copied while one is in use.

    On a GPU, copies run on a stream of their own, in parallel with its kernels. Besides the batch in use, at most one
    is ready and one is being read.

    Args:
        batches: The parts of each batch, on the CPU; parts in pinned memory are copied asynchronously.
        device: The device to copy to.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def next_parts() -> tuple[list[Batch], torch.cuda.Event | None] | None:
        parts = next(batches, None)
        if parts is None or stream is None:
            return None if parts is None else ([to_device(one, device) for one in parts], None)
        torch.cuda.set_device(stream.device)  # sets it for this thread; the default is the first device
        with torch.cuda.stream(stream):
            return [to_device(one, device) for one in parts], stream.record_event()

    with closing(prefetch(repeat(next_parts))) as found:
        for item in found:
            if item is None:
                return
            parts, copied = item
            if copied is not None:
                now = torch.cuda.current_stream(device)
                now.wait_event(copied)
                for one in parts:
                    _map(one, partial(_used_on, stream=now))
            yield parts


def _used_on(tensor: Tensor, *, stream: torch.cuda.Stream) -> Tensor:
    """Informs the allocator that a tensor made on another stream is used on this one."""
    tensor.record_stream(stream)
    return tensor


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copies a batch to a device, and decodes cached outputs there; a no-op if it is already there and in fp32."""
    moved = _map(batch, lambda tensor: tensor.to(device, non_blocking=True))
    inputs = {m: {**v, "tokens": decode(v["tokens"])} if _is_cached(v) else v for m, v in moved.inputs.items()}
    return replace(moved, inputs=inputs)


def _is_cached(value: Any) -> bool:
    return isinstance(value, dict) and "tokens" in value


def part(batch: Batch, index: int, count: int) -> Batch:
    """Returns part `index` of `count` nearly equal parts of a batch, as views.

    A modality that fewer than `FEWEST` of the part's examples have is left out of the part.
    """
    if count == 1:
        return batch
    size = len(batch.ids)
    start, stop = size * index // count, size * (index + 1) // count
    inputs, rows = dict[str, Any](), dict[str, Tensor]()
    for modality, value in batch.inputs.items():
        which, own = slice(start, stop), batch.rows.get(modality)
        if own is not None:
            first, end = torch.searchsorted(own, torch.tensor([start, stop])).tolist()
            if end - first < FEWEST:
                continue
            which = slice(first, end)
            if end - first < stop - start:
                rows[modality] = own[which] - start
        inputs[modality] = _each(value, operator.itemgetter(which))
    labels = None if batch.labels is None else batch.labels[start:stop]
    return Batch(inputs=inputs, labels=labels, ids=batch.ids[start:stop], rows=rows)


def move(value: Any, device: torch.device) -> Any:
    """Copies an encoder's input to a device: a tensor or a dictionary of tensors."""
    return _each(value, lambda tensor: tensor.to(device, non_blocking=True))


def tensors_of(batch: Batch) -> tuple[Tensor, ...]:
    """Returns the raw input tensors of a batch; cached outputs of frozen blocks count as activations."""
    found: list[Tensor] = [] if batch.labels is None else [batch.labels]
    for value in batch.inputs.values():
        found += [t for k, t in value.items() if k != "tokens"] if isinstance(value, dict) else [value]
    return tuple(found)


def _map(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Changes inputs and labels; `rows` stay on the CPU."""
    inputs = {modality: _each(value, change) for modality, value in batch.inputs.items()}
    return replace(batch, inputs=inputs, labels=None if batch.labels is None else change(batch.labels))


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Changes an encoder's input: a tensor or a dictionary of tensors."""
    return {name: change(tensor) for name, tensor in value.items()} if isinstance(value, dict) else change(value)
