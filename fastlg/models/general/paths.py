"""Stochastic depth whose draws are one call a step, for all of a student's blocks together."""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn


class Draws:
    """The factors of every path for one forward pass: 0 where a sample skips it, else 1 or 1 / (1 - rate).

    is_kept  until the next forward pass, for backward computes the blocks again
    """

    def __init__(self, paths: list[DropPath], device: torch.device, dtype: torch.dtype, is_kept: bool):
        self.is_kept = is_kept
        kept = torch.tensor([[1 - path.drop_prob] for path in paths])
        scales = torch.tensor([[path.scale_by_keep] for path in paths])
        self.kept = kept.to(device)
        self.scales = torch.where(scales, 1 / kept, torch.ones(())).to(device, dtype)
        self.factors: Tensor | None = None  # [paths, N]

    def begin(self, samples: int) -> None:
        """For a forward pass of so many samples."""
        self.factors = torch.bernoulli(self.kept.expand(-1, samples)).to(self.scales.dtype) * self.scales

    def end(self) -> None:
        if not self.is_kept:
            self.factors = None


class DrawnPath(DropPath):
    """timm's DropPath, by its factors of ``draws``; outside of the student's forward pass it draws for itself."""

    draws: Draws
    row: int
    rate: float  # that ``draws`` knows

    def forward(self, x: Tensor) -> Tensor:
        factors = self.factors(x)
        return super().forward(x) if factors is None else x * factors.view(-1, *[1] * (x.dim() - 1))

    def factors(self, x: Tensor) -> Tensor | None:
        """[N] in the dtype of ``x`` [N, ...]; None where nothing was drawn for it."""
        drawn = self.draws.factors
        if drawn is None or not self.training or drawn.shape[1] != len(x) or self.drop_prob != self.rate:
            return None
        return drawn[self.row].to(x.dtype)


def asked_once(model: nn.Module, paths: list[DropPath]) -> list[DropPath]:
    """Those of ``paths`` that one pass of ``model``, a Student, asks a single time: one that serves several branches
    drops each by itself."""
    asked = dict.fromkeys(paths, 0)

    def count(path: DropPath, *_) -> None:
        asked[path] += 1

    hooks = [path.register_forward_hook(count) for path in paths]
    was_training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, model.image_size, model.image_size))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return [path for path in paths if asked[path] == 1]


def draw_at_once(model: nn.Module, device: torch.device, dtype: torch.dtype, *, is_kept: bool = False) -> Draws | None:
    """Makes every DropPath of ``model`` that drops anything, for one branch, a DrawnPath; returns what draws for them,
    None without any.

    model    a Student, on the CPU, its blocks not fused yet
    device   where it will be trained
    dtype    of what goes through them, in which timm has the factors too
    is_kept  see Draws
    """
    paths = [own for own in model.modules() if type(own) is DropPath and 0 < (own.drop_prob or 0) < 1]
    paths = asked_once(model, paths) if paths else []
    if not paths:
        return None
    draws = Draws(paths, device, dtype, is_kept)
    for row, path in enumerate(paths):
        path.__class__, path.draws, path.row, path.rate = DrawnPath, draws, row, path.drop_prob
    return draws
