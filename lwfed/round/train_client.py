"""One client's part of a round: fetch what changed, train on its own examples, commit the update."""

from __future__ import annotations

import resource
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lwfed import ranks
from lwfed.data.batches import Batch, epoch_length, train_batches
from lwfed.federated.local import LocalResult, LocalSettings, MicroBatch, train
from lwfed.models.build import load, set_trained, tensor_specs
from lwfed.models.recompute import set_recomputed
from lwfed.params import select
from lwfed.plan.stages import StagePlan
from lwfed.plan.units import group_of
from lwfed.round.batching import part, read_ahead, tensors_of
from lwfed.round.download import fetch_model, manifest_of
from lwfed.round.losses import batch_loss
from lwfed.round.prefix import prefix_folder, prefixes_of
from lwfed.round.runtime import autocast_type, computing, pick_device
from lwfed.round.upload import Start, send, start_of
from lwfed.round.workbench import Workbench
from lwfed.run.client_folder import tend_folder
from lwfed.run.stage import Stage
from lwfed.run.tasks import ClientTask
from lwfed.store import paths
from lwfed.store.counting import CountingStore
from lwfed.types.errors import DivergedError
from lwfed.types.tensors import TensorSpec, unit_of

OnStep = Callable[[int, int, float], None]
"""Told (steps done, steps in all, last loss)."""


@dataclass(frozen=True)
class Trained:
    """What a client's training made, not committed yet.

    Attributes:
        task: Which client and round.
        stage: The stage.
        store: Where to; it counts.
        specs: The model's tensors, by name.
        tensors: What was trained, on the device.
        start: What training started from.
        num_examples: w_n.
        metrics: What the update tells.
    """

    task: ClientTask
    stage: Stage
    store: CountingStore
    specs: Mapping[str, TensorSpec]
    tensors: Mapping[str, Tensor]
    start: Start
    num_examples: int
    metrics: Mapping[str, Any]


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
    with computing():
        trained = train_locally(task, bench=bench, on_step=on_step)
        if trained is None:
            return bench.store.read_ref(paths.update(task.stage_key, task.server_round, task.client)) or {}
        return commit(trained, bench=bench)


def train_locally(task: ClientTask, *, bench: Workbench, on_step: OnStep | None = None) -> Trained | None:
    """Trains a client for one round; `commit` makes an update of it.

    Gives None where the update is committed already. Takes and raises what `train_client` does.
    """
    done = bench.store.read_ref(paths.update(task.stage_key, task.server_round, task.client))
    if ranks.agree(done is not None):
        return None
    unkept = tend_folder(task, store=bench.store)
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
        specs = tensor_specs(module)
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
            pin=device.type == "cuda",
        )
        micros = _micro_batches(batches, plan=plan, client=task.client, device=device)
        with closing(batches), closing(micros):
            result = train(
                parameter_groups(module, plan),
                loss=lambda batch: batch_loss(
                    module, batch, model=plan.model, cut=plan.cut, last_block=plan.levers.last_block
                ),
                batches=micros,
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
    bench.num_examples[task.stage_key, task.client] = len(held)
    return Trained(
        task=task,
        stage=stage,
        store=store,
        specs={name: specs[name] for name in trained},
        tensors=trained,
        start=start,
        num_examples=len(held),
        metrics={
            **_metrics(result, traffic, tensors, num_examples=len(held), anchor_bytes=anchor),
            **prefixes.metrics(),
            **({"unkept": unkept} if unkept else {}),
        },
    )


def commit(trained: Trained, *, bench: Workbench) -> dict[str, Any]:
    """Commits an update: its tensors first, then the update itself. It may run beside the next client's training.

    Args:
        trained: What training made.
        bench: The process's bench.

    Returns:
        The committed update; of several ranks the first commits, and the others give nothing.

    Raises:
        DivergedError: A weight is NaN or infinite.
        DiskFullError: There is no space left.
    """
    task, stage = trained.task, trained.stage
    _refuse_non_finite(trained.tensors, client=task.client)
    if ranks.rank() != 0:
        return {}
    sent = send(
        task, bench=bench, stage=stage, store=trained.store, trained=trained.tensors, start=trained.start,
        specs=trained.specs, keep=bench.running_sum is not None,
    )  # fmt: skip
    nbytes = sum(block.nbytes for block in sent.blocks.values())
    update = {
        "client": task.client,
        "num_examples": trained.num_examples,
        "digest": sent.digest,
        "blocks": {unit: block.to_values() for unit, block in sent.blocks.items()},
        "metrics": {**trained.metrics, "bytes_up": nbytes, **sent.metrics},
    }
    ref = paths.update(task.stage_key, task.server_round, task.client)
    if bench.store.write_ref(ref, update, if_absent=True) and bench.running_sum is not None:
        bench.running_sum.add(task.client, sent.tensors, digest=sent.digest)
    return bench.store.read_ref(ref) or update


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
) -> Generator[list[MicroBatch], None, None]:
    """Yields for each step the parts of its batch, on the device; the next ones are read meanwhile."""
    wholes: deque[tuple[tuple[str, ...], list[int]]] = deque()

    def parts_of() -> Iterator[list[Batch]]:
        for batch in batches:
            count = max(1, min(plan.training.gradient_accumulation, len(batch.ids) // (2 * ranks.size())))
            parts = [part(batch, index, count) for index in range(count)]
            wholes.append((batch.ids, [len(one.ids) for one in parts]))
            yield [part(one, ranks.rank(), ranks.size()) for one in parts]

    with closing(read_ahead(parts_of(), device=device)) as steps:
        for number, mine in enumerate(steps, start=1):
            ids, sizes = wholes.popleft()
            yield [
                MicroBatch(
                    value=one,
                    share=size / len(ids),
                    rows=len(one.ids),
                    name=f"batch {number} of {client} (examples {', '.join(islice(ids, 3))} ...)",
                    tensors=tensors_of(one),
                )
                for one, size in zip(mine, sizes, strict=True)
            ]


def _refuse_non_finite(tensors: Mapping[str, Tensor], *, client: str) -> None:
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
