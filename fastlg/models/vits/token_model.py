"""What the students that timm lacks have in common: timm's interface on top of a walk over blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn

POOLS = ("", "token", "avg")


class BlockShape(NamedTuple):
    """Grid (height, width) and channels of one block's patch tokens."""

    grid: tuple[int, int]
    dim: int


class TokenModel(nn.Module):
    """A classifier on tokens whose last blocks carry one class token, with timm's methods.

    A subclass sets ``norm``, ``feature_info`` and ``feature_blocks``, the block that ends each entry of it, and writes
    three methods:

    walk(images [N, 3, H, W], wanted, until) -> (tokens [N, L, C], kept)
        Runs the blocks, to the one numbered ``until`` or all of them. ``kept`` holds the output of each block in
        ``wanted``, as the model holds it; the tokens returned are those of the last block that ran.
    block_shapes((H, W)) -> one BlockShape per block for images of that size
    windows() -> ((kernel, stride, padding), side) of each stage: what its tokens are made of, and in tokens the squares
        that its keys are made of
    """

    num_prefix_tokens = 1
    reference_names: tuple = ()  # from its names to the authors', as weights.py has them

    def __init__(self, num_features: int, num_classes: int, global_pool: str, drop_rate: float):
        super().__init__()
        self.num_features = self.head_hidden_size = num_features
        self.head_drop = nn.Dropout(drop_rate)
        self.feature_info: list[dict] = []
        self.feature_blocks: list[int] = []
        self.reset_classifier(num_classes, global_pool)

    def describe_pyramid(self, embed_dims: Sequence[int], depths: Sequence[int]) -> None:
        """Sets ``feature_info`` and ``feature_blocks`` of stages on maps of a quarter, an eighth, ... of the image."""
        self.feature_blocks = [sum(depths[: number + 1]) - 1 for number in range(len(depths))]
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**number, "module": f"stages.{number}"}
            for number, dim in enumerate(embed_dims)
        ]

    def walk(
        self, images: Tensor, wanted: frozenset[int] = frozenset(), until: int | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        raise NotImplementedError

    def block_shapes(self, image_size: tuple[int, int]) -> list[BlockShape]:
        raise NotImplementedError

    def windows(self) -> list[tuple[tuple[int, int, int], int]]:
        raise NotImplementedError

    def expect_size(self, images: Tensor, size: tuple[int, int]) -> None:
        """Raises ValueError for images that the positions do not fit."""
        if tuple(images.shape[-2:]) != size:
            found = tuple(images.shape[-2:])
            raise ValueError(f"images of {found} px, but {type(self).__name__} is built for {size} px (img_size)")

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """timm's layers for learning rates that decay by depth: stem, blocks or stages, head."""
        return {"stem": r"^cls_token|^pos_embed|^patch_embed", "blocks": r"^(?:blocks|stages)\.(\d+)"}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(("cls_token", "pos_embed"))}

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, freshly drawn head; ``num_classes`` 0 leaves none. Raises ValueError for a pool that is unknown."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool {global_pool!r}: one of {POOLS}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens of the last block behind the last norm, [N, 1 + H W, C], the class token first."""
        return self.norm(self.walk(images)[0])

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.head_drop(global_pool_nlc(tokens, self.global_pool, self.num_prefix_tokens))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Patch tokens of the entries of ``feature_info`` that ``indices`` choose, as timm's models give them.

        ``output_fmt`` "NCHW" (maps) or "NLC". ``norm`` passes those through the last norm that have its width. Returns
        the list alone, or with forward_features' output before it.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt {output_fmt!r}: NCHW or NLC")
        taken, last = feature_take_indices(len(self.feature_blocks), indices)
        blocks = [self.feature_blocks[index] for index in taken]
        shapes = self.block_shapes(tuple(images.shape[-2:]))
        until = self.feature_blocks[last] if stop_early and intermediates_only else None
        tokens, kept = self.walk(images, frozenset(blocks), until)
        outputs = []
        for block in blocks:
            (high, wide), own = shapes[block].grid, kept[block]
            own = self.norm(own) if norm and own.shape[-1] == self.num_features else own
            own = own[:, -high * wide :]
            outputs.append(own.transpose(1, 2).unflatten(2, (high, wide)) if output_fmt == "NCHW" else own)
        return outputs if intermediates_only else (self.norm(tokens), outputs)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the norm and head that features do not need; blocks stay, for ``stop_early`` skips them."""
        taken, _ = feature_take_indices(len(self.feature_blocks), indices)
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    drop: nn.Dropout,
    is_fused: bool,
    mask: Tensor | None = None,
) -> Tensor:
    """softmax(Q K' scale) V over [N, heads, L, C / heads], by torch's fused kernel or step by step.

    ``mask`` [L, keys], bool: whether a query sees a key; each sees one at least. Step by step, the matrix
    [N, heads, L, keys] passes through ``drop``, where a hook can see it.
    """
    if is_fused:
        rate = drop.p if drop.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate, scale=scale)
    scores = (query * scale) @ key.transpose(-2, -1)
    scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
    return drop(scores.softmax(dim=-1)) @ value


def maps_of(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch tokens [N, H W, C] as a map [N, C, H, W]: a view, its channels innermost in memory."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def conv_side(side: int, kernel: int, stride: int, padding: int = 0) -> int:
    """Length of a convolution's output along an axis of length ``side``."""
    return (side + 2 * padding - kernel) // stride + 1
