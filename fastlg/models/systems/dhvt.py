"""DHVT (Lu et al. 2022, arXiv 2210.05958): overlapping patches, convolutions in the MLP, and tokens of the heads."""

from __future__ import annotations

import torch
from timm.layers import DropPath, calculate_drop_path_rates, use_fused_attn
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from fastlg.models.convolutions import ImageConv2d
from fastlg.models.vits.token_model import BlockShape, TokenModel, attend, conv_side, maps_of

EPS = 1e-6  # of every LayerNorm but the head tokens', as in the authors' code
WINDOW = (3, 2, 1)  # kernel, stride, padding of each step of the patch embedding
CHANNELS = {2: (1,), 4: (2, 1), 16: (8, 4, 2, 1)}  # patch size -> by what each step's channels divide the width


class DynamicHybridViT(TokenModel):
    """Takes images of any size; there are no positions. A class token leads the patch tokens from the first block on.

    Head tokens are made and used up inside each block's attention: what a block puts out, and a teacher guides, holds
    none. BatchNorm in the patch embedding and in every MLP makes the images of a batch depend on each other. With
    several ranks all of its statistics are of all ranks; the authors' code does so in the patch embedding alone.
    """

    reference_names = ((r"\.attn\.head_embed$", ".attn.pos_embed"),)
    takes_any_size = True

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        if patch_size not in CHANNELS:
            raise ValueError(f"patch_size {patch_size!r}: one of {tuple(CHANNELS)}")
        super().__init__(embed_dim, num_classes, global_pool, drop_rate)
        self.embed_dim = embed_dim
        self.patch_embed = OverlappingPatches(in_chans, embed_dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, drop_rate, attn_drop_rate, rate)
            for rate in calculate_drop_path_rates(drop_path_rate, depth)
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
        """Linear layers, class token and heads' embeddings truncated normal 0.02; convolutions as torch's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, HeadTokenAttention):
                nn.init.trunc_normal_(module.head_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def walk(
        self, images: Tensor, wanted: frozenset[int] = frozenset(), until: int | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        kept = {}
        maps = self.patch_embed(images)
        grid = tuple(maps.shape[-2:])
        x = torch.cat((self.cls_token.expand(len(images), -1, -1), maps.flatten(2).transpose(1, 2)), dim=1)
        for index, block in enumerate(self.blocks):
            x = block(x, grid)
            if index in wanted:
                kept[index] = x
            if index == until:
                break
        return x, kept

    def windows(self) -> list[tuple[tuple[int, int, int], int]]:
        return [(WINDOW, 1)] * self.patch_embed.steps

    def block_shapes(self, image_size: tuple[int, int]) -> list[BlockShape]:
        sides = image_size
        for _ in range(self.patch_embed.steps):
            sides = tuple(conv_side(side, *WINDOW) for side in sides)
        return [BlockShape(sides, self.embed_dim) for _ in self.blocks]


class OverlappingPatches(nn.Module):
    """Images [N, 3, H, W] -> maps [N, D, H / p, W / p]: steps of a convolution of stride 2 and a BatchNorm each.

    A GELU lies between the steps, and behind a lone one (p = 2), as in the authors' code; the paper's equations have
    one behind every step.
    """

    def __init__(self, in_chans: int, dim: int, patch: int):
        super().__init__()
        widths = [dim // share for share in CHANNELS[patch]]
        self.steps = len(widths)
        layers: list[nn.Module] = []
        for before, width in zip((in_chans, *widths), widths, strict=False):
            convolution = ImageConv2d if before < ImageConv2d.CHANNELS else nn.Conv2d
            layers += [nn.Sequential(convolution(before, width, *WINDOW, bias=False), nn.BatchNorm2d(width)), nn.GELU()]
        self.proj = nn.Sequential(*layers[: None if self.steps == 1 else -1])
        self.pre_affine = Affine(in_chans)
        self.post_affine = Affine(dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.post_affine(self.proj(self.pre_affine(images)))


class Affine(nn.Module):
    """Each channel of a map is scaled and shifted."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.alpha + self.beta


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop: float, attn_drop: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = HeadTokenAttention(dim, num_heads, drop, attn_drop)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = AggregatingMlp(dim, int(dim * mlp_ratio))
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x), grid))


class HeadTokenAttention(nn.Module):
    """Self-attention of tokens [N, 1 + P, C] and of one token per head, which joins behind them for this layer alone.

    A head's token is made of the mean of all tokens' channels of that head. What the head tokens attend to is added,
    as their mean, to the class token; they themselves are dropped.
    """

    def __init__(self, dim: int, num_heads: int, drop: float, attn_drop: float):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is no multiple of {num_heads} heads")
        width = dim // num_heads
        self.num_heads, self.scale = num_heads, width**-0.5
        self.fused_attn = use_fused_attn()
        self.ht_proj = nn.Linear(width, dim)
        self.ht_norm = nn.LayerNorm(width)  # eps 1e-5, unlike the others
        self.act = nn.GELU()
        self.head_embed = nn.Parameter(torch.zeros(1, num_heads, dim))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[1]
        x = torch.cat((x, self.head_tokens(x)), dim=1)
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(query, key, value, scale=self.scale, drop=self.attn_drop, is_fused=self.fused_attn)
        x = self.proj(mixed.transpose(1, 2).flatten(2))
        cls, patches, heads = x.tensor_split((1, count), dim=1)
        return self.proj_drop(torch.cat((cls + heads.mean(dim=1, keepdim=True), patches), dim=1))

    def head_tokens(self, x: Tensor) -> Tensor:
        """[N, L, C] -> [N, heads, C]."""
        means = x.mean(dim=1).unflatten(1, (self.num_heads, -1))
        pieces = self.ht_norm(self.ht_proj(means).unflatten(2, (self.num_heads, -1)))
        return self.act(pieces).flatten(2) + self.head_embed

    def among_tokens(self, matrix: Tensor) -> Tensor:
        """The attention [N, heads, L + heads, L + heads] as one from tokens to tokens, [N, heads, L, L], rows sum to 1.

        A head token is made of all tokens alike, and what goes to it goes to these. The class token is given the mean
        of its own row and of the head tokens', for that many parts are added in its output.
        """
        count = matrix.shape[-1] - self.num_heads
        own, to_heads = matrix.split((count, self.num_heads), dim=-1)
        rows = own + to_heads.sum(dim=-1, keepdim=True) / count
        cls, patches, heads = rows.tensor_split((1, count), dim=-2)
        return torch.cat(((cls + heads.mean(dim=-2, keepdim=True)) / 2, patches), dim=-2)


class AggregatingMlp(nn.Module):
    """DAFF: patch tokens pass three convolutions and a BatchNorm behind each; the class token is scaled by their mean.

    Tokens [N, 1 + H W, C] on ``grid``.
    """

    def __init__(self, dim: int, hidden: int, reduction: int = 4):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.conv3 = nn.Conv2d(hidden, dim, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(hidden), nn.BatchNorm2d(hidden), nn.BatchNorm2d(dim)
        self.act = nn.GELU()
        self.compress = nn.Linear(dim, dim // reduction)
        self.excitation = nn.Linear(dim // reduction, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        cls, patches = x.tensor_split((1,), dim=1)
        maps = self.act(self.bn1(self.conv1(maps_of(patches, grid))))
        maps = maps + self.act(self.bn2(self.conv2(maps)))
        patches = self.bn3(self.conv3(maps)).flatten(2).transpose(1, 2)
        gate = self.excitation(self.act(self.compress(patches.mean(dim=1, keepdim=True))))
        return torch.cat((cls * gate, patches), dim=1)


VARIANTS = {  # name -> (image size in px, patch size, width, heads), as the authors registered and counted them
    "dhvt_tiny_cifar_patch4": (32, 4, 192, 4),
    "dhvt_tiny_cifar_patch2": (32, 2, 192, 4),
    "dhvt_small_cifar_patch4": (32, 4, 384, 8),
    "dhvt_small_cifar_patch2": (32, 2, 384, 8),
    "dhvt_tiny_domain_patch16": (224, 16, 192, 4),
    "dhvt_small_domain_patch16": (224, 16, 384, 6),
    "dhvt_tiny_imagenet_patch16": (224, 16, 192, 3),
    "dhvt_small_imagenet_patch16": (224, 16, 384, 6),
}
default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, size, size),
            "first_conv": "patch_embed.proj.0.0",
            "classifier": "head",
        }
        for name, (size, *_) in VARIANTS.items()
    }
)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: DynamicHybridViT) -> dict[str, Tensor]:
    """Raises ValueError for images of other channels: the affine layer before the patches has one number for each, and
    no other numbers do the same to a single one."""
    given, own = state_dict.get("patch_embed.pre_affine.alpha"), model.patch_embed.pre_affine.alpha
    if given is not None and given.shape != own.shape:
        raise ValueError(
            f"weights for images of {given.shape[1]} channels do not fit in_chans={own.shape[1]}; leave in_chans out "
            "and repeat the channel: images.expand(-1, 3, -1, -1)"
        )
    return state_dict


def _create(variant: str, pretrained: bool, **arguments) -> DynamicHybridViT:
    _, patch, dim, heads = VARIANTS[variant]
    own = {"patch_size": patch, "embed_dim": dim, "num_heads": heads, **arguments}
    features = {"out_indices": 3, "feature_cls": "getter"}
    fitted = {"pretrained_filter_fn": checkpoint_filter_fn, "feature_cfg": features}
    return build_model_with_cfg(DynamicHybridViT, variant, pretrained, **fitted, **own)


@register_model
def dhvt_tiny_cifar_patch4(pretrained: bool = False, **kwargs) -> DynamicHybridViT:
    """DHVT-T for 32 px: an 8 x 8 grid."""
    return _create("dhvt_tiny_cifar_patch4", pretrained, **kwargs)


@register_model
def dhvt_tiny_cifar_patch2(pretrained: bool = False, **kwargs) -> DynamicHybridViT:
    """DHVT-T for 32 px: a 16 x 16 grid."""
    return _create("dhvt_tiny_cifar_patch2", pretrained, **kwargs)


@register_model
def dhvt_small_cifar_patch4(pretrained: bool = False, **kwargs) -> DynamicHybridViT:
    """DHVT-S for 32 px: an 8 x 8 grid."""
    return _create("dhvt_small_cifar_patch4", pretrained, **kwargs)


@register_model
def dhvt_small_cifar_patch2(pretrained: bool = False, **kwargs) -> DynamicHybridViT:
    """DHVT-S for 32 px: a 16 x 16 grid."""
    return _create("dhvt_small_cifar_patch2", pretrained, **kwargs)


@register_model
def dhvt_tiny_domain_patch16(pretrained: bool = False, **kwargs) -> DynamicHybridViT:
    """DHVT-T for 224 px, with 4 heads."""
    return _create("dhvt_tiny_domain_patch16", pretrained, **kwargs)


@register_model
def dhvt_small_domain_patch16(pretrained: bool = False, **kwargs) -> DynamicHybridViT:
    """DHVT-S for 224 px."""
    return _create("dhvt_small_domain_patch16", pretrained, **kwargs)


@register_model
def dhvt_tiny_imagenet_patch16(pretrained: bool = False, **kwargs) -> DynamicHybridViT:
    """DHVT-T for 224 px, with 3 heads."""
    return _create("dhvt_tiny_imagenet_patch16", pretrained, **kwargs)


@register_model
def dhvt_small_imagenet_patch16(pretrained: bool = False, **kwargs) -> DynamicHybridViT:
    """DHVT-S for 224 px; but for its classes the one for DomainNet."""
    return _create("dhvt_small_imagenet_patch16", pretrained, **kwargs)
