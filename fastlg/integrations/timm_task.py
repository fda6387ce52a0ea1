"""Locality guidance as a timm training task: swap it for ClassificationTask in a timm training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timm.models import group_parameters
from timm.utils import unwrap_model
from torch import Tensor, nn

from fastlg_kernels import GuidanceLoss, guidance_loss

try:
    from timm.task import TrainingTask
except ImportError as error:
    raise ImportError("fastlg.integrations.timm_task needs timm.task; pip install 'timm>=1.0.31'") from error


class GuidedModule(nn.Module):
    """What is trained: the student and the projections, in one forward pass so that DistributedDataParallel sees both.

    ``forward(images, maps) -> (logits, guidance loss)``; maps are the teacher's, one [N, Cj, Hj, Wj] per block.
    """

    def __init__(self, student: nn.Module, blocks: Sequence[int], guidance: GuidanceLoss):
        super().__init__()
        self.student = student
        self.guidance = guidance
        self.blocks = list(blocks)

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        final, features, grid = student_features(self.student, images, self.blocks)
        layers = self.guidance.projections
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        grids = None if grid is None else [grid] * len(features)
        loss = guidance_loss(features, maps, weights, biases, grids=grids, impl=self.guidance.impl)
        return self.student.forward_head(final), loss

    def no_weight_decay(self) -> set[str]:
        names = getattr(self.student, "no_weight_decay", set)()
        return {f"student.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Layer groups of the student under its new prefix; projections belong to the last one."""
        layers = group_parameters(self.student, self.student.group_matcher(coarse=coarse), reverse=True)
        last = max(layers.values(), default=0)
        return lambda name: layers.get(name.removeprefix("student."), last)


def student_features(student: nn.Module, images: Tensor, blocks: Sequence[int] | None):
    """Final features, those of ``blocks`` in the order given, and the grid (H, W) of tokens for these images.

    Features are taken before the final norm and without prefix tokens; None takes all blocks. They are tokens
    [N, H*W, C] where timm tells their grid for any image size, else maps [N, C, H, W] (and the grid is None).
    """
    patches = getattr(student, "patch_embed", None)
    has_grid = hasattr(student, "num_prefix_tokens") and hasattr(patches, "dynamic_feat_size")
    grid = tuple(patches.dynamic_feat_size(images.shape[-2:])) if has_grid else None
    taken = None if blocks is None else sorted(set(blocks))
    options = {"norm": False, "stop_early": False, "output_fmt": "NLC" if has_grid else "NCHW"}
    final, features = student.forward_intermediates(images, indices=taken, **options)
    if blocks is not None:  # timm returns each block once, in ascending order
        features = [features[taken.index(block)] for block in blocks]
    return final, features, grid


def absolute_blocks(blocks: Sequence[int], count: int) -> list[int]:
    """``blocks`` with negative numbers counted from the end; raises ValueError for one that ``count`` does not hold."""
    for block in blocks:
        if not -count <= block < count:
            raise ValueError(
                f"blocks holds {block}, but the student has {count}; use 0 to {count - 1}, or -1 for the last"
            )
    return [block % count for block in blocks]


def stage_maps(out: object) -> list[Tensor]:
    """The maps in a teacher's output: a map, a sequence of them, or (logits, maps); raises ValueError for others."""
    maps = [out] if isinstance(out, Tensor) else out
    if isinstance(maps, (tuple, list)) and len(maps) == 2 and isinstance(maps[1], (tuple, list)):
        maps = maps[1]
    if isinstance(maps, (tuple, list)) and maps and all(isinstance(m, Tensor) and m.dim() == 4 for m in maps):
        return list(maps)
    shape = f"a tensor {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__} without them"
    raise ValueError(
        f"the teacher gives {shape}, not stage maps [N, C, H, W]; make it with features_only=True, or let it return "
        "(logits, maps)"
    )


def image_size(student: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of a timm model's images: the size it was built for, else that of its pretrained_cfg."""
    config = getattr(student, "pretrained_cfg", None) or {}
    if "input_size" not in config:
        raise ValueError(f"{type(student).__name__} does not say the size of its images; pass input_size=(3, H, W)")
    channels, *size = config["input_size"]
    size = getattr(getattr(student, "patch_embed", None), "img_size", None) or size
    return getattr(student, "in_chans", channels), *size


class LocalityGuidanceTask(TrainingTask):
    """cross-entropy + ``weight`` * guidance loss (arXiv 2207.10026) as a ``timm.task.TrainingTask``.

    student       a timm model with forward_intermediates, of any token or pyramid kind; any image size it takes
    teacher       CNN, frozen here: ``teacher(images)`` gives the stage maps, one per block, or (logits, maps). A timm
                  model made with features_only=True, or fastlg.models.resnet_cifar
    blocks        guided blocks (of pyramid models: stages), 0-based, -1 the last, in the order of the teacher's maps; a
                  block may be given for several maps
    weight        beta; 2.5 in the paper
    teacher_size  images are reduced to this size for the teacher, in px; None gives them as they are
    criterion     of logits and targets; cross-entropy by default
    input_size    (C, H, W) of the images that size the projections; None asks the student
    device, dtype   of the projections, and the teacher is moved there; the student's own by default

    ``task(images, targets)`` returns "loss", "output" (logits), "task_loss" and "guidance_loss". Checkpoints hold the
    plain student as state_dict and the projections as task_state. Raises TypeError or ValueError for a student, blocks
    or a teacher that do not fit.
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
        if not hasattr(student, "forward_intermediates"):
            raise TypeError(f"{type(student).__name__} has no forward_intermediates; use a timm model that has it")
        if isinstance(blocks, int) or not blocks:
            raise ValueError(f"blocks is {blocks!r}; give a list of block numbers, one per teacher map, as [0, 6, 11]")
        own = next(student.parameters())
        super().__init__(device=device or own.device, dtype=dtype or own.dtype, verbose=verbose)
        self.teacher = teacher.requires_grad_(False).eval().to(self.device, self.dtype)
        self.teacher_size = teacher_size
        self.weight = weight
        self.criterion = criterion or nn.CrossEntropyLoss()
        images = torch.zeros(1, *(input_size or image_size(student)), device=self.device, dtype=self.dtype)
        training = student.training
        with torch.no_grad():
            _, features, grid = student_features(student.eval(), images, None)
            maps = self.teacher_maps(images)
        student.train(training)
        blocks = absolute_blocks(blocks, len(features))
        if len(maps) != len(blocks):
            raise ValueError(f"{len(blocks)} guided blocks, but the teacher gives {len(maps)} maps; make them agree")
        dims = [features[block].shape[1 if grid is None else 2] for block in blocks]
        guidance = GuidanceLoss(dims, [m.shape[1] for m in maps], impl=impl).to(self.device, self.dtype)
        self.trainable_module = GuidedModule(student, blocks, guidance)

    def teacher_maps(self, images: Tensor) -> list[Tensor]:
        """The teacher's stage maps for the student's view of the images, reduced without antialiasing."""
        if self.teacher_size is not None:
            images = F.interpolate(images, self.teacher_size, mode="bilinear", align_corners=False)
        return stage_maps(self.teacher(images))

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
        self.eval_model = torch.compile(self._guided(None, False).student, backend=backend, mode=mode, **options)
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
