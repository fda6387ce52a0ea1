"""LIFE, the local information enhancer (Akkaya et al. 2023, arXiv 2305.08551), for any plain ViT and for Swin V2.

In every block the linear layer that makes queries, keys and values also looks at a token's neighbours, at two scales.
As a timm model of its own it is ``life_vit``, whose ``base`` is the model that it goes into.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    swin_transformer_v2,
    vision_transformer,
)
from timm.models.swin_transformer_v2 import SwinTransformerV2, WindowAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fastlg.errors import UserError, brief
from fastlg.models.vits.token_model import maps_of

ENTRY, BASE = "life_vit", "deit_tiny_patch16_224"
SCALES, KERNELS = 3, (3, 5)  # of the second and third scale
SWITCHES = ("qkv_norm", "own_key")
FIX = "remove model.args.life"


class LifeQkv(nn.Module):
    """Tokens [N, P + H W, C] -> [q | k | v] [N, P + H W, 3 C], in place of nn.Linear(C, 3 C).

    One after the other, each scale sees what the one before made: S1 = linear(x), S2 and S3 a depthwise convolution
    over the patches' map and a linear layer, which the P prefix tokens take alone. A third of every scale's channels is
    its queries, keys and values: q = [q1 | q2 | q3], likewise k and v.

    prefix    class, distillation and register tokens. The authors' code has a class token only; more take the same way,
              each by itself.
    grid      (H, W); other numbers of tokens are taken as squares
    own_key   the prefix tokens' keys are [k1 | k2 | k3], too. Their published weights want [k1 | k1 | k1], which is
              what the released code computes, surely by a slip.
    qkv_norm  one LayerNorm (eps 1e-5) over the channels of q, of k and of v, for all tokens
    """

    def __init__(
        self, dim: int, *, grid: tuple[int, int], prefix: int = 0, qkv_norm: bool = False, own_key: bool = False
    ):
        super().__init__()
        self.grid, self.prefix, self.own_key = grid, prefix, own_key
        self.scale1 = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.scale1.weight, std=0.02)
        nn.init.zeros_(self.scale1.bias)
        self.scale2, self.scale3 = (NextScale(dim, kernel) for kernel in KERNELS)
        self.norm = nn.LayerNorm(dim) if qkv_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[1] - self.prefix
        grid = self.grid if count == self.grid[0] * self.grid[1] else (math.isqrt(count),) * 2
        first = self.scale1(x)
        second = self.scale2(first, grid, self.prefix)
        third = self.scale3(second, grid, self.prefix)
        made = [own.unflatten(2, (3, -1)) for own in (first, second, third)]  # [N, L, 3, C / 3]: q, k, v
        joined = torch.stack(made, dim=3).flatten(3)  # [N, L, 3, C]
        if self.prefix and not self.own_key:
            leading, patches = joined[:, : self.prefix], joined[:, self.prefix :]
            key = made[0][:, : self.prefix, 1].repeat(1, 1, SCALES)
            leading = torch.stack((leading[:, :, 0], key, leading[:, :, 2]), dim=2)
            joined = torch.cat((leading, patches), dim=1)
        return self.norm(joined).flatten(2)


class NextScale(nn.Module):
    """Tokens of one scale -> those of the next, [N, P + H W, C]: neighbours by channel, then channels by token."""

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)
        self.pointwise = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
        seen = self.depthwise(maps_of(x[:, prefix:], grid)).flatten(2).transpose(1, 2)
        if prefix:
            seen = torch.cat((x[:, :prefix], seen), dim=1)
        return F.linear(seen, self.pointwise.weight.flatten(1))


class LifeWindowAttention(WindowAttention):
    """Swin V2's, whose queries, keys and values are a LifeQkv's, of each window by itself: convolutions end at its
    border, and go across where a shifted window wraps around.

    ``q_bias`` and ``v_bias`` lie in the state dict, as the authors' do, and are never used: timm's forward asks for
    the attributes, which say that there are none.
    """

    q_bias = k_bias = v_bias = None


def has_life(model: nn.Module) -> bool:
    return any(isinstance(module, LifeQkv) for module in model.modules())


def add_life(model: nn.Module, name: str, life: bool | Mapping[str, Any]) -> nn.Module:
    """``model``, changed in place. ``life``: true, or which of ``SWITCHES`` are true. Raises UserError for a network
    that cannot take it, and for anything else than these switches."""
    switches = dict(life) if isinstance(life, Mapping) else {}
    if (not isinstance(life, Mapping) and life is not True) or not all(
        isinstance(own, bool) for own in switches.values()
    ):
        raise UserError(f"model.args.life is {brief(life)}; it is true, or {' and '.join(SWITCHES)} each true or false")
    for key in switches:
        if key not in SWITCHES:
            raise UserError(f"model.args.life.{brief(key)} is no switch of LIFE; it has {' and '.join(SWITCHES)}")
    match model:
        case VisionTransformer() if hasattr(model.patch_embed, "grid_size"):
            layers = [getattr(block, "attn", None) for block in model.blocks]
            kind, grid = Attention, tuple(model.patch_embed.grid_size)
        case SwinTransformerV2():
            layers, kind, grid = [block.attn for stage in model.layers for block in stage.blocks], WindowAttention, None
            if switches.get("qkv_norm") or switches.get("own_key"):
                raise UserError(f"model.args.life: {name} has no class token, which its switches are about; use true")
        case _:
            raise UserError(f"model.args.life: {name} is no plain ViT nor a Swin V2, which LIFE goes into; {FIX}")
    for layer in layers:
        if type(layer) is not kind or type(layer.qkv) is not nn.Linear:
            raise UserError(f"model.args.life: {name} makes queries, keys and values in a way of its own; {FIX}")
        dim = layer.qkv.in_features
        if dim % SCALES or layer.qkv.out_features != 3 * dim:
            raise UserError(f"model.args.life: {name} is {dim} wide; LIFE divides as many channels among three scales")
    for layer in layers:
        dim = layer.qkv.in_features
        if kind is Attention:
            layer.qkv = LifeQkv(dim, grid=grid, prefix=model.num_prefix_tokens, **switches)
        else:
            _into_window(layer, LifeQkv(dim, grid=tuple(layer.window_size)))
    return model


def _into_window(layer: WindowAttention, qkv: LifeQkv) -> None:
    layer.qkv = qkv
    biases = {name: layer._parameters.pop(name, None) for name in ("q_bias", "v_bias")}
    layer._buffers.pop("k_bias", None)
    layer.__class__ = LifeWindowAttention
    for name, bias in biases.items():
        if bias is not None:
            layer._buffers[name] = bias.detach()


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights trained at another image size, as timm fits them to the model that LIFE went into."""
    of_kind = swin_transformer_v2 if isinstance(model, SwinTransformerV2) else vision_transformer
    return of_kind.checkpoint_filter_fn(state_dict, model)


default_cfgs = generate_default_cfgs(
    {
        ENTRY: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


@register_model
def life_vit(
    pretrained: bool = False,
    base: str = BASE,
    life: bool | Mapping[str, Any] = True,
    **kwargs,
) -> nn.Module:
    """The timm model ``base`` with LIFE in each of its blocks."""

    def build(**given) -> nn.Module:
        return add_life(timm.create_model(base, **given), base, life)

    features = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(
        build, ENTRY, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=features, **kwargs
    )
