"""CvT (Wu et al. 2021): three stages of convolutional token embeddings and convolutional projections, no positions."""

from __future__ import annotations

import torch
from timm.layers import DropPath, Mlp, QuickGELU, calculate_drop_path_rates, use_fused_attn
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from fastlg.models.convolutions import ImageConv2d
from fastlg.models.vits.token_model import BlockShape, TokenModel, attend, conv_side, maps_of

EPS = 1e-5  # of every LayerNorm, as in the reference code
EMBEDDINGS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding of each stage's token embedding


class ConvolutionalTransformer(TokenModel):
    """Takes images of any size. Lists have one entry per stage; the class token joins in the last one.

    Paths are dropped in the last stage alone, the rate rising over its blocks, as the reference code does.
    """

    reference_names = (
        (r"^patch_embed\.", "stage0.patch_embed."),
        (r"^stages\.(\d+)\.downsample\.", r"stage\1.patch_embed."),
        (r"^stages\.(\d+)\.", r"stage\1."),
    )

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: tuple[int, ...] = (64, 192, 384),
        depths: tuple[int, ...] = (1, 2, 10),
        num_heads: tuple[int, ...] = (1, 3, 6),
        mlp_ratios: tuple[float, ...] = (4, 4, 4),
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        if {len(own) for own in (embed_dims, depths, num_heads, mlp_ratios)} != {len(EMBEDDINGS)}:
            raise ValueError("embed_dims, depths, num_heads and mlp_ratios have one entry for each of 3 stages")
        super().__init__(embed_dims[-1], num_classes, global_pool, drop_rate)
        self.embed_dims, self.depths = tuple(embed_dims), tuple(depths)
        self.patch_embed = ConvEmbed(in_chans, embed_dims[0], *EMBEDDINGS[0])
        self.stages = nn.ModuleList()
        for number, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            is_last = number == len(depths) - 1
            rates = calculate_drop_path_rates(drop_path_rate if is_last else 0.0, depth)
            stage = nn.Module()
            stage.downsample = ConvEmbed(embed_dims[number - 1], dim, *EMBEDDINGS[number]) if number else None
            if is_last:
                stage.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            stage.blocks = nn.ModuleList(
                Block(dim, num_heads[number], mlp_ratios[number], drop_rate, attn_drop_rate, rate) for rate in rates
            )
            self.stages.append(stage)
        self.norm = nn.LayerNorm(self.num_features, eps=EPS)
        self.describe_pyramid(embed_dims, depths)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Linear layers and the class token truncated normal 0.02, biases zero but the head's, which stays torch's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module is not self.head:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.stages[-1].cls_token, std=0.02)

    def walk(
        self, images: Tensor, wanted: frozenset[int] = frozenset(), until: int | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        kept, index, x = {}, 0, images
        for stage in self.stages:
            x, grid = (stage.downsample or self.patch_embed)(x)
            if stage is self.stages[-1]:
                x = torch.cat((stage.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
            for block in stage.blocks:
                x = block(x, grid)
                if index in wanted:
                    kept[index] = x
                if index == until:
                    return x, kept
                index += 1
            if stage is not self.stages[-1]:
                x = maps_of(x, grid)
        return x, kept

    def windows(self) -> list[tuple[tuple[int, int, int], int]]:
        return [(embedding, 1) for embedding in EMBEDDINGS]

    def block_shapes(self, image_size: tuple[int, int]) -> list[BlockShape]:
        shapes, sides = [], image_size
        for embedding, dim, depth in zip(EMBEDDINGS, self.embed_dims, self.depths, strict=True):
            sides = tuple(conv_side(side, *embedding) for side in sides)
            shapes += [BlockShape(sides, dim)] * depth
        return shapes


class ConvEmbed(nn.Module):
    """Maps [N, C, H, W] -> (tokens [N, H' W', D], their grid): overlapping patches and a norm."""

    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int, padding: int):
        super().__init__()
        convolution = ImageConv2d if in_chans < ImageConv2d.CHANNELS else nn.Conv2d
        self.proj = convolution(in_chans, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
        maps = self.proj(maps)
        return self.norm(maps.flatten(2).transpose(1, 2)), tuple(maps.shape[-2:])


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop: float, attn_drop: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = ConvAttention(dim, num_heads, drop, attn_drop)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=QuickGELU, drop=drop)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x), grid))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class ConvAttention(nn.Module):
    """Queries, keys and values pass a depthwise convolution and a BatchNorm before their linear layers.

    Tokens [N, L, C] on ``grid``, a class token may lead them and skips the convolutions. Keys and values are made at
    half the resolution. Scores are scaled by width ** -0.5, as the reference code does, not by the heads' width.
    """

    def __init__(self, dim: int, num_heads: int, drop: float, attn_drop: float):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is no multiple of {num_heads} heads")
        self.num_heads, self.scale = num_heads, dim**-0.5
        self.fused_attn = use_fused_attn()
        self.conv_proj_q = DepthwiseConv(dim, stride=1)
        self.conv_proj_k = DepthwiseConv(dim, stride=2)
        self.conv_proj_v = DepthwiseConv(dim, stride=2)
        self.proj_q = nn.Linear(dim, dim)
        self.proj_k = nn.Linear(dim, dim)
        self.proj_v = nn.Linear(dim, dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        prefix, patches = x.tensor_split((x.shape[1] - grid[0] * grid[1],), dim=1)
        maps = maps_of(patches, grid)
        query = self.heads(self.proj_q, self.conv_proj_q(maps), prefix)
        key = self.heads(self.proj_k, self.conv_proj_k(maps), prefix)
        value = self.heads(self.proj_v, self.conv_proj_v(maps), prefix)
        mixed = attend(query, key, value, scale=self.scale, drop=self.attn_drop, is_fused=self.fused_attn)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))

    def heads(self, linear: nn.Linear, maps: Tensor, prefix: Tensor) -> Tensor:
        """[N, heads, P + H' W', C / heads]; ``prefix`` [N, P, C] leads, P may be 0."""
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = torch.cat((prefix, tokens), dim=1) if prefix.shape[1] else tokens
        return linear(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class DepthwiseConv(nn.Module):
    """3 x 3 convolution of each channel alone, and BatchNorm."""

    def __init__(self, dim: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, maps: Tensor) -> Tensor:
        return self.bn(self.conv(maps))


default_cfgs = generate_default_cfgs(
    {
        "cvt_13": {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


@register_model
def cvt_13(pretrained: bool = False, **kwargs) -> ConvolutionalTransformer:
    """CvT-13: 1, 2 and 10 blocks of width 64, 192 and 384."""
    features = {"out_indices": (0, 1, 2), "feature_cls": "getter"}
    return build_model_with_cfg(ConvolutionalTransformer, "cvt_13", pretrained, feature_cfg=features, **kwargs)
