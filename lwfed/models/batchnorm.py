"""BatchNorm with the statistics of the whole batch, over all ranks of a client.

Ioffe & Szegedy 2015, arXiv 1502.03167. torch's SyncBatchNorm does the same on GPUs but does not support a CPU.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lwfed import ranks


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d`; with several ranks, computes what one process would on the ranks' batches together."""

    def forward(self, input: Float[Tensor, "B P"]) -> Float[Tensor, "B P"]:
        if not self.training or ranks.size() == 1:
            return super().forward(input)
        rows = input.float()
        sums = ranks.total(torch.cat([rows.sum(0), rows.new_full((1,), rows.shape[0])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = rows - mean
        variance = ranks.total(centred.square().sum(0)) / count
        self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        output = centred * torch.rsqrt(variance + self.eps)
        if self.affine:
            output = output * self.weight + self.bias
        return output.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Updates the running statistics as nn.BatchNorm1d does, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)
