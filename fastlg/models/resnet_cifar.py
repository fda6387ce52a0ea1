"""The teacher: ResNets for 32 px images (He et al. 2015, section 4.2), every stage's map handed out."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from fastlg.errors import UserError
from fastlg.models.convolutions import ImageConv2d

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the shortcut projects (1x1, BatchNorm) where the shape changes."""

    def __init__(self, dim_in: int, dim: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        self.shortcut = nn.Identity()
        if stride != 1 or dim_in != dim:
            self.shortcut = nn.Sequential(nn.Conv2d(dim_in, dim, 1, stride, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of ``depth`` = 6n + 2 layers: a 3x3 stem and three stages of n blocks.

    ``forward(x [N, 3, H, W]) -> (logits [N, K], (m1, m2, m3))``, the stage maps [N, 16, H, W], [N, 32, H/2, W/2],
    [N, 64, H/4, W/4] after each stage's last ReLU, in the memory format of the input. Initial weights are the
    reference code's: convolutions normal with std sqrt(2 / (k * k * out)), linear normal 0.01, biases 0.
    Raises UserError for a depth that is not 6n + 2.
    """

    dims = WIDTHS
    is_cnn = True

    def __init__(self, depth: int, num_classes: int):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"a CIFAR ResNet of depth {depth} does not exist; depth is 6n + 2: 20, 56, 110")
        self.depth, self.num_classes = depth, num_classes
        stem = {"conv": ImageConv2d(3, WIDTHS[0], 3, 1, 1, bias=False), "bn": nn.BatchNorm2d(WIDTHS[0])}
        self.stem = nn.Sequential(OrderedDict(stem))
        blocks = (depth - 2) // 6
        self.stages = nn.ModuleList()
        dim_in = WIDTHS[0]
        for index, dim in enumerate(WIDTHS):
            stage = [BasicBlock(dim_in, dim, 1 if index == 0 else 2)]
            stage += [BasicBlock(dim, dim, 1) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
            dim_in = dim
        self.head = nn.Linear(WIDTHS[-1], num_classes)
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = F.relu(self.stem(x))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.head(x.mean(dim=(2, 3))), tuple(maps)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


def resnet20(num_classes: int) -> CifarResNet:
    return CifarResNet(20, num_classes)


def resnet56(num_classes: int) -> CifarResNet:
    """The paper's teacher, 0.86 M parameters."""
    return CifarResNet(56, num_classes)


def resnet110(num_classes: int) -> CifarResNet:
    return CifarResNet(110, num_classes)
