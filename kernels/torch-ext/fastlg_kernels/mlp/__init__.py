"""The MLP half of a transformer block: residual, layer norm, both layers and GELU, with nothing hidden in memory."""

from .api import add_mlp

__all__ = ["add_mlp"]
