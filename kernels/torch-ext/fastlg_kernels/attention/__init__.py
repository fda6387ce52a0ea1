"""Self-attention over few tokens: one program per image and head, packed queries, keys and values read in place."""

from .api import short_attention

__all__ = ["short_attention"]
