"""T2T-ViT (Yuan et al. 2021): tokens made of overlapping patches in three steps, with performers between them."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, Mlp, calculate_drop_path_rates, to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fastlg.models.vits.token_model import BlockShape, TokenModel, conv_side, maps_of

SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding of the three soft splits
PERFORMER_EPS = 1e-8  # of the reference code: keeps the normaliser off zero


class T2TViT(TokenModel):
    """Token-to-token module, class token, fixed sin-cos positions, plain transformer blocks.

    Blocks, and so guided blocks, are those of the trunk; the two performers have no number. Their random features and
    the positions are buffers: saved with the weights, never trained.
    """

    reference_names = (
        (r"^patch_embed\.performers\.", "t2t_module.attention."),
        (r"^patch_embed\.proj\.", "t2t_module.projection."),
        (r"^blocks\.", "layers."),
        (r"\.attn\.kqv\.", ".attn.qkv_transform."),
        (r"\.attn\.features$", ".attn.w"),
        (r"\.attn\.qkv\.", ".attn.qkv_transform."),
        (r"\.attn\.proj\.", ".attn.projection."),
    )

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 256,
        depth: int = 7,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        token_dim: int = 64,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__(embed_dim, num_classes, global_pool, drop_rate)
        self.patch_embed = TokensToToken(to_2tuple(img_size), in_chans, token_dim, embed_dim)
        self.embed_dim = embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("pos_embed", sinusoids(self.patch_embed.num_patches + 1, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                proj_drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=rate,
                norm_layer=partial(LayerNorm, eps=1e-6),
            )
            for rate in calculate_drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.feature_blocks = list(range(depth))
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": 16, "module": f"blocks.{block}"} for block in self.feature_blocks
        ]
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Linear layers and the class token normal 0.02, not truncated; biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=0.02)

    def walk(
        self, images: Tensor, wanted: frozenset[int] = frozenset(), until: int | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        self.expect_size(images, self.patch_embed.img_size)
        kept = {}
        x = self.patch_embed(images)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        x = self.pos_drop(x)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in wanted:
                kept[index] = x
            if index == until:
                break
        return x, kept

    def windows(self) -> list[tuple[tuple[int, int, int], int]]:
        return [(split, 1) for split in SPLITS]

    def block_shapes(self, image_size: tuple[int, int]) -> list[BlockShape]:
        grid = self.patch_embed.grids(image_size)[-1]
        return [BlockShape(grid, self.embed_dim) for _ in self.blocks]


class TokensToToken(nn.Module):
    """Images [N, 3, H, W] -> tokens [N, H W / 256, D]: unfold, performer, unfold, performer, unfold, project."""

    def __init__(self, img_size: tuple[int, int], in_chans: int, token_dim: int, embed_dim: int):
        super().__init__()
        self.img_size = img_size
        self.grid_size = self.grids(img_size)[-1]
        self.num_patches = math.prod(self.grid_size)
        areas = [kernel * kernel for kernel, _, _ in SPLITS]
        widths = [in_chans * areas[0], token_dim * areas[1]]
        self.performers = nn.ModuleList(Performer(width, token_dim) for width in widths)
        self.proj = nn.Linear(token_dim * areas[2], embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        grids, maps = self.grids(self.img_size), images
        for split, grid, performer in zip(SPLITS, grids, (*self.performers, None), strict=True):
            tokens = soft_split(maps, *split)
            if performer is None:
                return self.proj(tokens)
            maps = maps_of(performer(tokens), grid)

    @staticmethod
    def grids(image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(height, width) behind each soft split."""
        found, sides = [], image_size
        for split in SPLITS:
            sides = tuple(conv_side(side, *split) for side in sides)
            found.append(sides)
        return found


class Performer(nn.Module):
    """Attention of linear cost by positive random features (Choromanski et al. 2021), and an MLP.

    Tokens [N, L, dim] -> [N, L, out_dim]. One head. There is no attention matrix: of queries and keys only the
    features exp(w x - |x|^2 / 2) / sqrt(m) are made. The values, not the input, are what the attention is added to.
    """

    def __init__(self, dim: int, out_dim: int, ratio: float = 0.5):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RandomFeatureAttention(dim, out_dim, int(out_dim * ratio))
        self.norm2 = nn.LayerNorm(out_dim, eps=1e-6)
        self.mlp = Mlp(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class RandomFeatureAttention(nn.Module):
    """The performer's attention; ``features`` [m, out_dim] are orthogonal rows of length sqrt(m), drawn once."""

    def __init__(self, dim: int, out_dim: int, features: int):
        super().__init__()
        self.kqv = nn.Linear(dim, 3 * out_dim)  # in this order, as in the reference code
        self.proj = nn.Linear(out_dim, out_dim)
        drawn = nn.init.orthogonal_(torch.randn(features, out_dim)) * math.sqrt(features)
        self.register_buffer("features", drawn)

    def forward(self, x: Tensor) -> Tensor:
        key, query, value = self.kqv(x).chunk(3, dim=-1)
        with torch.autocast(x.device.type, enabled=False):  # exponentials and their sums, as in the reference code
            mixed = self.mix(_wide(query), _wide(key), _wide(value))
        return value + self.proj(mixed.to(value.dtype))

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[N, L, C] each, float32 or float64 -> sum_j f(q_i) f(k_j) v_j / sum_j f(q_i) f(k_j)."""
        query, key = self.positive(query), self.positive(key)
        total = query @ key.sum(dim=1).unsqueeze(-1)  # [N, L, 1]
        return query @ (key.transpose(1, 2) @ value) / (total + PERFORMER_EPS)

    def positive(self, x: Tensor) -> Tensor:
        """Features [N, L, m] of queries or keys."""
        features = self.features.to(x.dtype)
        exponent = F.linear(x, features) - x.square().sum(dim=-1, keepdim=True) / 2
        return exponent.exp() / math.sqrt(len(features))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def soft_split(maps: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Overlapping patches of [N, C, H, W] as tokens [N, H' W', C k k], as nn.Unfold orders them.

    Views and one copy, tokens dense in memory; nn.Unfold launches a kernel per image and hands out channels first.
    """
    maps = F.pad(maps, (padding,) * 4)
    patches = maps.unfold(2, kernel, stride).unfold(3, kernel, stride)  # [N, C, H', W', k, k]
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def sinusoids(length: int, dim: int) -> Tensor:
    """Positions [1, length, dim]: sines at even and cosines at odd channels, made in float64 (Vaswani et al. 2017)."""
    channels = torch.arange(dim, dtype=torch.float64)
    rates = 10_000.0 ** (-2 * (channels // 2) / dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos()).float()[None]


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: T2TViT) -> dict[str, Tensor]:
    """Weights trained at another image size: positions are a table, so the model's own take their place."""
    return {**state_dict, "pos_embed": model.pos_embed} if "pos_embed" in state_dict else dict(state_dict)


def _create(variant: str, pretrained: bool, **arguments) -> T2TViT:
    features = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(
        T2TViT, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=features, **arguments
    )


default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "classifier": "head",
        }
        for name in ("t2t_vit_7", "t2t_vit_14")
    }
)


@register_model
def t2t_vit_7(pretrained: bool = False, **kwargs) -> T2TViT:
    """T2T-ViT-7: 7 blocks of width 256, 4 heads."""
    return _create("t2t_vit_7", pretrained, **{"embed_dim": 256, "depth": 7, "num_heads": 4, **kwargs})


@register_model
def t2t_vit_14(pretrained: bool = False, **kwargs) -> T2TViT:
    """T2T-ViT-14: 14 blocks of width 384, 6 heads."""
    own = {"embed_dim": 384, "depth": 14, "num_heads": 6, "mlp_ratio": 3.0}
    return _create("t2t_vit_14", pretrained, **{**own, **kwargs})
