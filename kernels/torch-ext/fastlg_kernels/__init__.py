"""Fused kernels for locality guidance and on-device augmentation: torch and triton, nothing else."""

from .guidance import guidance_loss
from .layers import GuidanceLoss, distillation_loss

__all__ = [
    "GuidanceLoss",
    "distillation_loss",
    "guidance_loss",
]
