"""BatchNorm whose batch statistics are those of all ranks together, so that results do not depend on their number."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d over the samples of all ranks; in evaluation mode nothing is exchanged.

    Input [N, C, H, W], N may differ between ranks. Written with differentiable collectives, so that it runs on CPUs
    too, where torch's SyncBatchNorm does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = x.new_tensor([x.numel() / x.shape[1]], dtype=torch.float32)
        wide = x.float()
        sums = _sum_over_ranks(torch.cat([wide.sum((0, 2, 3)), count]))
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = wide - mean[:, None, None]
        variance = _sum_over_ranks(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1)
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(unbiased.detach(), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def with_synced_norms(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with every BatchNorm2d synchronised; names in its state dict stay."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d
    return model


def _sum_over_ranks(values: Tensor) -> Tensor:
    if values.requires_grad:
        return all_reduce(values)
    dist.all_reduce(values)
    return values
