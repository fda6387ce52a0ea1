"""A student's blocks on the fused parts of ``fastlg_kernels``."""

from __future__ import annotations

import torch
from torch import nn

from fastlg_kernels import fuse, unfuse
from fastlg_kernels.devices import triton_obstacle


def why_unfused(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """What keeps the blocks of ``model`` from running on fused parts on a GPU; "" where nothing does, and elsewhere.
    The model stays what it is."""
    if device.type != "cuda":
        return ""
    if obstacle := triton_obstacle(device, {dtype}):
        return obstacle
    try:
        unfuse(fuse(model))
    except ValueError as error:
        return str(error).partition(";")[0]
    return ""


def use_fused_blocks(model: nn.Module) -> None:
    """Only where ``why_unfused`` has nothing to say."""
    fuse(model)
