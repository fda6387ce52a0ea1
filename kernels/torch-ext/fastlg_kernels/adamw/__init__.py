"""AdamW over all parameters at once, with float32 masters behind bfloat16 weights."""

from .optimizer import AdamW

__all__ = ["AdamW"]
