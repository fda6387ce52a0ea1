"""The guidance loss: students' tokens against a teacher's maps, forward and backward in fused kernels."""

from .api import guidance_loss

__all__ = ["guidance_loss"]
