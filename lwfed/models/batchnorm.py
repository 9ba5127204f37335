"""BatchNorm with the statistics of the whole batch, over all ranks of a client.

Ioffe & Szegedy 2015, arXiv 1502.03167. torch's SyncBatchNorm does the same on GPUs but does not support a CPU.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lwfed import ranks


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d`; with several ranks, computes what one process would on the ranks' batches together."""

    def forward(self, input: Float[Tensor, "B P"]) -> Float[Tensor, "B P"]:
        return over_ranks(self, input) if self.training and ranks.size() > 1 else super().forward(input)


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, likewise."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return over_ranks(self, input) if self.training and ranks.size() > 1 else super().forward(input)


def over_ranks(norm: _BatchNorm, input: Float[Tensor, "B C ..."]) -> Float[Tensor, "B C ..."]:
    """Normalises by the mean and variance of each channel over all ranks, and updates the running statistics."""
    values = input.float()
    others = [0, *range(2, values.ndim)]  # every dimension but the channels
    shape = (-1, *[1] * (values.ndim - 2))
    sums = ranks.total(torch.cat([values.sum(others), values.new_full((1,), values.numel() / values.shape[1])]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = values - mean.view(shape)
    variance = ranks.total(centred.square().sum(others)) / count
    _track(norm, mean.detach(), variance.detach() * (count / (count - 1)))
    output = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        output = output * norm.weight.view(shape) + norm.bias.view(shape)
    return output.to(input.dtype)


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Updates the running statistics as torch does, with the unbiased variance."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance, momentum)
