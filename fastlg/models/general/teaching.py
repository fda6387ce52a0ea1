"""Any network as a teacher: what it lists, as the stage maps that guide; and views as it was trained to see them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastlg.config import AugmentConfig
from fastlg.models.resnet_cifar import CifarResNet
from fastlg.models.student import Student


class StageMaps(nn.Module):
    """``forward(views [N, 3, T, T]) -> (logits [N, K], maps)``: everything that a Student lists, as maps [N, C, H, W].

    dims       channels of each map           image_size  T, px
    identity   what tells it from a network of the same weights that is built otherwise
    """

    def __init__(self, network: Student):
        super().__init__()
        network.guide(range(network.depth))
        self.network, self.dims, self.image_size = network, network.dims, network.image_size
        self.identity = json.dumps([network.name, network.model_args], sort_keys=True, default=str)
        self.grids = network.grids

    def forward(self, views: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits, features = self.network(views)
        return logits, tuple(map(as_map, features, self.grids))


class Renormalised(nn.Module):
    """A teacher behind views that are normalised by another mean and deviation than the images it was trained on."""

    def __init__(self, teacher: nn.Module, own: AugmentConfig, views: AugmentConfig):
        super().__init__()
        self.teacher, self.dims = teacher, teacher.dims
        self.image_size, self.identity = getattr(teacher, "image_size", None), getattr(teacher, "identity", "")
        (mean, std), (seen_mean, seen_std) = (_columns(side) for side in (own, views))
        self.register_buffer("scale", (seen_std / std).float())
        self.register_buffer("shift", ((seen_mean - mean) / std).float())

    def forward(self, views: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.teacher(views * self.scale + self.shift)


def as_teacher(network: Student | CifarResNet, own: AugmentConfig, views: AugmentConfig) -> nn.Module:
    """``network`` as a run's teacher: (logits, stage maps) of views as ``views`` normalises them.

    own  of the recipe that it was trained by. The network is used, not copied.
    """
    teacher = StageMaps(network) if isinstance(network, Student) else network
    same = (tuple(own.mean), tuple(own.std)) == (tuple(views.mean), tuple(views.std))
    return teacher if same else Renormalised(teacher, own, views)


def as_map(feature: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens [N, L, C], any prefix tokens in front, as a map [N, C, H, W] in the same memory; a map as it is."""
    if feature.dim() == 4:
        return feature
    return feature[:, feature.shape[1] - grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)


def _columns(side: AugmentConfig) -> list[Tensor]:
    values: list[Sequence[float]] = [side.mean, side.std]
    return [torch.tensor(own, dtype=torch.float64).view(3, 1, 1) for own in values]
