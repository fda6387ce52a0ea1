"""Attention matrices as a student's own layers make them, block by block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from timm.layers import Attention
from timm.models.convit import GPSA, MHSA
from timm.models.pvt_v2 import Attention as PvtV2Attention
from torch import Tensor, nn

from fastlg.analysis.geometry import Layout, layout_of
from fastlg.models.families import family_of
from fastlg.models.student import Student
from fastlg.models.systems.dhvt import HeadTokenAttention
from fastlg.models.systems.poorvit import LatentAttention, PoorViT, TokenAttention
from fastlg.models.vits.cvt import ConvAttention
from fastlg.models.vits.pvt import ReducedAttention
from fastlg.models.vits.t2t import T2TViT

# Step by step, not fused, each of them hands its finished matrix [N, heads, tokens, keys] to its ``attn_drop`` and
# multiplies what comes back with the values.
WITH_MATRIX = (
    *(Attention, GPSA, MHSA, PvtV2Attention),
    *(ReducedAttention, ConvAttention, HeadTokenAttention, LatentAttention),
)
See = Callable[[int, Tensor, Layout], None]


def attention_layers(student: Student) -> tuple[list[nn.Module], str]:
    """(the attention layer of every block, "") or ([], why there are none to look at)."""
    if family_of(student.bare) is None:
        return [], f"{student.name}: which tokens its attention sees is not known; attention is left out"
    layers = [module for module in student.bare.modules() if isinstance(module, WITH_MATRIX)]
    layers = [layer for layer in layers if not isinstance(layer, TokenAttention)]
    if len(layers) != student.depth:
        return [], (
            f"{student.name}: {len(layers)} of its {student.depth} blocks have an attention matrix over their whole "
            "grid; attention is left out"
        )
    return layers, ""


def remarks(student: Student) -> list[str]:
    """What attention says nothing about, though it is part of the student."""
    if isinstance(student.bare, T2TViT):
        return [
            "the two performers of the token-to-token module have no attention matrix: they sum random features; "
            "blocks are those of the trunk"
        ]
    if isinstance(student.bare, PoorViT) and student.bare.blocks_token_only:
        return ["blocks in which class tokens alone ask are left out; rollout is read before them"]
    return []


@contextlib.contextmanager
def watch(student: Student, see: See) -> Iterator[None]:
    """Inside, every forward pass calls ``see(block, matrix [N, heads, tokens, keys], layout)`` for each block in turn.

    ``student`` hands out all its blocks (``student.guide(range(depth))``) and has ``attention_layers``. Its layers
    compute step by step here, and as before afterwards. Rows of a matrix sum to 1. DHVT's is of what tokens take of
    tokens, also through the tokens of the heads (``HeadTokenAttention.among_tokens``).
    """
    layers, _ = attention_layers(student)
    fused = [getattr(layer, "fused_attn", None) for layer in layers]
    hooks = []
    try:
        for block, layer in enumerate(layers):
            if hasattr(layer, "fused_attn"):
                layer.fused_attn = False
            seen = partial(_hand_on, see, block, layer, student.grids[block])
            hooks.append(layer.attn_drop.register_forward_hook(seen))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, before in zip(layers, fused, strict=True):
            if before is not None:
                layer.fused_attn = before


def _hand_on(see: See, block: int, layer: nn.Module, grid: tuple[int, int], drop: nn.Module, given, out: Tensor):
    if isinstance(layer, HeadTokenAttention):
        out = layer.among_tokens(out)
    see(block, out, layout_of(layer, grid, out.shape[2] - grid[0] * grid[1]))
