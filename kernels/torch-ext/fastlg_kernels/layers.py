"""Modules and plain losses around ``guidance_loss``: projections, feature transforms, logit distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .guidance.api import check_maps, check_options, guidance_loss, listed, student_grids

TRANSFORMS = ("linear", "attention", "similarity")


class GuidanceLoss(nn.Module):
    """The guidance loss with the projections it trains.

    student_dims, teacher_dims   channels per pair
    grids       (H, W) per student of token form; None for square grids without prefix tokens
    reduction   "mean" or "sum_channels", see ``guidance_loss``
    transform   what is compared (Table 8 of the paper): "linear" projects the student to the teacher's channels;
                "attention" compares maps of channel energy and "similarity" the samples' Gram matrices, both without
                parameters and, as in the reference code, always by mean
    bias        False leaves out the projections' biases
    impl        "auto", "triton" or "torch", see ``guidance_loss``

    Parameters: ``projections.{k}.weight`` [Cj, C] and ``projections.{k}.bias`` [Cj], uniform in +-1/sqrt(C), which is
    the default of ``torch.nn.Conv2d`` for a 1x1 kernel. Keep them in the optimizer, and in the checkpoint.

    Raises TypeError for dims that are no sequence, ValueError for dims that do not pair up or an unknown option.
    """

    def __init__(
        self,
        student_dims: Sequence[int],
        teacher_dims: Sequence[int],
        *,
        grids: Sequence | None = None,
        reduction: str = "mean",
        transform: str = "linear",
        bias: bool = True,
        impl: str = "auto",
    ):
        super().__init__()
        for name, dims in (("student_dims", student_dims), ("teacher_dims", teacher_dims)):
            if not isinstance(dims, Sequence):
                raise TypeError(f"{name} is {dims!r}; give a sequence, the channels of every pair")
        check_options(reduction, impl)
        if len(student_dims) != len(teacher_dims):
            raise ValueError(f"{len(student_dims)} student_dims, {len(teacher_dims)} teacher_dims; give one per pair")
        if transform not in TRANSFORMS:
            raise ValueError(f"transform is {transform!r}; use one of {', '.join(map(repr, TRANSFORMS))}")
        self.pair_count = len(student_dims)
        self.grids = grids
        self.reduction = reduction
        self.transform = transform
        self.impl = impl
        self.projections = nn.ModuleList()
        if transform == "linear":
            pairs = zip(student_dims, teacher_dims, strict=True)
            self.projections.extend(nn.Linear(c, d, bias=bias) for c, d in pairs)

    def forward(self, students: Tensor | Sequence[Tensor], teachers: Tensor | Sequence[Tensor]) -> Tensor:
        """Students and teachers, dtypes and errors as in ``guidance_loss``; a 0-d tensor, float32 or wider."""
        if self.transform == "linear":
            weights = [projection.weight for projection in self.projections]
            biases = [projection.bias for projection in self.projections]
            options = {"grids": self.grids, "reduction": self.reduction, "impl": self.impl}
            return guidance_loss(students, teachers, weights, biases, **options)
        students, teachers = listed("students", students), listed("teachers", teachers)
        if not len(students) == len(teachers) == self.pair_count:
            counts = f"{len(students)} students and {len(teachers)} teachers"
            raise ValueError(f"{counts} for a GuidanceLoss of {self.pair_count} pairs; give one of each per pair")
        transform = attention_map if self.transform == "attention" else similarity_matrix
        losses = []
        for index, grid in enumerate(student_grids(students, self.grids)):
            check_maps(index, students[index], teachers[index], device=students[0].device)
            student, teacher = _same_size(students[index], teachers[index], grid)
            losses.append(F.mse_loss(transform(student), transform(teacher)))
        return torch.stack(losses).sum()

    def extra_repr(self) -> str:
        return f"transform={self.transform}, reduction={self.reduction}, impl={self.impl}"


class LinearGuidance(nn.Module):
    """The forward pass of a linear ``GuidanceLoss`` alone, for Hugging Face's ``kernelize``.

    It replaces the forward of a module that has ``projections`` (layers with ``weight`` and ``bias``), ``grids`` and
    ``reduction``, whose forward takes (students, teachers).
    """

    has_backward = True
    can_torch_compile = True

    def forward(self, students: Tensor | Sequence[Tensor], teachers: Tensor | Sequence[Tensor]) -> Tensor:
        weights = [projection.weight for projection in self.projections]
        biases = [projection.bias for projection in self.projections]
        return guidance_loss(students, teachers, weights, biases, grids=self.grids, reduction=self.reduction)


def _same_size(student: Tensor, teacher: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Student (tokens or map) and teacher as maps of the larger size per axis, float32 or wider."""
    if student.dim() == 3:
        student = student[:, student.shape[1] - grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
    size = max(grid[0], teacher.shape[2]), max(grid[1], teacher.shape[3])
    resized = []
    for maps in (student, teacher):
        maps = maps if maps.dtype == torch.float64 else maps.float()
        resized.append(F.interpolate(maps, size, mode="bilinear", align_corners=False))
    return resized[0], resized[1]


def attention_map(maps: Tensor) -> Tensor:
    """Mean energy over the channels of [N, C, H, W], flattened to [N, H*W] and scaled to length 1 per sample."""
    return F.normalize(maps.square().mean(1).flatten(1), dim=1)


def similarity_matrix(maps: Tensor) -> Tensor:
    """Gram matrix [N, N] of the flattened samples of [N, C, H, W], each row scaled to length 1."""
    flat = maps.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, kind: str = "soft", temperature: float = 1.0
) -> Tensor:
    """Logit distillation as DeiT writes it (arXiv 2012.12877, Eqs. 2 and 3); logits [N, K], returns a 0-d tensor.

    "soft": T^2 * KL(teacher / T || student / T), averaged over all N * K entries; "hard": cross-entropy with the
    teacher's arg max, which no temperature changes. No gradient reaches the teacher. The result has the logits' dtype
    (autocast's where it is on). Raises ValueError for another kind, a temperature that is not above 0, or shapes that
    differ.
    """
    if kind not in ("soft", "hard"):
        raise ValueError(f"kind is {kind!r}; use 'soft' or 'hard'")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    if student_logits.shape != teacher_logits.shape:
        shapes = f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        raise ValueError(f"student and teacher logits have shapes {shapes}; they must agree")
    teacher_logits = teacher_logits.detach()
    if kind == "hard":
        return F.cross_entropy(student_logits, teacher_logits.argmax(1))
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).mean() * temperature**2
