"""PVT, the first version (Wang et al. 2021): four stages, attention whose keys come from a reduced map."""

from __future__ import annotations

import torch
from timm.layers import DropPath, Mlp, calculate_drop_path_rates, resample_abs_pos_embed, to_2tuple, use_fused_attn
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from fastlg.models.vits.token_model import BlockShape, TokenModel, attend, conv_side, maps_of

EPS = 1e-6  # of every LayerNorm, as in the reference code
PATCHES = (4, 2, 2, 2)  # side in px of the first stage's patches, then in tokens of the stage before


class PyramidVisionTransformer(TokenModel):
    """Stages of patch embedding, learned positions and blocks; the class token joins in the last one.

    Lists have one entry per stage. ``sr_ratios``: side of the patches that keys and values are made of; 1: all tokens.
    """

    reference_names = (
        (r"^patch_embed\.", "patch_embed1."),
        (r"^stages\.(\d+)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
        (r"^stages\.(\d+)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
        (r"^stages\.(\d+)\.pos_embed$", lambda m: f"pos_embed{int(m[1]) + 1}"),
    )

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        depths: tuple[int, ...] = (2, 2, 2, 2),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        lengths = {len(own) for own in (embed_dims, depths, num_heads, mlp_ratios, sr_ratios)}
        if lengths != {len(PATCHES)}:
            raise ValueError(
                "embed_dims, depths, num_heads, mlp_ratios and sr_ratios have one entry for each of 4 stages"
            )
        super().__init__(embed_dims[-1], num_classes, global_pool, drop_rate)
        self.depths = tuple(depths)
        self.patch_embed = PatchEmbed(in_chans, embed_dims[0], PATCHES[0])
        self.patch_embed.img_size = to_2tuple(img_size)  # where timm's models keep it
        rates = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        last = len(depths) - 1
        self.stages = nn.ModuleList()
        for number, grid in enumerate(self.grids(self.patch_embed.img_size)):
            before, dim = embed_dims[max(number - 1, 0)], embed_dims[number]
            stage = nn.Module()
            stage.downsample = PatchEmbed(before, dim, PATCHES[number]) if number else None
            stage.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + (number == last), dim))
            stage.blocks = nn.ModuleList(
                Block(dim, num_heads[number], mlp_ratios[number], sr_ratios[number], drop_rate, attn_drop_rate, rate)
                for rate in rates[number]
            )
            self.stages.append(stage)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.num_features))
        self.pos_drop = nn.Dropout(drop_rate)
        self.norm = nn.LayerNorm(self.num_features, eps=EPS)
        self.describe_pyramid(embed_dims, depths)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Linear layers, class token and positions truncated normal 0.02, biases zero; convolutions as torch's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for token in (self.cls_token, *(stage.pos_embed for stage in self.stages)):
            nn.init.trunc_normal_(token, std=0.02)

    def walk(
        self, images: Tensor, wanted: frozenset[int] = frozenset(), until: int | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        self.expect_size(images, self.patch_embed.img_size)
        kept, index, x = {}, 0, images
        for stage in self.stages:
            x, grid = (stage.downsample or self.patch_embed)(x)
            if stage is self.stages[-1]:
                x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
            x = self.pos_drop(x + stage.pos_embed)
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

    def block_shapes(self, image_size: tuple[int, int]) -> list[BlockShape]:
        """A stage whose map is smaller than the patches of its keys has no grid: (0, 0)."""
        shapes = []
        for stage, grid, depth in zip(self.stages, self.grids(image_size), self.depths, strict=True):
            fits = min(grid) >= stage.blocks[0].attn.reduction
            shapes += [BlockShape(grid if fits else (0, 0), stage.pos_embed.shape[-1])] * depth
        return shapes

    def windows(self) -> list[tuple[tuple[int, int, int], int]]:
        keys = [stage.blocks[0].attn.reduction for stage in self.stages]
        return [((patch, patch, 0), side) for patch, side in zip(PATCHES, keys, strict=True)]

    @staticmethod
    def grids(image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(height, width) of each stage's patch tokens."""
        found, sides = [], image_size
        for patch in PATCHES:
            sides = tuple(conv_side(side, patch, patch) for side in sides)
            found.append(sides)
        return found


class PatchEmbed(nn.Module):
    """Maps [N, C, H, W] -> (tokens [N, H W / p^2, D], their grid): one convolution and a norm."""

    def __init__(self, in_chans: int, dim: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
        maps = self.proj(maps)
        return self.norm(maps.flatten(2).transpose(1, 2)), tuple(maps.shape[-2:])


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        reduction: int,
        drop: float,
        attn_drop: float,
        drop_path: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = ReducedAttention(dim, num_heads, reduction, drop, attn_drop)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x), grid))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class ReducedAttention(nn.Module):
    """Every token asks; with ``reduction`` r > 1 only the map's r x r patches answer (spatial reduction attention).

    Tokens [N, L, C] on ``grid``; a class token may lead them where r is 1.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int, drop: float, attn_drop: float):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is no multiple of {num_heads} heads")
        self.num_heads, self.reduction = num_heads, reduction
        self.scale = (dim // num_heads) ** -0.5
        self.fused_attn = use_fused_attn()
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim, eps=EPS)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        query = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        source = x
        if self.reduction > 1:
            source = self.norm(self.sr(maps_of(x, grid)).flatten(2).transpose(1, 2))
        key, value = self.kv(source).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(query, key, value, scale=self.scale, drop=self.attn_drop, is_fused=self.fused_attn)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: PyramidVisionTransformer) -> dict[str, Tensor]:
    """Weights trained at another image size: learned positions are resized, as timm does for its own models."""
    grids, fitted = model.grids(model.patch_embed.img_size), dict(state_dict)
    for number, (stage, grid) in enumerate(zip(model.stages, grids, strict=True)):
        found = fitted.get(name := f"stages.{number}.pos_embed")
        if found is not None and found.shape[1] != stage.pos_embed.shape[1]:
            prefix = stage is model.stages[-1]
            fitted[name] = resample_abs_pos_embed(found, grid, num_prefix_tokens=int(prefix))
    return fitted


default_cfgs = generate_default_cfgs(
    {
        "pvt_tiny": {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


@register_model
def pvt_tiny(pretrained: bool = False, **kwargs) -> PyramidVisionTransformer:
    """PVT-Tiny (v1): two blocks in each of four stages."""
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    return build_model_with_cfg(
        PyramidVisionTransformer,
        "pvt_tiny",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=features,
        **kwargs,
    )
