"""Where the reference code builds a student differently from timm: first weights, LayerNorm eps, drop path."""

from __future__ import annotations

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models.pit import PoolingVisionTransformer
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fastlg.models.systems.life import has_life
from fastlg.models.systems.spt_lsa import SmallSetViT

LAYER_NORM_EPS = 1e-6


@torch.no_grad()
def as_reference(model: nn.Module, drop_path: float) -> None:
    """Changes a freshly built timm student, in place, to what the reference code starts from.

    DeiT and ViT: class token truncated normal 0.02 (timm: 1e-6), head zero (timm: truncated normal 0.02).
    With LIFE: the class token likewise; the head as timm's, truncated normal 0.02.
    PVTv2: every LayerNorm has eps 1e-6 (timm: 1e-5 in patch embeddings and in the attention's spatial reduction).
    PiT: block i of n drops its paths at rate * i / n (timm: rate * i / (n - 1)).
    The models of fastlg's own (T2T-ViT, PVT, CvT, those of neighbouring systems) start so by themselves.
    Everything else of these and of ConViT agrees: truncated normal 0.02 for linear layers, PiT at torch's default.
    """
    match model:
        case SmallSetViT():
            return
        case VisionTransformer():
            _start_vit(model, is_zero_headed=not has_life(model))
        case PyramidVisionTransformerV2():
            for module in model.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = LAYER_NORM_EPS
        case PoolingVisionTransformer():
            blocks = [block for stage in model.transformers for block in stage.blocks]
            for index, block in enumerate(blocks):
                for path in (block.drop_path1, block.drop_path2):
                    if isinstance(path, DropPath):
                        path.drop_prob = drop_path * index / len(blocks)


def _start_vit(model: VisionTransformer, *, is_zero_headed: bool) -> None:
    for token in (model.cls_token, getattr(model, "dist_token", None)):
        if token is not None:
            trunc_normal_(token, std=0.02)
    for head in (model.head, getattr(model, "head_dist", None)):
        if head is not None and is_zero_headed:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
