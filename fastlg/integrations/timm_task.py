"""Locality guidance as a timm training task: swap it for ClassificationTask in a timm training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timm.models import group_parameters
from timm.utils import unwrap_model
from torch import Tensor, nn

from fastlg_kernels import GuidanceLoss

try:
    from timm.task import TrainingTask
except ImportError as error:
    raise ImportError("fastlg.integrations.timm_task needs timm.task; pip install 'timm>=1.0.31'") from error


class GuidedModule(nn.Module):
    """What is trained: the student and the projections, in one forward pass so that DistributedDataParallel sees both.

    ``forward(images, maps) -> (logits, guidance loss)``; maps are the teacher's, one [N, Cj, Hj, Wj] per block.
    """

    def __init__(self, student: nn.Module, blocks: Sequence[int], guidance: GuidanceLoss, output_fmt: str):
        super().__init__()
        self.student = student
        self.guidance = guidance
        self.blocks = list(blocks)
        self.output_fmt = output_fmt

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        final, features = student_features(self.student, images, self.blocks, self.output_fmt)
        return self.student.forward_head(final), self.guidance(features, maps)

    def no_weight_decay(self) -> set[str]:
        names = getattr(self.student, "no_weight_decay", set)()
        return {f"student.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Layer groups of the student under its new prefix; projections belong to the last one."""
        layers = group_parameters(self.student, self.student.group_matcher(coarse=coarse), reverse=True)
        last = max(layers.values(), default=0)
        return lambda name: layers.get(name.removeprefix("student."), last)


def student_features(student: nn.Module, images: Tensor, blocks: Sequence[int], output_fmt: str):
    """Final features and those of ``blocks``, before the final norm and without prefix tokens."""
    return student.forward_intermediates(images, indices=list(blocks), norm=False, output_fmt=output_fmt)


class LocalityGuidanceTask(TrainingTask):
    """cross-entropy + ``weight`` * guidance loss (arXiv 2207.10026) as a ``timm.task.TrainingTask``.

    student       a timm model with forward_intermediates
    teacher       frozen CNN: ``teacher(images)`` gives the stage maps, one per block, or (logits, maps). A timm model
                  made with features_only=True, or fastlg.models.resnet_cifar
    blocks        guided blocks (of pyramid models: stages), 0-based, in the teacher's order
    weight        beta; 2.5 in the paper
    teacher_size  images are reduced to this size for the teacher, in px; None gives them as they are
    criterion     of logits and targets; cross-entropy by default
    input_size    (C, H, W) of the student; None reads it from its pretrained_cfg

    ``task(images, targets)`` returns "loss", "output" (logits), "task_loss" and "guidance_loss". Checkpoints hold the
    plain student as state_dict and the projections as task_state.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        blocks: Sequence[int],
        *,
        weight: float = 2.5,
        teacher_size: int | None = 32,
        criterion: nn.Module | None = None,
        input_size: tuple[int, int, int] | None = None,
        impl: str = "auto",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ):
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.teacher = teacher.requires_grad_(False).eval()
        self.teacher_size = teacher_size
        self.weight = weight
        self.criterion = criterion or nn.CrossEntropyLoss()
        output_fmt = "NLC" if hasattr(student, "num_prefix_tokens") else "NCHW"
        size = input_size or student.pretrained_cfg["input_size"]
        images = torch.zeros(1, *size, device=self.device, dtype=self.dtype)
        training = student.training
        with torch.no_grad():
            features = student_features(student.eval(), images, blocks, output_fmt)[1]
            maps = self.teacher_maps(images)
        student.train(training)
        if len(maps) != len(features):
            raise ValueError(f"{len(features)} guided blocks, but the teacher gives {len(maps)} maps; make them agree")
        dims = [feature.shape[2 if output_fmt == "NLC" else 1] for feature in features]
        grids = [tuple(student.patch_embed.grid_size)] * len(dims) if output_fmt == "NLC" else None
        guidance = GuidanceLoss(dims, [m.shape[1] for m in maps], grids=grids, impl=impl)
        guidance.to(self.device, self.dtype)
        self.trainable_module = GuidedModule(student, blocks, guidance, output_fmt)

    def teacher_maps(self, images: Tensor) -> Sequence[Tensor]:
        """The teacher's stage maps for the student's view of the images, reduced without antialiasing."""
        if self.teacher_size is not None:
            images = F.interpolate(images, self.teacher_size, mode="bilinear", align_corners=False)
        out = self.teacher(images)
        return out[1] if len(out) == 2 and not isinstance(out[1], Tensor) else out

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            maps = self.teacher_maps(input)
        logits, guidance = self.trainable_module(input, maps)
        task_loss = self.criterion(logits, target)
        loss = task_loss + self.weight * guidance
        return {"loss": loss, "output": logits, "task_loss": task_loss, "guidance_loss": guidance}

    def train(self, mode: bool = True) -> LocalityGuidanceTask:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs) -> LocalityGuidanceTask:
        wrapper = nn.parallel.DistributedDataParallel
        self.trainable_module = wrapper(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **options) -> nn.Module:
        self.eval_model = torch.compile(self.trainable_module.student, backend=backend, mode=mode, **options)
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, mode=mode, **options)
        self.teacher = torch.compile(self.teacher, backend=backend, mode=mode, **options)
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The plain student, compiled where compile() was called."""
        found = super().get_eval_model(module=module, ema=ema)
        inner = unwrap_model(found.module if ema and found is not None else found)
        return inner.student if isinstance(inner, GuidedModule) else found

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict:
        inner = self._guided(module, ema)
        return {"guidance": inner.guidance.state_dict()} if inner is not None else {}

    def load_task_state(
        self, state: dict | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        inner = self._guided(module, ema)
        if state and inner is not None:
            inner.guidance.load_state_dict(state["guidance"], strict=strict)

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        inner = self._guided(None, False)
        student = list(inner.student.parameters())
        return [*(student[:-2] if exclude_head else student), *inner.guidance.parameters()]

    def _guided(self, module: nn.Module | None, ema: bool) -> GuidedModule | None:
        module = module if module is not None else self.get_trainable_module(ema=ema)
        while module is not None and not isinstance(module, GuidedModule):
            module = getattr(module, "module", getattr(module, "_orig_mod", None))
        return module
