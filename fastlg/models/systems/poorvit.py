"""PoorViT (Wu et al. 2025, arXiv 2501.06220): small ViTs of low-rank queries, keys or values, several class tokens.

As in the authors' code (the last of their own commits); what of the paper that code lacks could not be read.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath, Mlp, calculate_drop_path_rates, resample_abs_pos_embed, to_2tuple, use_fused_attn
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from fastlg.models.vits.token_model import BlockShape, TokenModel, attend, conv_side

EPS = 1e-6  # of every LayerNorm, as in the authors' code
LETTERS = "qkv"


class PoorViT(TokenModel):
    """Several class tokens lead the patches; the head reads them side by side, [N, n C].

    num_cls_token     n of them, each with a position of its own
    latent_mode       which of q, k and v are products of two matrices, by their letters: "q", "kv", ...
    latent_dim        rank of those products
    depth_token_only  blocks behind the others, in which class tokens alone ask; they have no number and are not guided
    sin_pos           positions are a table that is never trained; class tokens have zeros. The authors' is for 8 x 8
                      patches behind one class token; here for any grid and number
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "token",
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        num_cls_token: int = 1,
        latent_mode: str = "",
        latent_dim: int = 64,
        depth_token_only: int = 0,
        sin_pos: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        _expect_whole(1, depth=depth, num_heads=num_heads, num_cls_token=num_cls_token, latent_dim=latent_dim)
        _expect_whole(0, depth_token_only=depth_token_only)
        if not isinstance(sin_pos, bool):
            raise ValueError(f"sin_pos is {sin_pos!r}; it is true or false")
        _expect(latent_mode, embed_dim if sin_pos else 0)
        self.num_prefix_tokens = num_cls_token  # before the head is made, which is as wide as they are
        super().__init__(embed_dim, num_classes, global_pool, drop_rate)
        self.embed_dim, self.sin_pos = embed_dim, sin_pos
        self.patch_embed = PatchEmbed(to_2tuple(img_size), patch_size, in_chans, embed_dim)
        height, width = self.patch_embed.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, num_cls_token, embed_dim))
        positions = torch.zeros(1, num_cls_token + height * width, embed_dim)
        self.pos_embed = nn.Parameter(positions, requires_grad=not sin_pos)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = calculate_drop_path_rates(drop_path_rate, depth)
        heads = {"dim": embed_dim, "num_heads": num_heads, "qkv_bias": qkv_bias, "drop": drop_rate}
        heads["attn_drop"] = attn_drop_rate
        self.blocks = nn.ModuleList(
            Block(LatentAttention(**heads, mode=latent_mode, rank=latent_dim), embed_dim, mlp_ratio, drop_rate, rate)
            for rate in rates
        )
        self.blocks_token_only = nn.ModuleList(
            Block(TokenAttention(**heads, count=num_cls_token), embed_dim, mlp_ratio, drop_rate, rate)
            for rate in (rates[min(number, depth - 1)] for number in range(depth_token_only))
        )
        self.norm = nn.LayerNorm(embed_dim, eps=EPS)
        self.feature_blocks = list(range(depth))
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"blocks.{block}"}
            for block in self.feature_blocks
        ]
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Linear layers, class tokens and learned positions truncated normal 0.02, biases zero; patches as torch's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if self.sin_pos:
            self.pos_embed[0, self.num_prefix_tokens :] = row_column_table(self.patch_embed.grid_size, self.embed_dim)
        else:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As TokenModel's. Raises ValueError too for pooled patches beside several class tokens, which nobody reads."""
        pool, count = global_pool if global_pool is not None else self.global_pool, self.num_prefix_tokens
        if count > 1 and pool == "avg":
            raise ValueError(
                f"num_cls_token {count} class tokens are read by the head, but global_pool 'avg' reads patches; use "
                "global_pool token, or num_cls_token 1"
            )
        super().reset_classifier(num_classes, global_pool)
        self.head_hidden_size = self.num_features * (count if self.global_pool == "token" else 1)
        if num_classes:
            self.head = nn.Linear(self.head_hidden_size, num_classes)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool != "token":
            return super().forward_head(tokens, pre_logits)
        pooled = self.head_drop(tokens[:, : self.num_prefix_tokens].flatten(1))
        return pooled if pre_logits else self.head(pooled)

    def walk(
        self, images: Tensor, wanted: frozenset[int] = frozenset(), until: int | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        self.expect_size(images, self.patch_embed.img_size)
        kept, x = {}, self.patch_embed(images)
        x = self.pos_drop(torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in wanted:
                kept[index] = x
            if index == until:
                return x, kept
        for block in self.blocks_token_only:
            x = block(x)
        return x, kept

    def windows(self) -> list[tuple[tuple[int, int, int], int]]:
        return [((self.patch_embed.patch_size, self.patch_embed.patch_size, 0), 1)]

    def block_shapes(self, image_size: tuple[int, int]) -> list[BlockShape]:
        patch = self.patch_embed.patch_size
        grid = tuple(conv_side(side, patch, patch) for side in image_size)
        return [BlockShape(grid, self.embed_dim) for _ in self.blocks]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": r"^blocks\.(\d+)",
            "token_blocks": r"^blocks_token_only\.(\d+)",
        }


class PatchEmbed(nn.Module):
    """Images [N, 3, H, W] -> tokens [N, H W / p^2, D]: one convolution, no norm."""

    def __init__(self, img_size: tuple[int, int], patch_size: int, in_chans: int, dim: int):
        super().__init__()
        self.img_size, self.patch_size = img_size, patch_size
        self.grid_size = tuple(conv_side(side, patch_size, patch_size) for side in img_size)
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut."""

    def __init__(self, attention: nn.Module, dim: int, mlp_ratio: float, drop: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = attention
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class LatentAttention(nn.Module):
    """Attention whose queries, keys or values, by the letters of ``mode``, are W_q(q(x)): down to ``rank``, then up.

    No norm, activation or latent that they share lies between the two; the first has no bias.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool,
        drop: float,
        attn_drop: float,
        mode: str = "",
        rank: int = 64,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is no multiple of {num_heads} heads")
        self.num_heads, self.mode = num_heads, mode
        self.scale = (dim // num_heads) ** -0.5
        self.fused_attn = use_fused_attn()
        for letter in LETTERS:
            if letter in mode:
                setattr(self, letter, nn.Linear(dim, rank, bias=False))
                setattr(self, f"W_{letter}", nn.Linear(rank, dim, bias=qkv_bias))
            else:
                setattr(self, letter, nn.Linear(dim, dim, bias=qkv_bias))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def project(self, letter: str, x: Tensor) -> Tensor:
        """Tokens [N, L, C] -> queries, keys or values [N, heads, L, C / heads]."""
        made = getattr(self, letter)(x)
        made = getattr(self, f"W_{letter}")(made) if letter in self.mode else made
        return made.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def mix(self, asking: Tensor, x: Tensor) -> Tensor:
        """What tokens ``asking`` [N, A, C] take of the tokens ``x`` [N, L, C]: [N, A, C]."""
        query, key, value = self.project("q", asking), self.project("k", x), self.project("v", x)
        mixed = attend(query, key, value, scale=self.scale, drop=self.attn_drop, is_fused=self.fused_attn)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, x)


class TokenAttention(LatentAttention):
    """The first ``count`` tokens ask all; the others pass through a linear layer."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, drop: float, attn_drop: float, count: int):
        super().__init__(dim, num_heads, qkv_bias, drop, attn_drop)
        self.count = count
        self.projO = nn.Linear(dim, dim)  # its name in the authors' checkpoints

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.mix(x[:, : self.count], x), self.projO(x[:, self.count :])), dim=1)


def row_column_table(grid: tuple[int, int], dim: int) -> Tensor:
    """Positions [H W, dim]: [sin(y w), cos(y w), sin(x w), cos(x w)] of each patch, w_i = 10000^(-4 i / dim)."""
    height, width = grid
    rates = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows = torch.arange(height).repeat_interleave(width)[:, None] * rates
    columns = torch.arange(width).repeat(height)[:, None] * rates
    return torch.cat((rows.sin(), rows.cos(), columns.sin(), columns.cos()), dim=1).float()


def _expect_whole(least: int, **counts: int) -> None:
    for name, value in counts.items():
        if type(value) is not int or value < least:
            raise ValueError(f"{name} is {value!r}; it is a whole number, {least} or more")


def _expect(latent_mode: str, dim_of_table: int) -> None:
    if not isinstance(latent_mode, str) or any(
        latent_mode.count(letter) > (letter in LETTERS) for letter in latent_mode
    ):
        raise ValueError(f"latent_mode {latent_mode!r}; give some of the letters of 'qkv', each once, or ''")
    if dim_of_table % 4:
        raise ValueError(f"sin_pos needs an embed_dim that 4 divides, not {dim_of_table}")


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: PoorViT) -> dict[str, Tensor]:
    """Weights trained at another image size: learned positions are resized, the table is the model's own."""
    fitted, positions = dict(state_dict), state_dict.get("pos_embed")
    if positions is not None and model.sin_pos:
        fitted["pos_embed"] = model.pos_embed.detach()
    elif positions is not None and positions.shape[1] != model.pos_embed.shape[1]:
        grid = list(model.patch_embed.grid_size)
        fitted["pos_embed"] = resample_abs_pos_embed(positions, grid, num_prefix_tokens=model.num_prefix_tokens)
    return fitted


default_cfgs = generate_default_cfgs(
    {
        "poorvit": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


@register_model
def poorvit(pretrained: bool = False, **kwargs) -> PoorViT:
    """PoorViT: 12 blocks of width 192 and 12 heads, the authors' default; an earlier commit of theirs has depth 9."""
    features = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(
        PoorViT, "poorvit", pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=features, **kwargs
    )
