"""A training step of the last stage with all levers, beside end-to-end training: seconds, FLOPs, bytes.

Full-size models with seeded weights and random inputs of the right shape. On a CPU: one thread, and steps of all
variants take turns, so that all meet the same machine; ratios are medians over turns. On a GPU each variant has it to
itself, in mixed precision as a client trains there. Run it: `python tests/bench/bench_step.py [advance]`, or
with a GPU and its batch sizes `python tests/bench/bench_step.py coco advance --device cuda --batch 256 1024`.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import Tensor

from lwfed import environment
from lwfed.cost.architectures import by_formulas
from lwfed.cost.ledger import end_to_end_cost, stage_costs
from lwfed.cost.stage_cost import StageCost
from lwfed.data.batches import Batch
from lwfed.federated.local import LocalSettings, MicroBatch, train
from lwfed.models.build import initial_tensors, load, set_trained, skeleton, without_prefix
from lwfed.plan.stages import StagePlan, plan_stages
from lwfed.round.batching import tensors_of
from lwfed.round.losses import batch_loss
from lwfed.round.runtime import autocast_type, deterministic
from lwfed.round.train_client import parameter_groups
from lwfed.spec.load import load_spec
from lwfed.types.errors import OutOfMemoryError

TURNS = 5
AIMS = {"coco": 7.0, "advance": 11.0}
"""Times faster than a step of end-to-end training."""
BATCH = {"coco": 32, "advance": 4}
"""Examples of a timed step; an end-to-end step of ADVANCE keeps half a gigabyte an example."""
GPU_BATCHES = [256, 1024]
GPU_STEPS = 10
"""Timed together, since the device works behind the program."""
NUM_CLASSES = 13
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "end_to_end": ("strategy=end_to_end", "levers.last_block=full"),
    "layerwise, no lever": ("levers.prefix_cache=never", "levers.last_block=full"),
    "prefix kept": ("levers.last_block=full",),
    "prefix kept, one token": (),
    "and stepped in backward": ("training.step_in_backward=true",),
    "and narrow heads": ("training.step_in_backward=true", "model.projection.hidden=1024"),
}


@dataclass(frozen=True)
class Variant:
    """A way to train the last stage.

    Attributes:
        step: Takes some steps and gives the seconds of one.
        cost: What the ledger predicts.
        measured: FLOPs a sample, and bytes at the peak, of one step.
    """

    step: Callable[[int], float]
    cost: StageCost
    measured: tuple[float, float]


def make(preset: str, overrides: tuple[str, ...], *, batch: int, device: torch.device) -> Variant:
    """Builds a variant with its weights, inputs and prices."""
    precision = "bf16" if device.type == "cuda" else "fp32"
    general = [f"training.batch_size={batch}", f"training.precision={precision}"]
    spec = load_spec(preset, overrides=[*general, *overrides])
    architectures = {m: found for m, encoder in spec.model.encoders.items() if (found := by_formulas(encoder))}
    stages = plan_stages(spec, depths={m: found.depth for m, found in architectures.items()})
    plan = stages[-1]
    if spec.strategy == "end_to_end":
        cost = end_to_end_cost(stages, architectures=architectures, num_classes=NUM_CLASSES)
    else:
        cost = stage_costs(stages, architectures=architectures, num_classes=NUM_CLASSES)[-1]
    kept = {modality: plan.cut[modality] for modality in plan.levers.views}
    units = [u for u in plan.present if u in plan.trained or u.partition(".")[0] not in kept]
    tensors = initial_tensors(plan.model, units=units, depth=plan.depth, num_classes=NUM_CLASSES, seed=plan.seed)
    module = without_prefix(skeleton(plan.model, depth=plan.depth, num_classes=NUM_CLASSES), cut=kept)
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    load(module, tensors)
    set_trained(module, trained=plan.trained)
    widths = {m: a.width for m, a in architectures.items()}
    value = inputs_of(plan, kept=kept, tokens=cost.tokens, widths=widths, device=device)

    def run(steps: int = 1, measure: list[Tensor] | None = None) -> Any:
        micro = MicroBatch(value=value, share=1.0, rows=batch, name="a batch", tensors=tensors_of(value))
        return train(
            parameter_groups(module, trained=plan.trained, rates=plan.rates),
            loss=lambda b: batch_loss(module, b, model=plan.model, cut=plan.cut, last_block=plan.levers.last_block),
            batches=repeat([micro]),
            settings=LocalSettings(
                steps=steps, proximal_mu=0.0, clip_norm=None, autocast=autocast_type(precision, device), seed="5eed",
                moments=plan.training.moments, step_in_backward=plan.training.step_in_backward,
            ),
            device=device,
            measure=measure,
        )  # fmt: skip

    def timed(steps: int) -> float:
        with deterministic(threads=1):
            _wait(device)
            started = time.perf_counter()
            run(steps)
            _wait(device)
        return (time.perf_counter() - started) / steps

    found = run(measure=list(tensors.values())).cost
    weights = sum(t.numel() * t.element_size() for t in tensors.values())
    peak = weights + found.gradients_bytes + found.optimizer_bytes + found.activations_bytes
    return Variant(
        step=timed,
        cost=cost,
        measured=((found.forward_flops + found.backward_flops) / batch, float(peak)),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def inputs_of(
    plan: StagePlan,
    *,
    kept: Mapping[str, int],
    tokens: Mapping[str, int],
    widths: Mapping[str, int],
    device: torch.device,
) -> Batch:
    """Returns random inputs: raw ones, or outputs of frozen blocks where these are kept."""
    size = plan.training.batch_size
    drawn: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    inputs: dict[str, Any] = {}
    for modality in plan.model.modalities:
        count = tokens[modality]
        if modality in kept:
            inputs[modality] = {"tokens": torch.randn(size, count, widths[modality], **drawn)}
            if modality == "text":
                inputs[modality]["mask"] = torch.ones(size, count, dtype=torch.bool, device=device)
        elif modality == "image":
            inputs[modality] = torch.randn(size, 3, 224, 224, **drawn)
        elif modality == "audio":
            inputs[modality] = torch.randn(size, 1024, 128, **drawn)
        else:
            ids = torch.randint(1, 1000, (size, count), **drawn)
            inputs[modality] = {"ids": ids, "mask": torch.ones(size, count, dtype=torch.bool, device=device)}
    labels = torch.randint(0, NUM_CLASSES, (size,), **drawn)
    return Batch(inputs=inputs, labels=labels, ids=tuple(map(str, range(size))))


def measure(task: str, *, turns: int = TURNS) -> dict[str, dict[str, float]]:
    """Measures all variants of a task, `coco` or `advance`, on a CPU.

    Returns:
        Variant -> median seconds of a step, times faster than end_to_end (median of paired steps), GFLOP a sample and
        peak MB, measured and predicted, and bytes exchanged one way.
    """
    made = {
        name: make(f"{task}-layerwise", overrides, batch=BATCH[task], device=torch.device("cpu"))
        for name, overrides in VARIANTS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(turns + 1):  # the first warms up
        for name, variant in made.items():
            spent = variant.step(1)
            if turn:
                seconds[name].append(spent)
    return {name: _figures(variant, seconds[name], whole=seconds["end_to_end"]) for name, variant in made.items()}


def measure_on_gpu(task: str, *, batch: int, turns: int = TURNS) -> dict[str, dict[str, float]]:
    """Measures all variants of a task on a GPU, each alone there; one that does not fit has no seconds.

    Returns:
        As `measure` gives; besides `device_mb`, the device's own peak.
    """
    found: dict[str, dict[str, float]] = {}
    whole: list[float] = []
    context = multiprocessing.get_context("spawn")
    for name in VARIANTS:
        with context.Pool(1) as pool:  # one that did not fit leaves nothing to the next
            one = pool.apply(_alone, (task, name), {"batch": batch, "turns": turns})
        if one is None:
            found[name] = {}
            continue
        found[name], seconds = one
        whole = whole or (seconds if name == "end_to_end" else [])
        if whole:
            found[name]["faster"] = statistics.median(a / b for a, b in zip(whole, seconds, strict=True))
    return found


def _alone(task: str, name: str, *, batch: int, turns: int) -> tuple[dict[str, float], list[float]] | None:
    """Measures one variant on a GPU; returns its figures and seconds, or None where it does not fit."""
    environment.quiet()
    device = torch.device("cuda")
    try:
        variant = make(f"{task}-layerwise", VARIANTS[name], batch=batch, device=device)
        variant.step(GPU_STEPS)
        seconds = [variant.step(GPU_STEPS) for _ in range(turns)]
    except (torch.OutOfMemoryError, OutOfMemoryError):
        return None
    return _figures(variant, seconds, whole=[]) | {"device_mb": torch.cuda.max_memory_allocated(device) / 1e6}, seconds


def _figures(variant: Variant, seconds: Sequence[float], *, whole: Sequence[float]) -> dict[str, float]:
    return {
        "seconds": statistics.median(seconds),
        "faster": statistics.median(a / b for a, b in zip(whole, seconds, strict=True)) if whole else math.nan,
        "gflop": variant.measured[0] / 1e9,
        "gflop_predicted": variant.cost.flops / 1e9,
        "peak_mb": variant.measured[1] / 1e6,
        "peak_mb_predicted": variant.cost.peak_bytes / 1e6,
        "mb_one_way": variant.cost.exchanged_bytes / 1e6,
    }


def table(task: str, found: Mapping[str, Mapping[str, float]], *, batch: int, where: str) -> str:
    """Writes the figures for people."""
    rows = [f"{task}, batch {batch}, stage 6 of 6, {where} (aim: a step at least {AIMS[task]:g} times faster)"]
    for name, row in found.items():
        if not row:
            rows.append(f"  {name:26} does not fit")
            continue
        device = f"   the device's own {row['device_mb']:.0f} MB" if "device_mb" in row else ""
        rows.append(
            f"  {name:26} {row['seconds']:8.4f} s  {row['faster']:5.2f}x   {row['gflop']:8.3f} GFLOP a sample "
            f"({row['gflop_predicted']:.3f})   {row['peak_mb']:6.0f} MB ({row['peak_mb_predicted']:.0f})   "
            f"{row['mb_one_way']:6.1f} MB one way{device}"
        )
    return "\n".join(rows)


@pytest.mark.bench
@pytest.mark.parametrize("task", sorted(AIMS))
def test_step(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure(task)
    with capsys.disabled():
        print("\n" + table(task, found, batch=BATCH[task], where="a CPU"))


@pytest.mark.bench
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("batch", GPU_BATCHES)
@pytest.mark.parametrize("task", sorted(AIMS))
def test_step_on_a_gpu(task: str, batch: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure_on_gpu(task, batch=batch)
    with capsys.disabled():
        print("\n" + table(task, found, batch=batch, where=torch.cuda.get_device_name()))


if __name__ == "__main__":
    environment.quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=sorted(AIMS), help="coco, advance")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", nargs="*", type=int, default=GPU_BATCHES, help="on a GPU")
    parser.add_argument("--turns", type=int, default=TURNS)
    chosen = parser.parse_args()
    for wanted in chosen.tasks:
        if chosen.device == "cpu":
            print(table(wanted, measure(wanted, turns=chosen.turns), batch=BATCH[wanted], where="a CPU"), flush=True)
            continue
        for size in chosen.batch:
            figures = measure_on_gpu(wanted, batch=size, turns=chosen.turns)
            print(table(wanted, figures, batch=size, where=torch.cuda.get_device_name()), flush=True)
