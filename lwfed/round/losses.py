"""A client's training objective: the loss of a batch, and the parameter groups with their learning rates."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from lwfed import ranks
from lwfed.data.batches import Batch
from lwfed.models.heads import ProjectionHead, frozen_copy
from lwfed.models.multimodal import Multimodal
from lwfed.models.protocol import LastBlock
from lwfed.objectives.alignment import alignment_loss
from lwfed.objectives.contrastive import contrastive_loss
from lwfed.objectives.supervised import balanced_weights, cross_entropy
from lwfed.plan.blending import FUSED
from lwfed.plan.stages import Rates
from lwfed.plan.units import group_of
from lwfed.run.stage import Stage
from lwfed.spec.model import ContrastiveSpec, ModelSpec, SupervisedSpec
from lwfed.store import paths
from lwfed.store.refs import damaged
from lwfed.types.errors import DataError
from lwfed.types.tensors import unit_of


def batch_loss(
    module: Multimodal,
    batch: Batch,
    *,
    model: ModelSpec,
    cut: Mapping[str, int],
    cached_at: Mapping[str, int] = MappingProxyType({}),
    last_block: Mapping[str, LastBlock] | None = None,
    class_weights: Tensor | None = None,
    received: Mapping[str, ProjectionHead] = MappingProxyType({}),
    head_weights: Mapping[str, float] = MappingProxyType({}),
) -> Tensor:
    """Returns the mean loss of a batch; with several ranks, this rank's share of it.

    Instance discrimination averages over pairs of modalities; supervised learning classifies the fused feature. The
    alignment is added to either. A modality counts for the examples that have it: a pair for those that have both, and
    where classes are predicted the others' projections are zeros. With blending the loss of each modality's own head is
    added, summed over the examples that have it and divided by the number of all, so that parts add up to the batch.

    Args:
        module: The model.
        batch: Inputs and labels on the module's device.
        model: The model's spec, which names the objective.
        cut: Modality -> number of leading blocks that run without gradients.
        cached_at: Modality -> number of blocks that cached inputs have passed, if it is not `cut`.
        last_block: Modality -> how its last block is computed; None computes every row.
        class_weights: Weight of each class, on the module's device; None: 1.
        received: Modality -> the head that projections are aligned with; needed if the objective has an alignment.
        head_weights: Head -> weight of its loss, if losses are blended; heads that are not in it have weight 1.

    Returns:
        A scalar; zero, and without a gradient for any parameter, if the batch teaches nothing.
    """
    objective = model.objective
    features, projections = dict[str, Tensor](), dict[str, Tensor]()
    for m in (m for m in module.modalities if m in batch.inputs):
        features[m] = module.feature(
            m, batch.inputs[m], cut=cut.get(m, 0), cached_at=cached_at.get(m), last_block=last_block
        )
        projections[m] = module.head(m)(features[m])
    loss: Tensor | None = None
    if objective.kind == "contrastive":
        loss = contrastive_loss(projections, temperature=temperature_of(module, objective), rows=batch.rows)
    elif batch.labels is None:
        raise DataError("the data have no labels", remedy="use the contrastive objective")
    elif projections:
        loss = classification_loss(
            module, projections, batch, objective=objective, class_weights=class_weights, head_weights=head_weights
        )
    if loss is None:
        loss = torch.zeros((), device=next(module.parameters()).device, requires_grad=True)
    if objective.alignment is None or not projections:
        return loss
    with torch.no_grad():
        targets = {modality: received[modality](feature) for modality, feature in features.items()}
    return loss + objective.alignment.weight * alignment_loss(projections, targets)


def classification_loss(
    module: Multimodal,
    projections: Mapping[str, Tensor],
    batch: Batch,
    *,
    objective: SupervisedSpec,
    class_weights: Tensor | None,
    head_weights: Mapping[str, float],
) -> Tensor:
    """Returns the cross-entropy of the fused modalities; with blending, the weighted sum over all prediction heads.

    See `batch_loss` for the arguments.
    """
    assert batch.labels is not None
    labels, count = batch.labels, sum(ranks.row_counts(batch.labels))
    logits = {FUSED: module.classify(projections, rows=batch.rows, size=len(batch.ids))}
    if objective.blending is not None:
        logits |= {m: module.classify_alone(m, projected) for m, projected in projections.items()}
    losses = []
    for head, found in logits.items():
        loss = cross_entropy(
            found,
            labels[batch.rows[head].to(labels.device)] if head in batch.rows else labels,
            label_smoothing=objective.label_smoothing,
            class_weights=class_weights,
            of=count,
        )
        losses.append(head_weights[head] * loss if head in head_weights else loss)
    return sum(losses[1:], start=losses[0])


def temperature_of(module: Multimodal, objective: ContrastiveSpec) -> float | Tensor:
    """Returns the temperature: the spec's, or the model's if it is learnable."""
    return objective.temperature if module.temperature is None else module.temperature()


def received_heads(module: Multimodal, model: ModelSpec) -> dict[str, ProjectionHead]:
    """Returns frozen copies of the projection heads, before training; none if the objective has no alignment."""
    if model.objective.alignment is None:
        return {}
    return {modality: frozen_copy(module.head(modality)) for modality in module.modalities}


def class_weights_of(stage: Stage, *, device: torch.device) -> Tensor | None:
    """Returns the classes' weights in a stage's loss; None if all are 1.

    Raises:
        CheckpointError: The stage lacks the counts of balanced classes.
    """
    objective = stage.plan.model.objective
    weights = objective.class_weights if objective.kind == "supervised" else None
    if weights is None:
        return None
    if weights == "balanced":
        if len(stage.class_counts) != stage.num_classes or not any(stage.class_counts):
            raise damaged(paths.stage_plan(stage.key), "`class_counts` is wrong")
        weights = tuple(balanced_weights(stage.class_counts))
    return torch.tensor(weights, dtype=torch.float32, device=device)


def parameter_groups(
    module: Multimodal, *, trained: Collection[str], rates: Mapping[str, Rates]
) -> list[tuple[list[nn.Parameter], Rates]]:
    """Returns a client's trained parameters by module group, with the rates of each.

    Args:
        module: The model.
        trained: The units that the client trains.
        rates: Module group -> its rates; groups that have no trained unit are left out.
    """
    members: dict[str, list[nn.Parameter]] = {group: [] for group in rates}
    of_unit = {unit: members[group_of(unit)] for unit in trained}
    for name, parameter in module.slots.parameters():
        if (found := of_unit.get(unit_of(name))) is not None:
            found.append(parameter)
    return [(members[group], own) for group, own in rates.items() if members[group]]
