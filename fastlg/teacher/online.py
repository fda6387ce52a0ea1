"""The teacher run beside the student: finished teacher view in, stage maps and logits out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastlg.batch import Batch


class Guide(NamedTuple):
    """What a teacher gives for one batch, all without gradient.

    maps    stage maps [N, Cj, Hj, Wj], one per guided pair
    logits  [N, K]
    """

    maps: tuple[Tensor, ...]
    logits: Tensor


class OnlineTeacher:
    """Frozen CNN, called once per step. Not a Module on purpose: no ``train()`` of a student can reach it.

    norm_stats
        "batch": BatchNorm normalises with the statistics of the current augmented batch, as the reference code does
        while the student trains. Its running statistics, which the reference lets drift, stay as they were trained.
        "running": the statistics the teacher was trained to, as the paper's text reads.
    """

    def __init__(self, model: nn.Module, *, stages: list[int], norm_stats: str):
        if norm_stats not in ("batch", "running"):
            raise ValueError(f"norm_stats is {norm_stats!r}; use 'batch' or 'running'")
        self.model = model.requires_grad_(False)
        self.stages = tuple(stages)
        self.model.train(norm_stats == "batch")
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.0  # running = 1 * running + 0 * batch: normalise by the batch, drift never

    @property
    def dims(self) -> list[int]:
        """Channels of each stage handed on."""
        return [self.model.dims[stage] for stage in self.stages]

    @torch.no_grad()
    def __call__(self, view: Tensor, batch: Batch | None = None) -> Guide:
        """view: float [N, 3, T, T], normalised; ``batch`` is what a cached teacher reads. In the caller's autocast."""
        logits, maps = self.model(view)
        return Guide(tuple(maps[stage] for stage in self.stages), logits)

    def state_dict(self) -> dict:
        """Norm statistics only; the weights are in the teacher's own checkpoint."""
        return {name: buffer.cpu() for name, buffer in self.model.named_buffers()}

    def load_state_dict(self, state: dict) -> None:
        buffers = dict(self.model.named_buffers())
        for name, value in state.items():
            buffers[name].copy_(value)
