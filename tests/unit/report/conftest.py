"""Records of a plausible run: six stages, some without rounds, ten clients of which some fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

Record = dict[str, Any]
Records = tuple[Record, list[Record], list[Record]]
HEADS, STEM = 39_616_512, 23_953_920
EVERYTHING = 111_503_808


@pytest.fixture
def make_records() -> Callable[..., Records]:
    """Makes (RunRecord, StageRecords, RoundRecords)."""
    return build


@pytest.fixture
def make_retrieval() -> Callable[[], list[Record]]:
    """Makes queries with five retrieved images each."""
    return retrieval


def build(
    *,
    rounds: Sequence[int] = (0, 0, 4, 8, 10, 14),
    num_clients: int = 10,
    objective: str = "contrastive",
    failures: bool = True,
    every: int = 1,
    strategy: str = "layerwise",
) -> Records:
    """Makes the records of a run whose metrics rise and whose losses fall, seeded."""
    generator = np.random.default_rng(5)
    clients = {f"client-{n:03d}": int(60 + 140 * generator.random()) for n in range(num_clients)}
    predicted = [cost(stage, len(rounds)) for stage in range(1, len(rounds) + 1)]
    whole = cost(1, 1, everything=True)
    run = {
        "run_id": "shapes-layerwise-20261123-091500-3f9a",
        "name": "shapes-layerwise",
        "created": "2026-11-23T09:15:00+00:00",
        "strategy": strategy,
        "spec": {
            "name": "shapes-layerwise",
            "seed": 0,
            "strategy": strategy,
            "stages": {"rounds": list(rounds)},
            "federation": {"num_clients": num_clients, "fraction_fit": 0.7},
            "model": {"objective": {"kind": objective}},
        },
        "stages": [{"stage": stage, "key": digest("key", stage)} for stage in range(1, len(rounds) + 1)],
        "parent": {"run_id": "another name of a run", "stage": 2} if len(rounds) > 2 else None,
        "data": {
            "source": "shapes", "version": digest("data", 0), "num_train": sum(clients.values()), "num_test": 200,
            "clients": clients, "classes": ["circle", "square", "star"],
        },
        "code_version": digest("code", 0),
        "predicted": predicted,
        "end_to_end": whole,
    }  # fmt: skip
    found: list[Record] = []
    stages: list[Record] = []
    for stage, count in enumerate(rounds, start=1):
        for server_round in range(1, count + 1):
            found.append(one_round(stage, server_round, len(found) + 1, clients, objective, failures, every, generator))
        stages.append(one_stage(stage, count, predicted[stage - 1], found))
    return run, stages, found


def cost(stage: int, total: int, *, everything: bool = False) -> Record:
    trained = EVERYTHING if everything else HEADS + 7_978_000 + (STEM if stage == 1 else 0)
    depth = total if everything else stage
    return {
        "stage": stage, "present_params": EVERYTHING if everything else HEADS + STEM + depth * 7_978_000,
        "trained_params": trained,
        "exchanged_params": trained, "exchanged_bytes": 4 * trained, "frozen_bytes": 0,
        "newly_frozen_bytes": 0 if stage == 1 else 4 * 7_978_000,
        "forward_flops": 2.1e9 if everything else 0.35e9 * stage, "backward_flops": 4.2e9 if everything else 0.7e9,
        "tokens": {"image": 197, "text": 40}, "weights_bytes": 4 * trained, "gradients_bytes": 4 * trained,
        "optimizer_bytes": 8 * trained, "activations_bytes": 3_000_000_000 if everything else 500_000_000,
        "peak_bytes": 16 * trained + (3_000_000_000 if everything else 700_000_000 + 90_000_000 * stage),
        "batch_size": 32,
    }  # fmt: skip


def one_round(
    stage: int,
    server_round: int,
    number: int,
    clients: dict[str, int],
    objective: str,
    failures: bool,
    every: int,
    generator: np.random.Generator,
) -> Record:
    share = 1 - math.exp(-number / 14)
    sampled = sorted(generator.choice(sorted(clients), size=max(1, round(0.7 * len(clients))), replace=False).tolist())
    failed = {c: "killed by signal 9 (out of memory)" for c in sampled if failures and generator.random() < 0.06}
    took = {
        c: one_client(clients[c], 3.2 * math.exp(-number / 16) + 0.4, generator) for c in sampled if c not in failed
    }
    metrics: Record = {"train/loss": 3.2 * math.exp(-number / 16) + 0.35 + 0.04 * generator.random()}
    if number % every == 0:
        metrics["test/loss"] = 3.2 * math.exp(-number / 18) + 0.55 + 0.05 * generator.random()
        jitter = 0.015 * generator.standard_normal()
        if objective == "contrastive":
            for k, top in ((1, 0.42), (5, 0.74), (10, 0.86), (50, 0.985)):
                metrics[f"test/t2i/R@{k}"] = min(1.0, max(0.0, top * share + jitter))
                metrics[f"test/i2t/R@{k}"] = min(1.0, max(0.0, (top + 0.04) * share + jitter))
            metrics["test/zero_shot/accuracy"] = min(1.0, 0.9 * share + jitter)
        else:
            for name, top in (("accuracy", 0.91), ("precision", 0.66), ("recall", 0.61), ("f1", 0.63)):
                metrics[f"test/{name}"] = max(0.0, top * share + jitter)
                metrics[f"federated/{name}"] = max(0.0, (top - 0.05) * share + jitter)
    return {
        "stage": stage, "round": server_round, "global_round": number, "digest": digest("round", number),
        "metrics": metrics, "cohort": sampled, "clients": took, "failed": failed,
        "wall_s": {"round": 3.9, "train": 3.0, "aggregate": 0.2, "evaluate": 0.7},
    }  # fmt: skip


def one_client(num_examples: int, loss: float, generator: np.random.Generator) -> Record:
    return {
        "num_examples": num_examples, "steps": 9, "loss": loss * (1 + 0.16 * generator.standard_normal()),
        "loss_first": 1.2 * loss, "bytes_up": 190_000_000, "bytes_down": 190_000_000, "bytes_down_frozen": 0,
        "wall_s": 1.4, "peak_tensor_bytes": 900_000_000, "peak_rss_bytes": 1_900_000_000,
        "step_flops": {"forward": 10_000_000, "backward": 20_000_000, "batch": 32},
    }  # fmt: skip


def one_stage(stage: int, count: int, predicted: Record, found: list[Record]) -> Record:
    measured = {
        "bytes_up": predicted["exchanged_bytes"], "bytes_down": predicted["exchanged_bytes"],
        "bytes_down_frozen": predicted["newly_frozen_bytes"] / count,
        "forward_flops": predicted["forward_flops"] * 1.01,
        "backward_flops": predicted["backward_flops"] * 0.99, "peak_tensor_bytes": predicted["peak_bytes"] * 0.96,
    } if count else {}  # fmt: skip
    return {
        "stage": stage, "key": digest("key", stage), "digest": digest("stage", stage),
        "input_digest": digest("stage", stage - 1) if stage > 1 else "", "rounds": count,
        "metrics": dict(found[-1]["metrics"]) if count else {}, "wall_s": 4.2 * count + 0.3,
        "ledger": {"predicted": predicted, "measured": measured}, "plan_digest": digest("plan", stage),
        "reused": stage <= 2,
    }  # fmt: skip


def digest(name: str, number: int) -> str:
    return np.random.default_rng([len(name), *name.encode(), number]).bytes(32).hex()


def retrieval() -> list[Record]:
    colours = {"red": (214, 57, 57), "blue": (52, 106, 219), "green": (47, 158, 84), "yellow": (233, 185, 40)}
    queries = []
    for row, colour in enumerate(colours):
        results = []
        for rank in range(5):
            other = list(colours)[(row + rank) % 4]
            image = Image.new("RGB", (32, 32), (236, 236, 230))
            ImageDraw.Draw(image).ellipse((4, 3, 16, 15), fill=colours[colour if rank < 2 else other])
            ImageDraw.Draw(image).rectangle((15, 17, 28, 29), fill=colours[other])
            results.append(
                {
                    "image": image,
                    "score": 0.93 - 0.06 * rank,
                    "relevant": rank == row,
                    "caption": f"a small {colour} circle above a large {other} square",
                }
            )
        queries.append(
            {"query": f"a small {colour} circle above a large {list(colours)[row]} square", "results": results}
        )
    return queries
