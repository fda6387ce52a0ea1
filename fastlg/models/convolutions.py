"""Convolutions as tensor cores want them: patches that do not overlap as one product, RGB images with more channels;
and those that are computed wrong in half precision, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchConv2d(nn.Conv2d):
    """nn.Conv2d whose stride is its kernel: [N, C, H, W] -> [N, D, H / k, W / k], dense in channels-last memory.

    On a CUDA device the patches are laid out once and multiplied with the weights as a matrix; cuDNN copies the images
    to its own layout in forward and again in backward, which for a patch embedding costs more than the product.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x) if x.is_cuda else super().forward(x)

    def product(self, x: Tensor) -> Tensor:
        (high, wide), (batch, channels) = self.kernel_size, x.shape[:2]
        rows, columns = x.shape[2] // high, x.shape[3] // wide
        x = x[:, :, : rows * high, : columns * wide]
        patches = x.reshape(batch, channels, rows, high, columns, wide).permute(0, 2, 4, 1, 3, 5)
        out = F.linear(patches.reshape(batch, rows, columns, -1), self.weight.flatten(1), self.bias)
        return out.permute(0, 3, 1, 2)


class ImageConv2d(nn.Conv2d):
    """nn.Conv2d over images of few channels; in half precision on a CUDA device it is computed on eight.

    The channels that images lack are zeros in both images and weights: the same sums, but on three channels no tensor
    core can be used (at 128 images of 32 px: 437 us of a step of 10.1 ms on an H200).
    """

    CHANNELS = 8

    def forward(self, x: Tensor) -> Tensor:
        is_half = x.dtype != torch.float32 or torch.is_autocast_enabled("cuda")
        return self.padded(x) if x.is_cuda and is_half else super().forward(x)

    def padded(self, x: Tensor) -> Tensor:
        missing = (0, 0, 0, 0, 0, -self.in_channels % self.CHANNELS)
        return self._conv_forward(F.pad(x, missing), F.pad(self.weight, missing), self.bias)


class WideConv3d(nn.Conv3d):
    """nn.Conv3d that a CPU computes in its weights' precision under autocast, too.

    In bfloat16 torch 2.11 to 2.15 make gradients of weights and biases there that are no numbers, where the kernel is
    wider than the map: lambda layers' 9 x 9 on maps of up to 8 x 8.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype))


def use_own_convolutions(model: nn.Module) -> None:
    """Makes every convolution of ``model`` over patches that do not overlap a PatchConv2d, and every nn.Conv3d a
    WideConv3d; names and weights stay."""
    for module in model.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = WideConv3d
        elif (
            type(module) is nn.Conv2d
            and module.kernel_size == module.stride != (1, 1)
            and module.padding in ((0, 0), 0)
            and module.dilation == (1, 1)
            and module.groups == 1
        ):
            module.__class__ = PatchConv2d


def is_convolutional(model: nn.Module) -> bool:
    """Whether most weights are those of convolutions, which channels-last memory serves."""
    total = sum(weight.numel() for weight in model.parameters())
    return 2 * sum(own.weight.numel() for own in model.modules() if isinstance(own, nn.Conv2d)) > total
