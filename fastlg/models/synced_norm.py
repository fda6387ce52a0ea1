"""BatchNorm whose batch statistics are those of all ranks together, so that results do not depend on their number."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d over the samples of all ranks; in evaluation mode nothing is exchanged.

    Input [N, C, H, W], N may differ between ranks. One exchange of 2 C + 1 numbers per call, which runs on CPUs too,
    where torch's SyncBatchNorm does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        # Sums are of the distance to the running mean, which all ranks share: squares of small numbers lose no digits.
        shifted = x.float() - self.running_mean[:, None, None]
        count = shifted.new_full((1,), x.numel() / x.shape[1])
        own = torch.cat([shifted.sum((0, 2, 3)), shifted.square().sum((0, 2, 3)), count])
        sums = SumOverRanks.apply(own)
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        variance = square - mean.square()
        scale = self.weight * torch.rsqrt(variance + self.eps)
        out = (shifted - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.running_mean.add_(mean, alpha=self.momentum)
        return out.to(x.dtype)


class SumOverRanks(torch.autograd.Function):
    """The element-wise sum of all ranks' tensors; the gradient of each is the sum of theirs."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _summed(grad)


def with_synced_norms(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with every BatchNorm2d synchronised; names in its state dict stay."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d
    return model


def _summed(values: Tensor) -> Tensor:
    values = values.clone()
    dist.all_reduce(values)
    return values
