"""A client judges a round's result on the share of its examples that it does not train on."""

from __future__ import annotations

from typing import Any

from lwfed.models.build import load
from lwfed.round.download import fetch_model, manifest_of
from lwfed.round.evaluate import evaluate
from lwfed.round.runtime import computing, pick_device
from lwfed.round.workbench import Workbench
from lwfed.run.client_folder import tend_folder
from lwfed.run.tasks import ClientTask
from lwfed.store import paths
from lwfed.store.counting import CountingStore


def evaluate_client(task: ClientTask, *, bench: Workbench) -> dict[str, Any]:
    """Evaluates a round's checkpoint on a client's held-out share and commits the metrics.

    Args:
        task: Which client and round.
        bench: The process's bench.

    Returns:
        The committed value: client, num_examples (0 where nothing is held out), metrics.

    Raises:
        CheckpointError: The round's checkpoint is missing or corrupted.
    """
    ref = paths.client_evaluation(task.stage_key, task.server_round, task.client)
    done = bench.store.read_ref(ref)
    if done is not None:
        return done
    tend_folder(task, store=bench.store)
    stage = bench.stage(task.stage_key)
    plan = stage.plan
    _, held_out = bench.share(stage, task.place, task.client)
    metrics: dict[str, float] = {}
    if len(held_out) > 1:
        with computing(threads=plan.training.threads):
            device = pick_device(task.place.device)
            store = CountingStore(bench.store)
            checkpoint = manifest_of(task, stage=stage, store=bench.store, round_offset=0)
            tensors, _ = fetch_model(
                task, checkpoint, bench=bench, stage=stage, store=store, device=device, round_offset=0
            )
            module = load(bench.skeleton(stage.key), tensors)
            metrics = evaluate(
                module,
                source=bench.data(stage, task.place, task.client),
                examples=held_out,
                inputs=bench.inputs(stage),
                model=plan.model,
                evaluation=plan.evaluation,
                workers=task.place.workers,
                device=device,
                prefix="federated",
            )
            module.to("meta")  # the bench keeps it, and not its weights
    value = {"client": task.client, "num_examples": len(held_out) if metrics else 0, "metrics": metrics}
    bench.store.write_ref(ref, value, if_absent=True)
    return value
