"""A client's evaluation of a round's result on its held-out examples, and for blending on a sample of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lwfed.data.protocol import Example
from lwfed.models.build import load
from lwfed.round.context import ClientContext
from lwfed.round.download import fetch_model
from lwfed.round.evaluate import evaluate
from lwfed.round.runtime import deterministic
from lwfed.round.workbench import Workbench
from lwfed.run.client_folder import maintain_folder
from lwfed.run.tasks import ClientTask
from lwfed.store import paths
from lwfed.types.seeds import derive


def evaluate_client(task: ClientTask, *, bench: Workbench) -> dict[str, Any]:
    """Evaluates a round's checkpoint on a client's held-out share and commits the metrics.

    Args:
        task: The client and the round.
        bench: The process's workbench.

    Returns:
        The committed value: client, num_examples (0 if nothing is held out), metrics.

    Raises:
        CheckpointError: The round's checkpoint is missing or corrupted.
    """
    ref = paths.client_evaluation(task.stage_key, task.server_round, task.client)
    done = bench.store.read_ref(ref)
    if done is not None:
        return done
    maintain_folder(task, store=bench.store)
    ctx = bench.client(task)
    trained, share = bench.share(ctx.stage, ctx.place, ctx.client)
    held_out = bench.unchanged(ctx.stage, ctx.place, share, ctx.client)
    metrics: dict[str, float] = {}
    if len(held_out) > 1:
        fitted: list[Example] = []
        if ctx.plan.model.blending is not None:
            sample = sample_of(trained, count=len(held_out), seed=derive(ctx.plan.seed, "fitted", ctx.client))
            fitted = bench.unchanged(ctx.stage, ctx.place, sample, ctx.client)
        with deterministic(threads=ctx.plan.training.threads):
            metrics = _evaluate(ctx, held_out, fitted=fitted)
    value = {"client": ctx.client, "num_examples": len(held_out) if metrics else 0, "metrics": metrics}
    ctx.store.write_ref(ref, value, if_absent=True)
    return value


def sample_of(examples: Sequence[Example], *, count: int, seed: str) -> list[Example]:
    """Returns a seeded sample of examples, in their order: the same for the same ids, whatever the round."""
    drawn = sorted(range(len(examples)), key=lambda n: derive(seed, examples[n].id))[:count]
    return [examples[n] for n in sorted(drawn)]


def _evaluate(ctx: ClientContext, held_out: Sequence[Example], *, fitted: Sequence[Example]) -> dict[str, float]:
    """Returns the metrics on held-out examples, `federated/...`, and the losses on others, `fitted/.../loss`."""
    model = fetch_model(ctx, ctx.outcome(), to_train=False)
    module = load(ctx.bench.skeleton(ctx.key, (), ctx.work.lacks), model.tensors)
    metrics: dict[str, float] = {}
    for prefix, examples in (("fitted", fitted), ("federated", held_out)):
        if examples:
            metrics |= evaluate(
                module,
                source=ctx.bench.data(ctx.stage, ctx.place, ctx.client),
                examples=examples,
                inputs=ctx.bench.inputs(ctx.stage),
                model=ctx.plan.model,
                evaluation=ctx.plan.evaluation,
                workers=ctx.place.workers,
                device=ctx.device,
                prefix=prefix,
            )
    module.slots.empty()  # the workbench keeps the module, but not its weights
    return {name: value for name, value in metrics.items() if name.endswith("/loss") or not name.startswith("fitted/")}
