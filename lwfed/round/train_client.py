"""One client's part of a round: fetch the global model, train on its own examples, commit the update.

The client's half of FedAvg (McMahan et al. 2017, Algorithm 1, `ClientUpdate`); the training itself is
`lwfed.federated.local.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lwfed import ranks
from lwfed.data.batches import Batch
from lwfed.data.incomplete import examples_with
from lwfed.federated.local import LocalSettings, train
from lwfed.models.build import load, set_trained, tensor_specs
from lwfed.models.recompute import set_recomputed
from lwfed.params import select
from lwfed.round import upload
from lwfed.round.batching import micro_batches
from lwfed.round.blending import read_head_weights
from lwfed.round.client_metrics import client_metrics, refuse_non_finite
from lwfed.round.context import ClientContext
from lwfed.round.download import fetch_model
from lwfed.round.losses import batch_loss, class_weights_of, parameter_groups, received_heads
from lwfed.round.prefix import prefix_folder, prefixes_of
from lwfed.round.runtime import autocast_type, deterministic
from lwfed.round.senders import Counted
from lwfed.round.upload import Start, remember_start, send
from lwfed.round.workbench import Workbench
from lwfed.run.tasks import ClientTask
from lwfed.store import paths
from lwfed.types.round_records import AcceptedUpdate, ClientRecord
from lwfed.types.tensors import TensorSpec

OnStep = Callable[[int, int, float], None]
"""Called with (steps done, total steps, last loss)."""


@dataclass(frozen=True)
class Trained:
    """The result of a client's training, not committed yet.

    Attributes:
        ctx: The client's part of the round.
        specs: Types and shapes of the trained tensors, by name.
        tensors: The trained tensors, on the device.
        start: The values that training started from.
        num_examples: w_n.
        metrics: The update's metrics.
    """

    ctx: ClientContext
    specs: Mapping[str, TensorSpec]
    tensors: Mapping[str, Tensor]
    start: Start
    num_examples: int
    metrics: Mapping[str, Any]


def train_client(task: ClientTask, *, bench: Workbench, on_step: OnStep | None = None) -> dict[str, Any]:
    """Trains a client for one round and commits its update. Does nothing if the update is already committed.

    Args:
        task: The client and the round.
        bench: The process's workbench.
        on_step: Called after each step.

    Returns:
        The committed update: client, num_examples, digest, blocks, metrics.

    Raises:
        DataError: The client has no data or too few examples.
        DivergedError: A loss or a weight is NaN or infinite.
        CheckpointError: The global model is missing or corrupted.
    """
    with deterministic():
        trained = train_locally(task, bench=bench, on_step=on_step)
        if trained is None:
            return bench.store.read_ref(paths.update(task.stage_key, task.server_round, task.client)) or {}
        return commit(trained).update


def train_locally(
    task: ClientTask, *, bench: Workbench, on_step: OnStep | None = None, in_memory: bool = False
) -> Trained | None:
    """Trains a client for one round; `commit` then writes the update, or `hold` hands it over in memory.

    Returns None if the update is already committed. Arguments and errors are those of `train_client`.

    Args:
        task: The client and the round.
        bench: The process's workbench.
        on_step: Called after each step.
        in_memory: Whether the update will stay in memory: then the client trains whatever the store has.
    """
    done = not in_memory and bench.store.has(paths.update(task.stage_key, task.server_round, task.client))
    if ranks.agree(done):
        return None
    unkept = bench.maintain(task)
    ctx = bench.client(task)
    plan, training, work = ctx.plan, ctx.plan.training, ctx.work
    with deterministic(threads=training.threads), prefix_folder(ctx) as folder:
        share, examples = ctx.examples()
        checkpoint = ctx.start()
        prefixes = prefixes_of(ctx, checkpoint, examples=examples, folder=folder)
        model = fetch_model(ctx, checkpoint, without=tuple(prefixes.cached))
        module = load(bench.skeleton(ctx.key, tuple(prefixes.cached), work.lacks), model.tensors)
        specs = tensor_specs(module)
        start = remember_start(ctx, model.tensors, specs=specs)
        set_trained(module, trained=work.trained)
        set_recomputed(module, training.activation_checkpointing)
        received = received_heads(module, plan.model)
        weights, blend = class_weights_of(ctx.stage, device=ctx.device), read_head_weights(ctx)

        def loss(batch: Batch) -> Tensor:
            return batch_loss(
                module,
                batch,
                model=plan.model,
                cut=work.cut,
                cached_at=plan.cut,
                last_block=plan.levers.last_block,
                class_weights=weights,
                received=received,
                head_weights=blend,
            )

        batches = micro_batches(ctx, examples, cached=prefixes.cached)
        with closing(batches.steps):
            result = train(
                parameter_groups(module, trained=work.trained, rates=plan.rates),
                loss=loss,
                batches=batches.steps,
                settings=LocalSettings(
                    steps=batches.num_steps,
                    proximal_mu=training.proximal_mu,
                    clip_norm=training.clip_norm,
                    autocast=autocast_type(training.precision, ctx.device),
                    seed=ctx.seed(ctx.client, "dropout"),
                    moments=training.moments,
                    step_in_backward=training.step_in_backward,
                ),
                device=ctx.device,
                on_step=None if on_step is None else lambda step, loss: on_step(step, batches.num_steps, loss),
                measure=list(model.tensors.values()) if task.measure else None,
            )
        trained = {name: t.detach() for name, t in select(module.slots.tensors(), units=work.trained).items()}
        metrics = client_metrics(
            result,
            module,
            model,
            num_examples=len(examples),
            proximal_mu=training.proximal_mu,
            beside=[tensor for head in received.values() for tensor in head.state_dict().values()],
            examples=examples_with(examples, plan.model.modalities),
        )
        module.slots.empty()  # the workbench keeps the module, but not its weights
    troubles = {"unkept": unkept, "changed_files": len(share) - len(examples)}
    return Trained(
        ctx=ctx,
        specs={name: specs[name] for name in trained},
        tensors=trained,
        start=start,
        num_examples=len(examples),
        metrics={**metrics, **prefixes.metrics(), **{name: value for name, value in troubles.items() if value}},
    )


@dataclass(frozen=True)
class Committed:
    """A committed update.

    Attributes:
        update: The update, as stored.
        sent: The tensors as sent, on the CPU; None if `keep` was not set, or if another process committed the client's
            update first.
    """

    update: dict[str, Any]
    sent: dict[str, Tensor] | None = None


def commit(trained: Trained, *, keep: bool = False) -> Committed:
    """Commits an update: its tensors first, then the update itself. May run while the next client trains.

    Args:
        trained: The result of training.
        keep: Whether to return the tensors that were sent.

    Returns:
        The committed update. With several ranks, the first one commits and the others return an empty update.

    Raises:
        DivergedError: A weight is NaN or infinite.
        DiskFullError: There is no space left.
    """
    ctx = trained.ctx
    refuse_non_finite(trained.tensors, client=ctx.client)
    if ranks.rank() != 0:
        return Committed({})
    sent = send(ctx, trained.tensors, start=trained.start, specs=trained.specs, keep=keep)
    nbytes = sum(block.nbytes for block in sent.blocks.values())
    update = {
        "client": ctx.client,
        "num_examples": trained.num_examples,
        "digest": sent.digest,
        "blocks": {unit: block.to_values() for unit, block in sent.blocks.items()},
        "metrics": {**trained.metrics, "bytes_up": nbytes, **sent.metrics},
    }
    ref = paths.update(ctx.key, ctx.server_round, ctx.client)
    first = ctx.store.write_ref(ref, update, if_absent=True)
    if not first:
        return Committed(ctx.store.read_ref(ref) or update)
    return Committed(update, sent.tensors if keep else None)


def hold(trained: Trained) -> tuple[AcceptedUpdate, Mapping[str, Tensor]]:
    """Returns an update and its tensors as they would be sent; only its rounding error is written.

    Args:
        trained: The result of training, on the CPU.

    Raises:
        DivergedError: A weight is NaN or infinite.
    """
    ctx = trained.ctx
    refuse_non_finite(trained.tensors, client=ctx.client)
    held = upload.hold(ctx, trained.tensors, start=trained.start, specs=trained.specs)
    metrics = {**trained.metrics, "bytes_up": held.nbytes, **held.metrics}
    return AcceptedUpdate(num_examples=trained.num_examples, metrics=ClientRecord.of(metrics)), held.tensors


def count_examples(task: ClientTask, *, bench: Workbench) -> Counted:
    """Returns how much a client's update will count, before it trains. Raises DataError as `train_client` does."""
    ctx = bench.client(task)
    _, examples = ctx.examples()
    return Counted(len(examples), examples_with(examples, ctx.plan.model.modalities))
