"""A residual stream and its layer norm: the sum, drop path and the norm in one pass over the tokens."""

from .api import add_layer_norm

__all__ = ["add_layer_norm"]
