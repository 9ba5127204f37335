"""One client's part of a round: fetch what changed, train on its own examples, commit the update."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lwfed import ranks
from lwfed.data.batches import Batch, epoch_length, train_batches
from lwfed.federated.local import LocalResult, LocalSettings, MicroBatch, train
from lwfed.models.build import load, set_trained
from lwfed.models.recompute import set_recomputed
from lwfed.params import select
from lwfed.plan.stages import StagePlan
from lwfed.plan.units import group_of
from lwfed.steps.batching import part, tensors_of, to_device
from lwfed.steps.client_folder import tend_folder
from lwfed.steps.download import fetch_trained
from lwfed.steps.losses import batch_loss
from lwfed.steps.prefix import prefix_folder, prefixes_of
from lwfed.steps.runtime import autocast_type, computing, pick_device
from lwfed.steps.tasks import ClientTask
from lwfed.steps.upload import send, start_of
from lwfed.steps.workbench import Stage, Workbench
from lwfed.store import paths
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.counting import CountingStore
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError, DivergedError
from lwfed.types.tensors import unit_of

OnStep = Callable[[int, int, float], None]
"""Told (steps done, steps in all, last loss)."""


def train_client(task: ClientTask, *, bench: Workbench, on_step: OnStep | None = None) -> dict[str, Any]:
    """Trains a client for one round and commits its update.

    A client whose update is committed already does nothing.

    Args:
        task: Which client and round.
        bench: The process's bench.
        on_step: Told about each step.

    Returns:
        The committed update: client, num_examples, digest, blocks, metrics.

    Raises:
        DataError: The client's data are missing or too few.
        DivergedError: A loss or a weight is NaN or infinite.
        CheckpointError: The global model is missing or corrupted.
    """
    ref = paths.update(task.stage_key, task.server_round, task.client)
    done = bench.store.read_ref(ref)
    if ranks.agree(done is not None):
        return done or {}
    tend_folder(task, store=bench.store)
    stage = bench.stage(task.stage_key)
    plan = stage.plan
    with computing(threads=plan.training.threads), prefix_folder(task) as folder:
        device = pick_device(task.place.device)
        held, _ = bench.share(stage, task.place, task.client)
        store = CountingStore(bench.store)
        checkpoint = manifest_of(task, stage=stage, store=bench.store)
        prefixes = prefixes_of(
            task, bench=bench, stage=stage, held=held, checkpoint=checkpoint, store=store, device=device,
            folder=folder,
        )  # fmt: skip
        dropped = tuple(prefixes.kept)
        tensors, traffic = fetch_model(
            task, checkpoint, bench=bench, stage=stage, store=store, device=device, without=dropped
        )
        start = start_of(task, bench=bench, stage=stage, tensors=tensors)
        module = load(bench.skeleton(stage.key, *([dropped] if dropped else [])), tensors)
        set_trained(module, trained=plan.trained)
        set_recomputed(module, plan.training.activation_checkpointing)
        steps_per_epoch = epoch_length(len(held), plan.training.batch_size)
        steps = plan.training.local_steps or plan.training.local_epochs * steps_per_epoch
        batches = train_batches(
            bench.data(stage, task.place, task.client),
            examples=held,
            settings=bench.inputs(stage),
            batch_size=plan.training.batch_size,
            seed=plan.seed,
            first_view=(plan.first_round + task.server_round - 2) * -(-steps // steps_per_epoch),
            augment=plan.data.augment,
            workers=task.place.workers,
            num_batches=steps,
            views=plan.levers.views,
            kept=prefixes.kept,
            length_buckets=plan.data.length_buckets,
        )
        with closing(batches):
            result = train(
                parameter_groups(module, plan),
                loss=lambda batch: batch_loss(
                    module, batch, model=plan.model, cut=plan.cut, last_block=plan.levers.last_block
                ),
                batches=_micro_batches(batches, plan=plan, client=task.client, device=device),
                settings=LocalSettings(
                    steps=steps,
                    proximal_mu=plan.training.proximal_mu,
                    clip_norm=plan.training.clip_norm,
                    autocast=autocast_type(plan.training.precision, device),
                    seed=plan.round_seed(task.server_round, task.client, "dropout"),
                    moments=plan.training.moments,
                    step_in_backward=plan.training.step_in_backward,
                ),
                device=device,
                on_step=None if on_step is None else lambda step, loss: on_step(step, steps, loss),
                known=list(tensors.values()) if task.server_round == 1 else None,
            )
        trained = select({name: t.detach() for name, t in module.state_dict().items()}, units=plan.trained)
        mu = plan.training.proximal_mu  # FedProx keeps where the client started
        anchor = sum(t.numel() * t.element_size() for t in module.parameters() if t.requires_grad) if mu else 0
        module.to("meta")  # the bench keeps it, and not its weights
        _refuse_non_finite(trained, client=task.client)
        if ranks.rank() != 0:
            return {}
        blocks, digest, kept = send(task, bench=bench, stage=stage, store=store, trained=trained, start=start)
        traffic["bytes_up"] = sum(block.nbytes for block in blocks.values())
        update = {
            "client": task.client,
            "num_examples": len(held),
            "digest": digest,
            "blocks": {unit: block.to_values() for unit, block in blocks.items()},
            "metrics": {
                **_metrics(result, traffic, tensors, num_examples=len(held), anchor_bytes=anchor),
                **prefixes.metrics(),
                **kept,
            },
        }
    bench.store.write_ref(ref, update, if_absent=True)
    return bench.store.read_ref(ref) or update


def manifest_of(task: ClientTask, *, stage: Stage, store: Store, round_offset: int = 1) -> Checkpoint:
    """Reads the manifest of the global model.

    Args:
        task: Which client and round.
        stage: The stage.
        store: Where it is.
        round_offset: 1 for the model a round starts from, 0 for its result.

    Raises:
        CheckpointError: The model is missing, or another stage's.
    """
    key = paths.round_checkpoint(stage.key, task.server_round - round_offset)
    checkpoint = read_checkpoint(store, key)
    if checkpoint is None:
        raise CheckpointError(f"{key} is not committed", remedy="start the run again with the same --run-id")
    _check_units(checkpoint, stage.plan)
    return checkpoint


def fetch_model(
    task: ClientTask,
    checkpoint: Checkpoint,
    *,
    bench: Workbench,
    stage: Stage,
    store: CountingStore,
    device: torch.device,
    round_offset: int = 1,
    without: Sequence[str] = (),
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Fetches the global model: trained blocks anew, frozen ones only where the client has not got them.

    Args:
        task: Which client and round.
        checkpoint: Its manifest.
        bench: The process's bench.
        stage: The stage.
        store: Counts what is fetched; what it has counted so far was frozen blocks.
        device: Where to.
        round_offset: As `manifest_of` took it.
        without: Modalities whose frozen blocks are not needed: their outputs are kept.

    Returns:
        The tensors of the stage's model, and the bytes fetched.

    Raises:
        CheckpointError: A block is missing or corrupted.
    """
    server_round = task.server_round - round_offset
    cache = BlockCache(f"{task.place.cache}/{task.client}/{ranks.rank()}" if task.place.cache else None)
    needed = [unit for unit in stage.plan.frozen if unit.partition(".")[0] not in without]
    judged = stage.plan.frozen if stage.plan.evaluation.federated_every else ()  # whole, every few rounds
    frozen = bench.frozen(checkpoint, needed, store=store, cache=cache, device=device, spare=judged)
    frozen_bytes = store.bytes_read
    trained = fetch_trained(
        task, bench=bench, stage=stage, store=store, checkpoint=checkpoint, server_round=server_round,
        keep=round_offset == 1, device=device,
    )  # fmt: skip
    traffic = {"bytes_down": store.bytes_read - frozen_bytes, "bytes_down_frozen": frozen_bytes}
    return {**frozen, **trained}, traffic


def _check_units(checkpoint: Checkpoint, plan: StagePlan) -> None:
    if set(checkpoint.blocks) != set(plan.present):
        odd = sorted(set(checkpoint.blocks) ^ set(plan.present))
        raise CheckpointError(f"the checkpoint and the plan differ in {odd[0]}", remedy="train anew with --fresh")


def parameter_groups(module: torch.nn.Module, plan: StagePlan) -> list[tuple[list[torch.nn.Parameter], Any]]:
    """Gives a stage's trained parameters by module group, with the rates of each."""
    members: dict[str, list[torch.nn.Parameter]] = {group: [] for group in plan.rates}
    trained = set(plan.trained)
    for name, parameter in module.named_parameters():
        if unit_of(name) in trained:
            members[group_of(unit_of(name))].append(parameter)
    return [(members[group], rates) for group, rates in plan.rates.items()]


def _micro_batches(
    batches: Iterator[Batch], *, plan: StagePlan, client: str, device: torch.device
) -> Iterator[list[MicroBatch]]:
    for number, batch in enumerate(batches, start=1):
        parts = max(1, min(plan.training.gradient_accumulation, len(batch.ids) // (2 * ranks.size())))
        micros = []
        for index in range(parts):
            whole = part(batch, index, parts)
            mine = to_device(part(whole, ranks.rank(), ranks.size()), device)
            micros.append(
                MicroBatch(
                    value=mine,
                    share=len(whole.ids) / len(batch.ids),
                    rows=len(mine.ids),
                    name=f"batch {number} of {client} (examples {', '.join(islice(batch.ids, 3))} ...)",
                    tensors=tensors_of(mine),
                )
            )
        yield micros


def _refuse_non_finite(tensors: dict[str, Tensor], *, client: str) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):  # one pass, and no copy
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise DivergedError(
                f"{name} of {client} is not finite after training", remedy="lower training.learning_rate"
            )


def _metrics(
    result: LocalResult, traffic: dict[str, int], tensors: dict[str, Tensor], *, num_examples: int, anchor_bytes: int
) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "num_examples": num_examples,
        "steps": result.steps,
        "loss": result.loss,
        "loss_first": result.loss_first,
        "wall_s": result.wall_s,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **traffic,
    }
    if result.cost is not None:
        cost = result.cost
        weights = sum(t.numel() * t.element_size() for t in tensors.values())
        metrics["step_flops"] = {
            "forward": cost.forward_flops,
            "backward": cost.backward_flops,
            "batch": result.first_rows,
        }
        metrics["peak_tensor_bytes"] = weights + cost.gradients_bytes + cost.optimizer_bytes + cost.activations_bytes
        metrics["peak_tensor_bytes"] += anchor_bytes
        metrics["activations_bytes"] = cost.activations_bytes
        metrics["gradients_bytes"] = cost.gradients_bytes
        metrics["optimizer_bytes"] = cost.optimizer_bytes
        if cost.device_peak_bytes is not None:
            metrics["device_peak_bytes"] = cost.device_peak_bytes
    return metrics
