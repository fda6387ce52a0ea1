"""FCViT (Ma et al. 2022, arXiv 2212.12552): four stages of convolutions gated by a global context; no attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from fastlg.models.convolutions import ImageConv2d

GROUPS = 8  # of channels, each with a similarity of its own to the mean
SCALE = 1e-5  # first value of the layer scales
EPS = 1e-5  # of norms, and added to the deviation of similarities


class FCViT(nn.Module):
    """Takes images of any size. Lists have one entry per stage; what is listed as features is each stage's map.

    At 32 px the stages have 8, 4, 2 and 1 places a side, and kernels of 11 see beyond the border everywhere.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: tuple[int, ...] = (32, 64, 160, 320),
        depths: tuple[int, ...] = (3, 3, 5, 2),
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        if {len(own) for own in (embed_dims, depths, mlp_ratios)} != {4} or any(dim % GROUPS for dim in embed_dims):
            raise ValueError(
                f"embed_dims, depths and mlp_ratios have one entry for each of 4 stages, widths divide by {GROUPS}"
            )
        rates = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.feature_info, self.stages, before = [], nn.ModuleList(), in_chans
        for number, (dim, ratio) in enumerate(zip(embed_dims, mlp_ratios, strict=True)):
            convolution = nn.Conv2d(before, dim, 3, 2, 1) if number else ImageConv2d(before, dim, 7, 4, 3)
            blocks = [Block(dim, int(dim * ratio), rate) for rate in rates[number]]
            self.stages.append(nn.Sequential(convolution, nn.BatchNorm2d(dim), *blocks))
            self.feature_info.append({"num_chs": dim, "reduction": 4 * 2**number, "module": f"stages.{number}"})
            before = dim
        self.norm = nn.GroupNorm(1, self.num_features, eps=EPS)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Convolutions normal by their fan out, linear layers truncated normal 0.02, biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        return {"stem": r"^stages\.0\.[01]\.", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head; ``num_classes`` 0 leaves none. Raises ValueError for another pool than the mean."""
        if global_pool not in (None, "", "avg"):
            raise ValueError(f"global_pool {global_pool!r}: FCViT takes the mean, avg")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage's map behind the norm, [N, C, H, W]."""
        for stage in self.stages:
            images = stage(images)
        return self.norm(images)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.head_drop(maps.mean(dim=(2, 3)))
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
        """Maps of the stages that ``indices`` choose, as timm's models do; ``norm``: the last behind the norm."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r}: NCHW")
        taken, last = feature_take_indices(len(self.stages), indices)
        outputs = []
        for number, stage in enumerate(self.stages):
            if stop_early and intermediates_only and number > last:
                break
            images = stage(images)
            if number in taken:
                outputs.append(self.norm(images) if norm and number == len(self.stages) - 1 else images)
        return outputs if intermediates_only else (self.norm(images), outputs)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages, the norm and the head that features do not need."""
        taken, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken


class Block(nn.Module):
    """Tokens are mixed, then channels: each behind a norm over the whole map, scaled, and beside a shortcut."""

    def __init__(self, dim: int, hidden: int, drop_path: float):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, dim, eps=EPS), nn.GroupNorm(1, dim, eps=EPS)
        self.token_mixer = TokenMixer(dim)
        self.channel_mixer = nn.Sequential(
            nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.GELU(),
            nn.Conv2d(hidden, dim, 1),
        )  # fmt: skip
        self.scale1 = nn.Parameter(torch.full((dim,), SCALE))
        self.scale2 = nn.Parameter(torch.full((dim,), SCALE))
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.scale1[:, None, None] * self.token_mixer(self.norm1(x)))
        return x + self.drop_path2(self.scale2[:, None, None] * self.channel_mixer(self.norm2(x)))


class TokenMixer(nn.Sequential):
    """Twice: the global context is added, then each channel's neighbourhood of 11 x 11, then a narrow MLP."""

    def __init__(self, dim: int):
        super().__init__(*(layer for _ in range(2) for layer in self.layers(dim)))

    @staticmethod
    def layers(dim: int) -> list[nn.Module]:
        hidden = max(dim // GROUPS, 16)
        wide = nn.Conv2d(dim, dim, 11, padding=5, groups=dim)
        narrow = [nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.Conv2d(hidden, dim, 1), nn.GELU()]
        return [GlobalContext(dim), wide, *narrow]


class GlobalContext(nn.Module):
    """Maps [N, C, H, W], and added to them the image's context, weighted by how like its mean each place is.

    The likeness is one number per place and group of channels, standardised over all of an image's (in float32 at
    least), then scaled and shifted per group.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(GROUPS)), nn.Parameter(torch.zeros(GROUPS))
        self.squeeze = nn.Linear(dim, 2 * (dim // GROUPS))
        self.excite = nn.Linear(dim // GROUPS, dim)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3))
        context = self.excite(self.squeeze(mean).unflatten(1, (2, -1)).amax(dim=1))
        groups = x.unflatten(1, (GROUPS, -1))  # [N, G, C / G, H, W]
        wide = torch.promote_types(x.dtype, torch.float32)
        like = (groups * mean.unflatten(1, (GROUPS, -1))[..., None, None]).sum(dim=2, dtype=wide)
        like = like * groups.shape[2] ** -0.5
        deviation, centre = torch.std_mean(like, dim=(1, 2, 3), keepdim=True)
        like = (like - centre) / (deviation + EPS) * self.weight[:, None, None] + self.bias[:, None, None]
        gated = like.to(x.dtype)[:, :, None] * context.to(x.dtype).unflatten(1, (GROUPS, -1))[..., None, None]
        return x + gated.flatten(1, 2)


VARIANTS: dict[str, dict[str, Any]] = {
    "fcvit_tiny": {},
    "fcvit_b12": {"embed_dims": (64, 128, 320, 512), "depths": (2, 2, 6, 2)},
    "fcvit_b24": {"embed_dims": (64, 128, 320, 512), "depths": (4, 4, 12, 4)},
    "fcvit_b48": {"embed_dims": (64, 128, 320, 512), "depths": (8, 8, 24, 8)},
}
default_cfgs = generate_default_cfgs(
    {
        name: {"num_classes": 1000, "input_size": (3, 224, 224), "first_conv": "stages.0.0", "classifier": "head"}
        for name in VARIANTS
    }
)


def _create(variant: str, pretrained: bool, **arguments: Any) -> FCViT:
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    return build_model_with_cfg(FCViT, variant, pretrained, feature_cfg=features, **{**VARIANTS[variant], **arguments})


@register_model
def fcvit_tiny(pretrained: bool = False, **kwargs) -> FCViT:
    """13 blocks, widths 32 to 320."""
    return _create("fcvit_tiny", pretrained, **kwargs)


@register_model
def fcvit_b12(pretrained: bool = False, **kwargs) -> FCViT:
    """12 blocks, widths 64 to 512."""
    return _create("fcvit_b12", pretrained, **kwargs)


@register_model
def fcvit_b24(pretrained: bool = False, **kwargs) -> FCViT:
    """24 blocks, widths 64 to 512."""
    return _create("fcvit_b24", pretrained, **kwargs)


@register_model
def fcvit_b48(pretrained: bool = False, **kwargs) -> FCViT:
    """48 blocks, widths 64 to 512."""
    return _create("fcvit_b48", pretrained, **kwargs)
