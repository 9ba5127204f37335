"""The metrics that a client's update reports, and the check that the trained tensors are finite."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lwfed.federated.local import LocalResult
from lwfed.round.download import Downloaded
from lwfed.types.errors import DivergedError


def client_metrics(
    result: LocalResult,
    module: torch.nn.Module,
    model: Downloaded,
    *,
    num_examples: int,
    proximal_mu: float,
    beside: Iterable[Tensor] = (),
    examples: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """Returns a client's metrics of a round: the ClientRecord without the upload's entries.

    Args:
        result: The result of local training.
        module: The trained module.
        model: The model that it was loaded from.
        num_examples: w_n.
        proximal_mu: FedProx's mu; above 0, training also held the starting weights in memory.
        beside: Tensors that were in memory beside the model: of received heads.
        examples: Modality -> number of examples that have it, if some lack one; see `examples_with`.
    """
    metrics: dict[str, Any] = {
        "num_examples": num_examples,
        "steps": result.steps,
        "loss": result.loss,
        "loss_first": result.loss_first,
        "wall_s": result.wall_s,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **model.traffic,
    }
    if examples:
        metrics["examples"] = dict(examples)
    if result.cost is None:
        return metrics
    cost = result.cost
    weights = sum(t.numel() * t.element_size() for t in (*model.tensors.values(), *beside))
    trained = (t.numel() * t.element_size() for t in module.parameters() if t.requires_grad)
    anchor = sum(trained) if proximal_mu else 0
    metrics |= {
        "step_flops": {"forward": cost.forward_flops, "backward": cost.backward_flops, "batch": result.first_rows},
        "peak_tensor_bytes": weights + cost.gradients_bytes + cost.optimizer_bytes + cost.activations_bytes + anchor,
        "activations_bytes": cost.activations_bytes,
        "gradients_bytes": cost.gradients_bytes,
        "optimizer_bytes": cost.optimizer_bytes,
    }
    if cost.device_peak_bytes is not None:
        metrics["device_peak_bytes"] = cost.device_peak_bytes
    return metrics


def refuse_non_finite(tensors: Mapping[str, Tensor], *, client: str) -> None:
    """Raises DivergedError, with the tensor's name, if any trained tensor is not finite."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    sums = [tensor.sum(dtype=torch.float32) for tensor in floating.values()]  # one pass, no copy
    if not sums or bool(torch.stack(sums).isfinite().all()):
        return
    for name, tensor in floating.items():
        if not bool(torch.isfinite(tensor).all()):
            raise DivergedError(
                f"{name} of {client} is not finite after training", remedy="lower training.learning_rate"
            )
