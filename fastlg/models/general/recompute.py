"""Gradient checkpointing: what the blocks of a student compute is not kept for backward but computed again there."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastlg.errors import UserError, first_line
from fastlg.models.families import family_of

BLOCK = re.compile(r"(^|\.)blocks\.\d+$")


def recompute_blocks(model: nn.Module, name: str, *, is_compiled: bool = False) -> None:
    """From now on backward computes each block of ``model``, called ``name``, again from what went into it.

    Of a family with a walk of its own these are its blocks; of any other what timm's ``set_grad_checkpointing`` says.
    Gradients are the same to the bit: random numbers are drawn again from the same state. Running statistics of batch
    norms are those of the first time. Raises UserError for models that have neither, and for batch norms where that
    cannot be had: in networks without a walk of their own, and where blocks ``is_compiled``.
    """
    why = "it has no set_grad_checkpointing"
    is_own = family_of(model) is not None
    if _counting(model) and (is_compiled or not is_own):
        why = "its batch norms would count every batch twice" + (", compiled" if is_own else "")
    elif is_own:
        for own, block in model.named_modules():
            if BLOCK.search(own):
                block.__class__ = _recomputed(type(block))
        return
    elif callable(switch := getattr(model, "set_grad_checkpointing", None)):
        try:
            return switch(True)
        except Exception as error:  # timm's own: most say so by an assertion
            why = first_line(error)
    raise UserError(
        f"engine.checkpointing is true, but {name} cannot compute its blocks again ({why}); set "
        "engine.checkpointing=false"
    )


def _counting(module: nn.Module) -> list[nn.Module]:
    """The batch norms that keep statistics."""
    norms = (own for own in module.modules() if isinstance(own, nn.modules.batchnorm._NormBase))
    return [own for own in norms if own.track_running_stats and own.running_mean is not None]


@contextlib.contextmanager
def _kept(norms: list[nn.Module]) -> Iterator[None]:
    """What ``norms`` count inside is forgotten afterwards."""
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, own in zip(buffers, before, strict=True):
                buffer.copy_(own)


@functools.cache
def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """The same module, by its weights and names; only its forward pass is wrapped."""

    class Recomputed(kind):
        def forward(self, *inputs):
            if not torch.is_grad_enabled():
                return kind.forward(self, *inputs)

            def run(*again: Tensor):
                return kind.forward(self, *again)

            norms = _counting(self)
            return checkpoint(_once_counted(run, norms) if norms else run, *inputs, use_reentrant=False)

    Recomputed.__name__ = Recomputed.__qualname__ = kind.__name__
    return Recomputed


def _once_counted(run: Callable, norms: list[nn.Module]) -> Callable:
    """``run``, whose second and later calls leave no trace in ``norms``."""
    calls = []

    def counted(*inputs: Tensor):
        calls.append(1)
        with _kept(norms) if len(calls) > 1 else contextlib.nullcontext():
            return run(*inputs)

    return counted
