"""Gradient checkpointing: what the blocks of a student compute is not kept for backward but computed again there."""

from __future__ import annotations

import functools
import re

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastlg.errors import UserError, first_line
from fastlg.models.families import family_of

BLOCK = re.compile(r"(^|\.)blocks\.\d+$")


def recompute_blocks(model: nn.Module, name: str) -> None:
    """From now on backward computes each block of ``model``, called ``name``, again from what went into it.

    Of a family with a walk of its own these are its blocks; of any other what timm's ``set_grad_checkpointing`` says.
    Gradients are the same to the bit: random numbers are drawn again from the same state. Raises UserError for models
    that have neither.
    """
    why = "it has no set_grad_checkpointing"
    if family_of(model) is not None:
        for own, block in model.named_modules():
            if BLOCK.search(own):
                block.__class__ = _recomputed(type(block))
        return
    if callable(switch := getattr(model, "set_grad_checkpointing", None)):
        try:
            return switch(True)
        except Exception as error:  # timm's own: most say so by an assertion
            why = first_line(error)
    raise UserError(
        f"engine.checkpointing is true, but {name} cannot compute its blocks again ({why}); set "
        "engine.checkpointing=false"
    )


@functools.cache
def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """The same module, by its weights and names; only its forward pass is wrapped."""

    class Recomputed(kind):
        def forward(self, *inputs):
            if not torch.is_grad_enabled():
                return kind.forward(self, *inputs)

            def run(*again: Tensor):
                return kind.forward(self, *again)

            return checkpoint(run, *inputs, use_reentrant=False)

    Recomputed.__name__ = Recomputed.__qualname__ = kind.__name__
    return Recomputed
