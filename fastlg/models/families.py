"""How each family of timm transformers is walked: tokens of chosen blocks come out as the model itself holds them.

A walk does what the model's own ``forward`` does, block by block: ``walk(model, images [N, 3, S, S], wanted)`` returns
(logits [N, K], {block: tokens [N, L, C]}). Blocks are counted from 0 over all stages. Tokens are the block's output
before any later norm, prefix tokens (class, distillation, registers) still in front.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.models.convit import ConVit
from timm.models.pit import PoolingVisionTransformer
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from fastlg.errors import UserError
from fastlg.models.vits.cvt import ConvolutionalTransformer
from fastlg.models.vits.t2t import T2TViT
from fastlg.models.vits.token_model import BlockShape, TokenModel, conv_side

PREFIXES = ("deit_", "deit3_", "vit_", "convit_", "pit_", "pvt_v2_", "pvt_tiny", "t2t_vit_", "cvt_")
PREFIXES += ("dhvt_", "sl_vit_", "poorvit")


class Family(NamedTuple):
    """walk: see the module's docstring. shapes: one BlockShape per block, for square images of the given size in px.
    fits: whether images of that size are seen whole, to the last row and column, by every patch and key."""

    walk: Callable[[nn.Module, Tensor, frozenset[int]], tuple[Tensor, dict[int, Tensor]]]
    shapes: Callable[[nn.Module, int], list[BlockShape]]
    fits: Callable[[nn.Module, int], bool]


class Place(NamedTuple):
    """The tokens of which a localisation loss asks how far apart they lie, as its authors have it.

    block      their number among the blocks; one above the last is what the last norm makes of that one's
    shape      their grid and channels
    is_pooled  their map is averaged to half its side first
    std        of the head's first weights, truncated normal; None: torch's own
    """

    block: int
    shape: BlockShape
    is_pooled: bool
    std: float | None


def place_of(model: nn.Module, shapes: list[BlockShape]) -> Place:
    """The last block's tokens, before any later norm: so for ViTs, and for the families that the authors never trained.

    T2T-ViT's are taken behind the last norm, and as CvT's they are pooled.
    """
    depth, own = len(shapes), shapes[-1]
    match model:
        case T2TViT():
            return Place(depth, own, True, 0.02)
        case ConvolutionalTransformer():
            return Place(depth - 1, own, True, None)
        case _:
            return Place(depth - 1, own, False, None)


def family_of(model: nn.Module) -> Family | None:
    """The family of a timm model, or None where it has no walk here (general/walk.py)."""
    match model:
        case VisionTransformer():
            return Family(walk_vit, shapes_columnar, fits_columnar)
        case ConVit():
            return Family(walk_convit, shapes_columnar, fits_columnar)
        case PoolingVisionTransformer():
            return Family(walk_pit, shapes_pit, fits_pit)
        case PyramidVisionTransformerV2():
            return Family(walk_pvt_v2, shapes_pvt_v2, fits_pvt_v2)
        case TokenModel():
            return Family(walk_own, shapes_own, fits_own)
        case _:
            return None


def fill_relative_positions(model: nn.Module) -> None:
    """ConViT: timm fills these buffers in the first forward, which torch.compile cannot trace; so fill them before.

    Raises UserError for patches in a grid that is no square, which timm counts as one.
    """
    for block in model.blocks if isinstance(model, ConVit) else ():
        if block.use_gpsa and "rel_indices" in dict(block.attn.named_buffers(recurse=False)):
            high, wide = model.patch_embed.grid_size
            if high != wide:
                raise UserError(
                    f"model.args.patch_size gives a grid of {high} x {wide}, but ConViT's local attention takes square "
                    "grids; use square patches"
                )
            block.attn.rel_indices = block.attn.get_rel_indices(model.num_patches)


def walk_vit(model: VisionTransformer, images: Tensor, wanted: frozenset[int]) -> tuple[Tensor, dict[int, Tensor]]:
    kept = {}
    x = model._pos_embed(model.patch_embed(images))
    x = model.norm_pre(model.patch_drop(x))
    for index, block in enumerate(model.blocks):
        x = block(x)
        if index in wanted:
            kept[index] = x
    return model.forward_head(model.norm(x)), kept


def walk_convit(model: ConVit, images: Tensor, wanted: frozenset[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """The class token joins after the local blocks, so early blocks have no prefix token."""
    kept = {}
    x = model.patch_embed(images)
    if model.use_pos_embed:
        x = x + model.pos_embed
    x = model.pos_drop(x)
    for index, block in enumerate(model.blocks):
        if index == model.local_up_to_layer:
            x = torch.cat((model.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = block(x)
        if index in wanted:
            kept[index] = x
    return model.forward_head(model.norm(x)), kept


def walk_pit(
    model: PoolingVisionTransformer, images: Tensor, wanted: frozenset[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Blocks lie inside stages; between stages the tokens are viewed as a map for the pooling convolution."""
    kept, index = {}, 0
    x = model.pos_drop(model.patch_embed(images) + model.pos_embed)
    prefix = model.cls_token.expand(x.shape[0], -1, -1)
    count = prefix.shape[1]
    for stage in model.transformers:
        if stage.pool is not None:
            x, prefix = stage.pool(x, prefix)
        grid = x.shape[2:]
        x = stage.norm(torch.cat((prefix, x.flatten(2).transpose(1, 2)), dim=1))
        for block in stage.blocks:
            x = block(x)
            if index in wanted:
                kept[index] = x
            index += 1
        prefix, x = x[:, :count], x[:, count:].transpose(1, 2).unflatten(2, grid)
    return model.forward_head(model.norm(prefix)), kept


def walk_pvt_v2(
    model: PyramidVisionTransformerV2, images: Tensor, wanted: frozenset[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """No prefix tokens. Stages hand each other NCHW views of NLC tokens; timm copies them into NCHW memory."""
    kept, index = {}, 0
    x = model.patch_embed(images)
    for stage in model.stages:
        if stage.downsample is not None:
            x = stage.downsample(x)
        grid = x.shape[1:3]
        x = x.flatten(1, 2)
        for block in stage.blocks:
            x = block(x, grid)
            if index in wanted:
                kept[index] = x
            index += 1
        x = stage.norm(x).unflatten(1, grid).permute(0, 3, 1, 2)
    return model.forward_head(x), kept


def walk_own(model: TokenModel, images: Tensor, wanted: frozenset[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """Also the tokens behind the last norm, where the number above the last block's is wanted."""
    tokens, kept = model.walk(images, wanted)
    tokens = model.norm(tokens)
    if (behind := model.feature_blocks[-1] + 1) in wanted:
        kept[behind] = tokens
    return model.forward_head(tokens), kept


def shapes_own(model: TokenModel, image_size: int) -> list[BlockShape]:
    return model.block_shapes((image_size, image_size))


def shapes_columnar(model: VisionTransformer | ConVit, image_size: int) -> list[BlockShape]:
    grid = tuple(model.patch_embed.grid_size)
    return [BlockShape(grid, model.embed_dim) for _ in model.blocks]


def shapes_pit(model: PoolingVisionTransformer, image_size: int) -> list[BlockShape]:
    shapes, side = [], model.patch_embed.height
    for stage in model.transformers:
        if stage.pool is not None:
            side = _conv_side(stage.pool.conv, side)
        dim = stage.blocks[0].norm1.normalized_shape[0]
        shapes += [BlockShape((side, side), dim) for _ in stage.blocks]
    return shapes


def shapes_pvt_v2(model: PyramidVisionTransformerV2, image_size: int) -> list[BlockShape]:
    shapes, side = [], _conv_side(model.patch_embed.proj, image_size)
    for stage, dim in zip(model.stages, (info["num_chs"] for info in model.feature_info), strict=True):
        if stage.downsample is not None:
            side = _conv_side(stage.downsample.proj, side)
        reduction = stage.blocks[0].attn.sr
        fits = reduction is None or stage.blocks[0].attn.pool is not None or side >= reduction.kernel_size[0]
        shapes += [BlockShape((side, side) if fits else (0, 0), dim) for _ in stage.blocks]
    return shapes


def fits_columnar(model: VisionTransformer | ConVit, image_size: int) -> bool:
    embed = model.patch_embed
    if not isinstance(getattr(embed, "backbone", None), (ConvStem, types.NoneType)):
        return True  # a CNN that pads its images, with patches of its maps, which timm checks itself
    convs = [conv for conv in embed.modules() if isinstance(conv, nn.Conv2d)]
    return _are_seen(convs, image_size) if convs else all(image_size % side == 0 for side in embed.patch_size)


def fits_pit(model: PoolingVisionTransformer, image_size: int) -> bool:
    convs = [model.patch_embed.conv, *(stage.pool.conv for stage in model.transformers if stage.pool is not None)]
    return _are_seen(convs, image_size)


def fits_pvt_v2(model: PyramidVisionTransformerV2, image_size: int) -> bool:
    """Also by the keys, which are tokens of a stage joined in squares that do not overlap."""
    side = image_size
    for index, stage in enumerate(model.stages):
        conv = model.patch_embed.proj if index == 0 else stage.downsample.proj
        if not is_seen(conv, side):
            return False
        side, attention = _conv_side(conv, side), stage.blocks[0].attn
        if attention.sr is not None and attention.pool is None and not is_seen(attention.sr, side):
            return False
    return True


def fits_own(model: TokenModel, image_size: int) -> bool:
    side = image_size
    for window, keys in model.windows():
        if not _reach_the_end(side, *window):
            return False
        side = conv_side(side, *window)
        if side >= keys and not _reach_the_end(side, keys, keys, 0):
            return False
    return True


def _are_seen(convs: list[nn.Conv2d], side: int) -> bool:
    for conv in convs:
        if not is_seen(conv, side):
            return False
        side = _conv_side(conv, side)
    return True


def is_seen(conv: nn.Conv2d, side: int) -> bool:
    """Whether the windows reach the last of ``side`` pixels; padding, which lies beyond it, they may leave."""
    return _reach_the_end(side, conv.kernel_size[0], conv.stride[0], conv.padding[0])


def _reach_the_end(side: int, kernel: int, stride: int, padding: int) -> bool:
    beyond = side + 2 * padding - kernel
    return beyond >= 0 and beyond % stride <= padding


def _conv_side(conv: nn.Conv2d, side: int) -> int:
    return conv_side(side, conv.kernel_size[0], conv.stride[0], conv.padding[0])
