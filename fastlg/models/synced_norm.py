"""BatchNorm whose batch statistics are those of all ranks together, so that results do not depend on their number.

Not torch's SyncBatchNorm (nor timm's, which is made of it): that runs on GPUs alone and waits for the device in each
forward, for it asks which ranks had images.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from fastlg.errors import UserError


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d over the samples of all ranks; in evaluation mode nothing is exchanged.

    Input [N, C, H, W], N may differ between ranks. One exchange of 2 C + 1 numbers per call, which runs on CPUs too,
    where torch's SyncBatchNorm does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self, x) if self.training else super().forward(x)


class SyncedBatchNorm1d(nn.BatchNorm1d):
    """The same for [N, C] and [N, C, L]."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self, x) if self.training else super().forward(x)


class SyncedBatchNormAct2d(BatchNormAct2d):
    """The same for timm's norm that an activation follows."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(_normalised(self, x))) if self.training else super().forward(x)


SYNCED = {
    nn.BatchNorm2d: SyncedBatchNorm2d,
    nn.BatchNorm1d: SyncedBatchNorm1d,
    BatchNormAct2d: SyncedBatchNormAct2d,
}


def _normalised(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    # Sums are of the distance to the running mean, which all ranks share: squares of small numbers lose no digits.
    axes, sides = (0, *range(2, x.dim())), (-1, *[1] * (x.dim() - 2))
    shifted = x.float() - norm.running_mean.view(sides)
    count = shifted.new_full((1,), x.numel() / x.shape[1])
    own = torch.cat([shifted.sum(axes), shifted.square().sum(axes), count])
    sums = SumOverRanks.apply(own)
    count = sums[-1]
    mean, square = (sums[:-1] / count).chunk(2)
    variance = square - mean.square()
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    out = (shifted - mean.view(sides)) * scale.view(sides) + norm.bias.view(sides)
    with torch.no_grad():
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
        norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
        norm.running_mean.add_(mean, alpha=norm.momentum)
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
    """A copy of ``model`` with every BatchNorm synchronised; names in its state dict stay.

    Raises UserError for a kind of which that cannot be done: its results would depend on the number of ranks.
    """
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or type(module) in SYNCED.values():
            continue
        if type(module) not in SYNCED or module.running_mean is None or module.weight is None:
            raise UserError(
                f"{name} is a {type(module).__name__}, whose statistics ranks cannot share; train in one process"
            )
        module.__class__ = SYNCED[type(module)]
    return model


def _summed(values: Tensor) -> Tensor:
    values = values.clone()
    dist.all_reduce(values)
    return values
