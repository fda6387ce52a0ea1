"""Locality guidance for torchdistill: two auxiliary wrappers and a criterion, to be named in its YAML.

torchdistill keeps loss terms in a plain dict, so parameters of a criterion never reach its optimizer. Here they belong
to the student's wrapper, ``secondary_forward`` hands them on through a forward hook, and the criterion only reads them:

    teacher: {auxiliary_model_wrapper: {key: LocalityGuidanceTeacher, kwargs: {size: 32}}, requires_grad: False,
              forward_hook: {output: [teacher_model.layer1, teacher_model.layer2]}}
    student: {auxiliary_model_wrapper: {key: LocalityGuidanceStudent,
                                        kwargs: {student_dims: [...], teacher_dims: [...]}},
              forward_hook: {output: [student_model.blocks.0, student_model.blocks.6, guidance]}}
    criterion: {key: LocalityGuidanceLoss, kwargs: {student_paths: [...], teacher_paths: [...], grids: [...]}}

Importing this module registers the three names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastlg_kernels import GuidanceLoss, guidance_loss

try:
    from torchdistill.common.module_util import check_if_wrapped
    from torchdistill.losses.registry import register_mid_level_loss
    from torchdistill.models.registry import register_auxiliary_model_wrapper
    from torchdistill.models.util import wrap_if_distributed
    from torchdistill.models.wrapper import AuxiliaryModelWrapper
except ImportError as error:
    raise ImportError(
        "fastlg.integrations.torchdistill needs torchdistill; pip install 'torchdistill>=1.1.5'"
    ) from error


class Projections(nn.Module):
    """Projections from student to teacher channels whose output is their weights and biases, for a forward hook.

    As views: DistributedDataParallel with find_unused_parameters follows outputs back to the parameters, and counts a
    parameter that is itself an output twice.
    """

    def __init__(self, student_dims: Sequence[int], teacher_dims: Sequence[int]):
        super().__init__()
        self.layers = GuidanceLoss(student_dims, teacher_dims).projections

    def forward(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        weights = tuple(layer.weight.view_as(layer.weight) for layer in self.layers)
        return weights, tuple(layer.bias.view_as(layer.bias) for layer in self.layers)


@register_auxiliary_model_wrapper
class LocalityGuidanceStudent(AuxiliaryModelWrapper):
    """A student and the projections trained with it.

    student_dims, teacher_dims   channels per pair
    Paths for hooks: ``student_model.`` + the student's own, and ``guidance`` for the projections.

    Its state dict is the plain student's, so that what torchdistill saves of it loads where there is no wrapper any
    more: after training, with ``-test_only``, or in timm. The projections serve training alone and are not saved.
    """

    def __init__(
        self,
        student_model: nn.Module,
        student_dims: Sequence[int],
        teacher_dims: Sequence[int],
        device,
        device_ids,
        distributed: bool,
        find_unused_parameters: bool | None = None,
        **kwargs,
    ):
        super().__init__()
        placement = device, device_ids, distributed, find_unused_parameters
        self.student_model = wrap_if_distributed(student_model, *placement)
        self.guidance = wrap_if_distributed(Projections(student_dims, teacher_dims), *placement)

    def forward(self, *args) -> Tensor:
        return self.student_model(*args)

    def secondary_forward(self, io_dict: dict) -> None:
        self.guidance()

    def state_dict(self, *args, **kwargs) -> dict:
        return self._plain_student().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, *args, **kwargs):
        return self._plain_student().load_state_dict(state_dict, *args, **kwargs)

    def _plain_student(self) -> nn.Module:
        return self.student_model.module if check_if_wrapped(self.student_model) else self.student_model


@register_auxiliary_model_wrapper
class LocalityGuidanceTeacher(AuxiliaryModelWrapper):
    """A teacher that sees the student's images reduced to ``size`` px without antialiasing."""

    def __init__(self, teacher_model: nn.Module, size: int, **kwargs):
        super().__init__()
        self.teacher_model = teacher_model
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return self.teacher_model(F.interpolate(images, self.size, mode="bilinear", align_corners=False))


@register_mid_level_loss
class LocalityGuidanceLoss(nn.Module):
    """The guidance loss of hooked features (arXiv 2207.10026); without parameters.

    student_paths, teacher_paths   hooked module paths, one per pair, in the order of the projections' dims
    grids       (H, W) per student of token form; None for maps, or square grids without prefix tokens
    reduction   "mean" or "sum_channels", see fastlg_kernels.guidance_loss
    """

    def __init__(
        self,
        student_paths: Sequence[str],
        teacher_paths: Sequence[str],
        grids: Sequence | None = None,
        reduction: str = "mean",
        projections_path: str = "guidance",
        **kwargs,
    ):
        super().__init__()
        self.student_paths, self.teacher_paths = list(student_paths), list(teacher_paths)
        self.grids, self.reduction, self.projections_path = grids, reduction, projections_path

    def forward(self, student_io_dict: dict, teacher_io_dict: dict, *args, **kwargs) -> Tensor:
        students = [student_io_dict[path]["output"] for path in self.student_paths]
        teachers = [teacher_io_dict[path]["output"].detach() for path in self.teacher_paths]
        weights, biases = student_io_dict[self.projections_path]["output"]
        return guidance_loss(students, teachers, weights, biases, grids=self.grids, reduction=self.reduction)
