"""Where a student's tokens and keys lie in the image: of which tokens keys are made, and tokens of later stages."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from timm.models.pit import PoolingVisionTransformer
from timm.models.pvt_v2 import Attention as PvtV2Attention
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, nn

from fastlg.models.student import Student
from fastlg.models.systems.dhvt import DynamicHybridViT
from fastlg.models.vits.cvt import ConvAttention, ConvolutionalTransformer
from fastlg.models.vits.pvt import PyramidVisionTransformer, ReducedAttention
from fastlg.models.vits.t2t import SPLITS, T2TViT


class Layout(NamedTuple):
    """The tokens that ask in one block and the keys that answer.

    grid     (H, W) of the patch tokens
    prefix   class and other tokens that lead them; the same lead the keys
    rows     float64 [Hk, H], columns float64 [Wk, W]: of which rows and columns of tokens each row and column of keys
             is made, in shares; the identity where every token is a key
    """

    grid: tuple[int, int]
    prefix: int
    rows: Tensor
    columns: Tensor

    @property
    def keys(self) -> tuple[int, int]:
        """(height, width) of the grid of keys."""
        return len(self.rows), len(self.columns)


def layout_of(layer: nn.Module, grid: tuple[int, int], prefix: int) -> Layout:
    """Of an attention layer on patch tokens of ``grid``, behind ``prefix`` others."""
    return Layout(grid, prefix, *(key_shares(layer, side) for side in grid))


def key_shares(layer: nn.Module, side: int) -> Tensor:
    """float64 [keys, side]: shares of an axis of ``side`` tokens in each key of that axis.

    Of a key that a convolution makes see ``window_shares``: its weights say nothing of places.
    """
    match layer:
        case ReducedAttention() if layer.reduction > 1:
            return window_shares(layer.sr, side)
        case PvtV2Attention() if layer.pool is not None:
            count = layer.pool.output_size
            means = nn.functional.adaptive_avg_pool1d(torch.eye(side)[None], count)[0].T
            return _divided(means > 0) * count / side
        case PvtV2Attention() if layer.sr is not None:
            return window_shares(layer.sr, side)
        case ConvAttention():
            return window_shares(layer.conv_proj_k.conv, side)
        case _:
            return torch.eye(side, dtype=torch.float64)


def window_shares(conv: nn.Conv2d, side: int) -> Tensor:
    """float64 [out, side]: shares of the places of an axis in each output of a convolution; see ``_divided``."""
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    first = torch.arange((side + 2 * padding - kernel) // stride + 1)[:, None] * stride - padding
    places = torch.arange(side)[None]
    return _divided((places >= first) & (places < first + kernel)) / min(kernel, stride)


def _divided(seen: Tensor) -> Tensor:
    """[out, side]: whether a window sees a place -> shares, each place divided among the windows that see it.

    So where all windows get alike, all places do: rollout shows what is attended to, not the pattern of the windows
    nor the border. A window's shares sum to the same everywhere but at the border.
    """
    return seen.double() / seen.sum(dim=0).clamp(min=1)


def stage_steps(student: Student) -> list[nn.Conv2d | None] | None:
    """Per block the convolution that made its grid of the grid before; None where the grid is the block's before it.

    None for all: the grid changes in a way that is not known here.
    """
    match student.bare:
        case PoolingVisionTransformer():
            stages = [(stage.pool.conv if stage.pool else None, stage.blocks) for stage in student.bare.transformers]
        case PyramidVisionTransformerV2() | PyramidVisionTransformer() | ConvolutionalTransformer():
            stages = [
                (stage.downsample.proj if stage.downsample else None, stage.blocks) for stage in student.bare.stages
            ]
        case _:
            return [None] * student.depth if len(set(student.grids)) == 1 else None
    return [conv if number == 0 else None for conv, blocks in stages for number in range(len(blocks))]


def pitches(student: Student) -> list[tuple[float, float]]:
    """Pixels from one token to the next, down and across, per block that ``student`` hands out (all of them)."""
    found, steps = [], stage_steps(student)
    for block, grid in enumerate(student.grids):
        step = steps[block] if steps is not None else None
        if found and step is not None:
            pitch = tuple(before * stride for before, stride in zip(found[-1], step.stride, strict=True))
        elif found and grid == student.grids[block - 1]:
            pitch = found[-1]
        else:
            pitch = _first_pitch(student, grid)
        found.append(pitch)
    return found


def _first_pitch(student: Student, grid: tuple[int, int]) -> tuple[float, float]:
    """Of the first block. Patches may overlap, and padding lies beyond the image: the stride counts, not the share."""
    match student.bare:
        case PoolingVisionTransformer():
            stride = student.bare.patch_embed.conv.stride
        case PyramidVisionTransformerV2() | PyramidVisionTransformer() | ConvolutionalTransformer():
            stride = student.bare.patch_embed.proj.stride
        case DynamicHybridViT():
            stride = (2**student.bare.patch_embed.steps,) * 2
        case T2TViT():
            stride = (math.prod(stride for _, stride, _ in SPLITS),) * 2
        case _:
            stride = tuple(student.image_size / side for side in grid)
    return tuple(map(float, stride))


def distance_matrix(layout: Layout, pitch: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """float64 [H W, Hk Wk]: from each patch token to each key, in the unit of ``pitch``; 1: in tokens.

    A key lies in the mean place of the tokens that it is made of.
    """
    axes = []
    for shares, step in zip((layout.rows, layout.columns), pitch, strict=True):
        places = torch.arange(shares.shape[1], dtype=torch.float64)
        axes.append((places[:, None] - shares @ places / shares.sum(dim=1)) * step)
    down, across = axes
    return (down[:, None, :, None] ** 2 + across[None, :, None, :] ** 2).sqrt().flatten(2).flatten(0, 1)
