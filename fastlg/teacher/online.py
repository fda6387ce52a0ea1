"""The teacher run beside the student: finished teacher view in, stage maps and logits out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastlg.batch import Batch
from fastlg.errors import UserError
from fastlg.teacher.fold import is_plain, with_folded_norms


class Guide(NamedTuple):
    """What a teacher gives for one batch, all without gradient.

    maps    stage maps [N, Cj, Hj, Wj], one per guided pair
    logits  [N, K]
    """

    maps: tuple[Tensor, ...]
    logits: Tensor


class OnlineTeacher:
    """Frozen network, called once per step. Not a Module on purpose: no ``train()`` of a student can reach it.

    model
        of (logits, stage maps), with ``dims``, the channels of these. Only its norms ever train: drop paths stay off.
    norm_stats
        "batch": BatchNorm normalises with the statistics of the current augmented batch, as the reference code does
        while the student trains. Its running statistics, which the reference lets drift, stay as they were trained.
        "running": the statistics the teacher was trained to, as the paper's text reads.
    dtype
        of the caller's autocast region: weights are rounded to it once. ``model`` itself is changed by all of this.
    is_channels_last, is_folded, is_compiled
        how it is run: memory format of the convolutions, running statistics as part of them, torch.compile.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stages: list[int],
        norm_stats: str,
        dtype: torch.dtype = torch.float32,
        is_channels_last: bool = False,
        is_folded: bool = False,
        is_compiled: bool = False,
    ):
        if norm_stats not in ("batch", "running"):
            raise ValueError(f"norm_stats is {norm_stats!r}; use 'batch' or 'running'")
        if is_folded and norm_stats == "batch":
            raise ValueError("is_folded needs norm_stats='running': batch statistics are known only at each step")
        last = len(model.dims) - 1
        if missing := [stage for stage in stages if not 0 <= stage <= last]:
            raise UserError(f"teacher.stages {list(stages)}: the teacher has no stage {missing[0]}; it has 0 to {last}")
        self.stages, self.dims = tuple(stages), [model.dims[stage] for stage in stages]
        model = model.requires_grad_(False).eval()
        if is_folded:
            model = with_folded_norms(model)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(norm_stats == "batch")
                module.momentum = 0.0  # running = 1 * running + 0 * batch: normalise by the batch, drift never
                if not isinstance(module, nn.SyncBatchNorm):  # torch's own insists on it
                    module.num_batches_tracked = None  # which would be a kernel per norm and step, and to no end
            elif is_plain(module):
                module.to(dtype)  # once, where autocast would round frozen weights again at every call
        self.memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format)
        self.run = torch.compile(self.model, dynamic=False) if is_compiled else self.model

    @torch.no_grad()
    def __call__(self, view: Tensor, batch: Batch | None = None) -> Guide:
        """view: float [N, 3, T, T], normalised; ``batch`` is what a cached teacher reads. In the caller's autocast."""
        logits, maps = self.run(view.contiguous(memory_format=self.memory_format))
        return Guide(tuple(maps[stage] for stage in self.stages), logits)

    def state_dict(self) -> dict:
        """Norm statistics only; the weights are in the teacher's own checkpoint."""
        return dict(self.model.named_buffers())

    def load_state_dict(self, state: dict) -> None:
        """Statistics that are folded into convolutions here, or were there, are those of the same weights anyway."""
        buffers = dict(self.model.named_buffers())
        for name in buffers.keys() & state.keys():
            buffers[name].copy_(state[name])
