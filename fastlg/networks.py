"""The networks of a run, made ready: what is trained and what guides it, where and as the switches want them."""

from __future__ import annotations

import torch
from torch import nn

from fastlg import ranks
from fastlg.config import Config
from fastlg.engine.precision import residual_dtype
from fastlg.engine.switches import Switches
from fastlg.models.general.fused import use_fused_blocks
from fastlg.models.general.paths import draw_at_once
from fastlg.models.general.recompute import recompute_blocks
from fastlg.models.general.residual import round_residual
from fastlg.models.student import use_fused_attention
from fastlg.models.synced_norm import with_synced_norms
from fastlg.objective import GuidedStudent
from fastlg.teacher.cache.read import CachedTeacher
from fastlg.teacher.online import OnlineTeacher


def new_unit(
    config: Config,
    model: nn.Module,
    teacher: OnlineTeacher | CachedTeacher | None,
    device: torch.device,
    dtype: torch.dtype,
    on: Switches,
) -> GuidedStudent:
    """What is trained: the student and every loss, on the device and in the memory layout of the run."""
    dims = teacher.dims if teacher else []
    unit = GuidedStudent(model, dims, config.guidance, config.drloc, config.optim.label_smoothing)
    return placed(config, unit, device, dtype, on)


def placed(config: Config, unit: nn.Module, device: torch.device, dtype: torch.dtype, on: Switches) -> nn.Module:
    """A unit on the device and in the memory layout of the run, as its switches and ranks want it."""
    model = unit.student
    torch.backends.cudnn.benchmark = on.tune_convolutions  # of this process, its teacher included
    use_fused_attention(unit.student, on.fused_attention)
    if not model.is_cnn and config.pretrain is None:  # which passes several batches before it goes back
        model.draws = draw_at_once(model, device, dtype, is_kept=config.engine.checkpointing)
    if on.fuse:
        use_fused_blocks(unit.student)
    change_blocks(config, model, dtype, is_compiled=on.compile)
    unit = with_synced_norms(unit).to(device) if ranks.world_size() > 1 else unit.to(device)
    return unit.to(memory_format=torch.channels_last) if on.channels_last and model.is_cnn else unit


def change_blocks(config: Config, model: nn.Module, dtype: torch.dtype, *, is_compiled: bool = False) -> None:
    """Gradient checkpointing and a rounded residual stream, where asked for. Raises UserError where they cannot be."""
    bare, name = getattr(model, "bare", model), config.model.name
    if config.engine.checkpointing:
        recompute_blocks(bare, name, is_compiled=is_compiled)
    if (narrow := residual_dtype(config.engine, dtype)) is not None:
        round_residual(bare, name, narrow)


def new_online_teacher(
    config: Config, model: nn.Module, device: torch.device, dtype: torch.dtype, switches: Switches
) -> OnlineTeacher:
    """The teacher that is run at every step. Batch statistics are those of the global batch, whatever the ranks."""
    settings = config.teacher
    if ranks.world_size() > 1 and settings.norm_stats == "batch":
        model = with_synced_norms(model)
    return OnlineTeacher(
        model.to(device),
        stages=settings.stages,
        norm_stats=settings.norm_stats,
        dtype=dtype,
        is_channels_last=switches.channels_last,
        is_folded=switches.fold_norms,
        is_compiled=switches.compile,
    )
