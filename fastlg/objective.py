"""The one trainable unit: a student, its projections, and every loss of the method."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlg.batch import StepOutput
from fastlg.config import DrlocConfig, GuidanceConfig
from fastlg.drloc import DenseRelativeLoc
from fastlg.errors import UserError
from fastlg_kernels import GuidanceLoss, distillation_loss
from fastlg_kernels.devices import triton_obstacle
from fastlg_kernels.guidance.compact import compact_guidance


def check_guidance(config: GuidanceConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raises UserError for kernels that do not run on ``device`` with tokens of ``dtype``."""
    if config.impl == "triton" and (obstacle := triton_obstacle(device, {dtype, torch.float32})):
        raise UserError(f"guidance.impl is triton, but its kernels cannot run: {obstacle}; use guidance.impl=auto")


class GuidedStudent(nn.Module):
    """Student, projections and heads; the teacher stays outside and hands in its Guide.

    ``student(images) -> (logits [N, K], features)``, features being the guided blocks' tokens or maps. The loss is

        (1 - w) * cls + w * distillation + beta * guidance + lambda * drloc

    with w = ``logits_weight`` (0 unless ``logits`` is soft or hard), beta = ``weight`` and lambda = ``drloc.weight`` as
    its schedule has it: the teacher's losses add up, where the reference code lets one overwrite the other. Without
    ``teacher_dims`` the teacher's are left out. cls is the cross-entropy with targets smoothed by ``label_smoothing``
    (Szegedy et al. 2016). Where guidance fades, w and beta shrink to the share that ``set_share`` was last told.

    Raises UserError for a student that lacks what a loss looks at.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher_dims: list[int],
        config: GuidanceConfig,
        drloc: DrlocConfig | None = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.student = student
        self.config, self.label_smoothing = config, label_smoothing
        self.guidance = self.drloc = None
        self.share: Tensor | None = None  # no buffer: DDP would send it round at every step, DeepSpeed would round it
        if teacher_dims:
            self.guidance = GuidanceLoss(
                student.dims,
                teacher_dims,
                grids=student.grids,
                reduction=config.reduction,
                transform=config.transform,
                impl=config.impl,
            )
            if config.logits_token == "distillation":
                student.distil()
        if drloc is not None and drloc.weight > 0:
            place = student.localise()
            is_pooled = place.is_pooled if drloc.pool == "auto" else drloc.pool
            self.drloc = DenseRelativeLoc(*place.shape, drloc, is_pooled=is_pooled, std=place.std)

    def take_size(self, size: int) -> None:
        """Images of ``size`` px come from now on."""
        self.student.take_size(size)
        if self.guidance is not None:
            self.guidance.grids = self.student.grids

    def set_share(self, share: float) -> None:
        """What is left of both weights. It lies on the device, where compiled and captured steps read it anew."""
        if self.share is None:
            self.share = torch.ones((), device=next(self.parameters()).device)
        self.share.fill_(share)

    def _now(self, weight: float) -> float | Tensor:
        return weight if self.share is None else weight * self.share

    def forward(self, images: Tensor, targets: Tensor, guide=None, pairs: tuple[Tensor, Tensor] = ()) -> StepOutput:
        """images float [N, 3, S, S]; targets int64 [N] or probabilities [N, K]; guide: teacher.Guide, or None where
        there is no teacher, or its share is 0; pairs: ``pairs`` and ``pair_weight`` of batch.Views, read where there is
        a drloc loss."""
        logits, features = self.student(images)
        # A student with a distillation token answers twice: to the labels first, and to the teacher last.
        answers = [own.float() for own in (logits if isinstance(logits, tuple) else (logits,))]
        logits, answer = answers[0], answers[-1]
        loss = loss_cls = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        loss_guidance = loss_drloc = loss_cls.new_zeros(())
        if self.guidance is not None and guide is None:
            # With a gradient of zeros, as at a weight of 0: DDP and ZeRO wait for the gradient of every parameter.
            loss = loss + 0 * sum(parameter.sum() for parameter in self.guidance.parameters())
        elif self.guidance is not None:
            if self.config.logits != "none":
                distilled = distillation_loss(answer, guide.logits.float(), self.config.logits, self.config.temperature)
                loss = torch.lerp(loss_cls, distilled, self._now(self.config.logits_weight))
            loss_guidance = self._guidance_loss(features[: len(guide.maps)], guide.maps)
            loss = loss + self._now(self.config.weight) * loss_guidance
        if self.drloc is not None:
            ends, weight = pairs
            each = self.drloc(features[-1], ends)
            loss_drloc = each.mean()
            loss = loss + (weight * each).mean()
        with torch.no_grad():
            labels = targets if targets.dim() == 1 else targets.argmax(1)  # of a mixed sample, its larger part
            correct = (sum(answers[1:], logits).argmax(1) == labels).sum()
            count = torch.full_like(correct, len(labels))
        parts = (part.detach() for part in (loss_cls, loss_guidance, loss_drloc))
        return StepOutput(loss, *parts, correct, count)

    def _guidance_loss(self, features: list[Tensor], maps) -> Tensor:
        """``maps``: tensors, or the compact form that a cached teacher hands out."""
        own = self.guidance
        if all(isinstance(teacher, Tensor) for teacher in maps):
            return own(features, maps)
        weights, biases = ([getattr(p, name) for p in own.projections] for name in ("weight", "bias"))
        options = {"grids": own.grids, "reduction": own.reduction, "impl": own.impl}
        return compact_guidance(features, maps, weights, biases, **options)
