"""A client's training objective: the loss of a batch, and the parameter groups with their learning rates."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lwfed.data.batches import Batch
from lwfed.models.multimodal import Multimodal
from lwfed.models.protocol import LastBlock
from lwfed.objectives.contrastive import contrastive_loss
from lwfed.objectives.supervised import cross_entropy
from lwfed.plan.stages import Rates, StagePlan
from lwfed.plan.units import group_of
from lwfed.spec.model import ModelSpec
from lwfed.types.errors import DataError
from lwfed.types.tensors import unit_of


def batch_loss(
    module: Multimodal,
    batch: Batch,
    *,
    model: ModelSpec,
    cut: Mapping[str, int],
    last_block: Mapping[str, LastBlock] | None = None,
) -> Tensor:
    """Returns the mean loss of a batch; with several ranks, this rank's share of it.

    Instance discrimination averages over pairs of modalities; supervised learning classifies the fused feature.

    Args:
        module: The model.
        batch: Inputs and labels on the module's device.
        model: The model's spec, which names the objective.
        cut: Modality -> number of frozen leading blocks, which run without gradients.
        last_block: Modality -> how its last block is computed; None computes every row.

    Returns:
        A scalar.
    """
    projections = module(batch.inputs, cut=cut, last_block=last_block)
    if model.objective.kind == "contrastive":
        return contrastive_loss(projections, temperature=model.objective.temperature)
    if batch.labels is None:
        raise DataError("the data have no labels", remedy="use the contrastive objective")
    return cross_entropy(module.classify(projections), batch.labels)


def parameter_groups(module: nn.Module, plan: StagePlan) -> list[tuple[list[nn.Parameter], Rates]]:
    """Returns a stage's trained parameters by module group, with the rates of each."""
    members: dict[str, list[nn.Parameter]] = {group: [] for group in plan.rates}
    trained = set(plan.trained)
    for name, parameter in module.named_parameters():
        if unit_of(name) in trained:
            members[group_of(unit_of(name))].append(parameter)
    return [(members[group], rates) for group, rates in plan.rates.items()]
