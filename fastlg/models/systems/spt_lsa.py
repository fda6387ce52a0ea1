"""Shifted patch tokenization and locality self-attention (Lee et al. 2021, arXiv 2112.13492), each alone or together.

Both go into any plain ViT, as ``model.args.spt`` and ``model.args.lsa``; ``sl_vit_*`` are the authors' own ViTs with
them. As a timm model of its own the former is ``vit_spt_lsa``, whose ``base`` is the model that they go into.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, DropPath, Format, LayerNorm, PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from fastlg.errors import UserError, brief
from fastlg.models.vits.token_model import attend

ENTRY = "vit_spt_lsa"
PARTS = ("spt", "lsa")
EPS = 1e-5  # of every LayerNorm of the authors', torch's own
_SYSTEM = (
    (r"^pos_embed$", "pos_embedding"),
    (r"^blocks\.(\d+)\.norm1\.", r"transformer.layers.\1.0.norm."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"transformer.layers.\1.0.fn.to_qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"transformer.layers.\1.0.fn.to_out.0."),
    (r"^blocks\.(\d+)\.attn\.temperature$", r"transformer.layers.\1.0.fn.scale"),
    (r"^blocks\.(\d+)\.norm2\.", r"transformer.layers.\1.1.norm."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"transformer.layers.\1.1.fn.net.0."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"transformer.layers.\1.1.fn.net.3."),
    (r"^norm\.", "mlp_head.0."),
    (r"^head\.", "mlp_head.1."),
    (r"^patch_embed\.before\.", "to_patch_embedding.merging.1."),
)
_MERGE = {True: "to_patch_embedding.merging.2.", False: "to_patch_embedding.1."}  # with and without shifted copies


class MergedPatches(PatchEmbed):
    """Images [N, 3, H, W] -> patch tokens [N, H W / p^2, D], each the product of a matrix with a patch's numbers.

    Their order is that of row, column, channel. ``is_shifted``: beside the image itself lie four copies of it, moved by
    half a patch along both diagonals, zeros where they end; a LayerNorm comes before the product.
    """

    def __init__(self, *, is_shifted: bool, in_chans: int = 3, embed_dim: int = 768, bias: bool = True, **more: Any):
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, bias=bias, **more)
        del self.proj
        self.is_shifted = is_shifted
        numbers = self.patch_size[0] * self.patch_size[1] * in_chans * (5 if is_shifted else 1)
        self.before = nn.LayerNorm(numbers, eps=EPS) if is_shifted else nn.Identity()
        self.merge = nn.Linear(numbers, embed_dim, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        size, (high, wide) = tuple(images.shape[-2:]), self.patch_size
        if self.strict_img_size and size != tuple(self.img_size):
            raise ValueError(f"images of {size} px, but the patches are made for {tuple(self.img_size)} px")
        if size[0] % high or size[1] % wide:
            raise ValueError(f"images of {size} px are no multiple of their patches of {(high, wide)} px")
        images = with_shifted_copies(images, self.patch_size) if self.is_shifted else images
        patches = images.unflatten(3, (-1, wide)).unflatten(2, (-1, high)).permute(0, 2, 4, 3, 5, 1)
        tokens = self.norm(self.merge(self.before(patches.flatten(3))))  # [N, H / p, W / p, D]
        return tokens.flatten(1, 2) if self.flatten and self.output_fmt == Format.NCHW else tokens


def with_shifted_copies(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """[N, C, H, W] -> [N, 5 C, H, W]: the image, and what lies half a patch up and left, up and right, down and left,
    down and right of each pixel; zeros, the mean colour of normalised images, where that is beyond the border."""
    down, across = patch[0] // 2, patch[1] // 2
    high, wide = images.shape[-2:]
    padded = F.pad(images, (across, across, down, down))
    corners = [(top, left) for top in (0, 2 * down) for left in (0, 2 * across)]
    return torch.cat([images, *(padded[:, :, top : top + high, left : left + wide] for top, left in corners)], dim=1)


class LocalityAttention(Attention):
    """Self-attention in which no token sees itself, and a factor per head, ``temperature``, is learned.

    It multiplies the products of queries and keys, begins at head_dim ** -0.5, and may become negative, as in the
    authors' code; the paper divides by its inverse. What is masked is minus infinity to the softmax in every precision;
    the authors' constant of -987654321 is beyond half precision.
    """

    def __init__(self, *arguments: Any, **more: Any):
        super().__init__(*arguments, **more)
        self.localise()

    def localise(self) -> None:
        """What an Attention has to be given to become one."""
        self.temperature = nn.Parameter(torch.full((self.num_heads,), float(self.scale)))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise ValueError("locality self-attention has a mask of its own, and takes no other")
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        query = self.q_norm(query) * self.temperature.to(query.dtype)[:, None, None]
        others = ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        own = {"scale": 1.0, "drop": self.attn_drop, "is_fused": self.fused_attn, "mask": others}
        mixed = attend(query, self.k_norm(key), value, **own)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class SmallSetViT(VisionTransformer):
    """The authors' ViT for small image sets: 9 blocks, no biases of queries, keys and values, one rate of dropped paths
    for all blocks. ``spt`` and ``lsa`` switch either part."""

    def __init__(self, *, spt: bool = True, lsa: bool = True, drop_path_rate: float = 0.0, **more: Any):
        for key, value in (("spt", spt), ("lsa", lsa)):
            if not isinstance(value, bool):
                raise UserError(f"model.args.{key} is {brief(value)}; it is true or false")
        super().__init__(
            embed_layer=partial(MergedPatches, is_shifted=spt),
            attn_layer=LocalityAttention if lsa else Attention,
            norm_layer=partial(LayerNorm, eps=EPS),
            qkv_bias=False,
            weight_init="skip",
            **more,
        )
        self.reference_names = (*_SYSTEM, (r"^patch_embed\.merge\.", _MERGE[spt]))
        for block in self.blocks if drop_path_rate > 0 else ():
            block.drop_path1, block.drop_path2 = DropPath(drop_path_rate), DropPath(drop_path_rate)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, *_: Any, **__: Any) -> None:
        """Linear layers Xavier normal, biases zero; class token and positions of deviation 1, as the authors'."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.pos_embed):
            nn.init.normal_(token)


def fitted_weights(state_dict: dict[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    """Weights trained at another image size, as timm fits them; and those of RGB images for a model of grey ones, which
    then computes what the weights' own makes of three equal channels."""
    given, own = state_dict.get("patch_embed.merge.weight"), getattr(model.patch_embed, "merge", None)
    if given is not None and own is not None and given.shape[1] == 3 * own.in_features:
        state_dict = {**state_dict, **_grey(state_dict, own)}
    return checkpoint_filter_fn(state_dict, model)


def _grey(state_dict: dict[str, Tensor], own: nn.Linear) -> dict[str, Tensor]:
    """The patches' layers for one channel: three equal ones have the mean and deviation of one, so that the LayerNorm's
    factors and offsets can go into the product behind it. Raises ValueError where that has no offset."""
    weight, names = state_dict["patch_embed.merge.weight"], ("weight", "bias")
    before = [state_dict.get(f"patch_embed.before.{name}") for name in names]
    scaled = weight if before[0] is None else weight * before[0]
    found = {"patch_embed.merge.weight": scaled.unflatten(1, (-1, 3)).sum(dim=2)}
    if before[0] is not None:
        if own.bias is None:
            raise ValueError(
                "shifted patches without a bias have no weights for in_chans=1; repeat the channel instead"
            )
        ones = torch.ones(own.in_features, dtype=weight.dtype)
        found |= {"patch_embed.before.weight": ones, "patch_embed.before.bias": torch.zeros_like(ones)}
        found["patch_embed.merge.bias"] = state_dict["patch_embed.merge.bias"] + weight @ before[1]
    return found


def has_spt_or_lsa(model: nn.Module) -> bool:
    return any(isinstance(module, (MergedPatches, LocalityAttention)) for module in model.modules())


def add_spt_lsa(model: nn.Module, name: str, *, spt: Any = False, lsa: Any = False) -> nn.Module:
    """``model``, changed in place. Raises UserError for a network that cannot take them, and for other values than true
    and false."""
    for key, value in (("spt", spt), ("lsa", lsa)):
        if not isinstance(value, bool):
            raise UserError(f"model.args.{key} is {brief(value)}; it is true or false")
        if value and not isinstance(model, VisionTransformer):
            raise UserError(f"model.args.{key}: {name} is no plain ViT; use a vit_* or deit_*, or remove it")
    if lsa:
        _localise(model, name)
    if spt:
        _shift(model, name)
    return model


def _localise(model: VisionTransformer, name: str) -> None:
    layers = [getattr(block, "attn", None) for block in model.blocks]
    for layer in layers:
        plain = type(layer) is Attention and getattr(layer, "gate", None) is None
        if not plain or not isinstance(getattr(layer, "norm", None), (nn.Identity, type(None))):
            raise UserError(f"model.args.lsa: {name} has an attention of its own kind; use another vit_*, or remove it")
    if model.patch_embed.num_patches + model.num_prefix_tokens < 2:
        raise UserError(f"model.args.lsa: {name} has one token at this image size, which would see nothing; remove it")
    for layer in layers:
        layer.__class__ = LocalityAttention
        layer.localise()


def _shift(model: VisionTransformer, name: str) -> None:
    embed = model.patch_embed
    if type(embed) is not PatchEmbed or not isinstance(embed.norm, nn.Identity) or min(embed.patch_size) < 2:
        raise UserError(
            f"model.args.spt: {name} makes its tokens in a way of its own, or of single pixels; use another vit_* or "
            "patch_size, or remove it"
        )
    model.patch_embed = MergedPatches(
        is_shifted=True,
        img_size=embed.img_size,
        patch_size=embed.patch_size,
        in_chans=embed.proj.in_channels,
        embed_dim=embed.proj.out_channels,
        bias=embed.proj.bias is not None,
        flatten=embed.flatten,
        output_fmt=None if embed.flatten else embed.output_fmt,
        strict_img_size=embed.strict_img_size,
        dynamic_img_pad=embed.dynamic_img_pad,
    )
    nn.init.trunc_normal_(model.patch_embed.merge.weight, std=0.02)
    if model.patch_embed.merge.bias is not None:
        nn.init.zeros_(model.patch_embed.merge.bias)


OWN = {"sl_vit_patch4_32": (32, 4), "sl_vit_patch8_64": (64, 8)}  # name -> (image size, patch size) in px
_COMMON = {"num_classes": 1000, "fixed_input_size": True, "classifier": "head"}
default_cfgs = generate_default_cfgs(
    {
        ENTRY: {**_COMMON, "input_size": (3, 224, 224)},
        **{name: {**_COMMON, "input_size": (3, size, size)} for name, (size, _) in OWN.items()},
    }
)


@register_model
def vit_spt_lsa(
    pretrained: bool = False, base: str = "deit_tiny_patch16_224", spt: bool = False, lsa: bool = False, **kwargs
) -> VisionTransformer:
    """The timm model ``base`` with shifted patches, locality self-attention, or both."""

    def build(**given: Any) -> nn.Module:
        return add_spt_lsa(timm.create_model(base, **given), base, spt=spt, lsa=lsa)

    features = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(
        build, ENTRY, pretrained, pretrained_filter_fn=fitted_weights, feature_cfg=features, **kwargs
    )


def _create(variant: str, pretrained: bool, **arguments: Any) -> SmallSetViT:
    size, patch = OWN[variant]
    own = {"img_size": size, "patch_size": patch, "embed_dim": 192, "depth": 9, "num_heads": 12, "mlp_ratio": 2}
    features = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(
        SmallSetViT,
        variant,
        pretrained,
        pretrained_filter_fn=fitted_weights,
        feature_cfg=features,
        **{**own, **arguments},
    )


@register_model
def sl_vit_patch4_32(pretrained: bool = False, **kwargs) -> SmallSetViT:
    """SL-ViT for 32 px: an 8 x 8 grid."""
    return _create("sl_vit_patch4_32", pretrained, **kwargs)


@register_model
def sl_vit_patch8_64(pretrained: bool = False, **kwargs) -> SmallSetViT:
    """SL-ViT for 64 px: an 8 x 8 grid."""
    return _create("sl_vit_patch8_64", pretrained, **kwargs)
