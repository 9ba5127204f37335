"""Laws of the blended loss of a batch: a weighted sum of the heads' losses, whichever examples have which modality."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lwfed.data.batches import Batch
from lwfed.models.build import initial_tensors, load, set_trained, skeleton
from lwfed.models.multimodal import Multimodal
from lwfed.plan.stages import StagePlan, plan_stages
from lwfed.round.batching import part
from lwfed.round.losses import batch_loss
from tests.tiny import DEPTHS, ONE_STAGE, tiny_spec

CLASSES = 3
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
TEXT_ROWS = torch.tensor([0, 1, 3, 5])
"""The examples that have a text."""


@pytest.fixture(scope="module")
def plan() -> StagePlan:
    objective = "model.objective={kind: supervised, hidden: 12, dropout: 0, blending: {}}"
    evaluation = "evaluation={holdout_fraction: 0.3, federated_every: 1}"
    spec = tiny_spec("runs", *ONE_STAGE, objective, evaluation, "stages.rounds=[3]")
    return plan_stages(spec, depths=DEPTHS)[0]


@pytest.fixture(scope="module")
def module(plan: StagePlan) -> Multimodal:
    built = skeleton(plan.model, depth=plan.depth, num_classes=CLASSES)
    seeded = initial_tensors(plan.model, units=plan.present, depth=plan.depth, num_classes=CLASSES, seed="ab")
    load(built, seeded)
    set_trained(built, trained=plan.trained)
    return built.eval()  # BatchNorm's running statistics: an example's logits do not depend on the others


def batch_of(*, rows: bool) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 16, 16, generator=generator)
    ids = torch.randint(0, 384, (6, 5), generator=generator)
    text = {"ids": ids[TEXT_ROWS] if rows else ids, "mask": torch.ones(4 if rows else 6, 5, dtype=torch.bool)}
    return Batch(
        inputs={"image": images, "text": text},
        labels=LABELS,
        ids=tuple(map(str, range(6))),
        rows={"text": TEXT_ROWS} if rows else {},
    )


def by_hand(module: Multimodal, batch: Batch) -> dict[str, Tensor]:
    """The sum of each head's losses over its examples, divided by the number of all examples."""
    projected = module(batch.inputs)
    fused = module.classify(projected, rows=batch.rows, size=6)
    logits = {"fused": fused} | {m: module.classify_alone(m, p) for m, p in projected.items()}
    labels = dict.fromkeys(logits, LABELS) | {m: LABELS[rows] for m, rows in batch.rows.items()}
    return {head: F.cross_entropy(found, labels[head], reduction="sum") / 6 for head, found in logits.items()}


@pytest.mark.parametrize("rows", [False, True])
def test_it_is_the_weighted_sum_and_without_weights_the_plain_one(
    plan: StagePlan, module: Multimodal, rows: bool
) -> None:
    batch = batch_of(rows=rows)
    losses = by_hand(module, batch)
    assert sorted(losses) == ["fused", "image", "text"]
    plain = batch_loss(module, batch, model=plan.model, cut=plan.cut)
    torch.testing.assert_close(plain, sum(losses.values()))
    ones = dict.fromkeys(losses, 1.0)
    assert torch.equal(batch_loss(module, batch, model=plan.model, cut=plan.cut, head_weights=ones), plain)
    weights = {"fused": 0.5, "image": 2.0, "text": 0.25}
    found = batch_loss(module, batch, model=plan.model, cut=plan.cut, head_weights=weights)
    torch.testing.assert_close(found, sum(weights[head] * loss for head, loss in losses.items()))


@pytest.mark.parametrize("rows", [False, True])
def test_parts_of_a_batch_add_up_to_it(plan: StagePlan, module: Multimodal, rows: bool) -> None:
    batch, weights = batch_of(rows=rows), {"fused": 0.5, "image": 2.0, "text": 0.25}
    whole, *parts = (
        batch_loss(module, one, model=plan.model, cut=plan.cut, head_weights=weights)
        for one in (batch, part(batch, 0, 2), part(batch, 1, 2))
    )
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_a_head_of_weight_zero_moves_nothing(plan: StagePlan, module: Multimodal) -> None:
    weights = {"fused": 0.0, "image": 1.0, "text": 0.0}
    batch_loss(module, batch_of(rows=False), model=plan.model, cut=plan.cut, head_weights=weights).backward()
    moved = {name for name, p in module.named_parameters() if p.grad is not None and bool(p.grad.abs().sum())}
    module.zero_grad()
    assert moved and all(name.startswith("image.") for name in moved)
    assert any(name.startswith("image.prediction.") for name in moved)
