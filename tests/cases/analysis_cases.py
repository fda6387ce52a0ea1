"""Small students of every family for the analysis, and their attention computed by hand from weights and inputs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.models.convit import GPSA
from timm.models.pvt_v2 import Attention as PvtV2Attention
from torch import Tensor, nn

from fastlg.models import Student
from fastlg.models.systems.dhvt import HeadTokenAttention
from fastlg.models.systems.poorvit import LatentAttention
from fastlg.models.systems.spt_lsa import LocalityAttention
from fastlg.models.vits.cvt import ConvAttention
from fastlg.models.vits.pvt import ReducedAttention

CASES = {
    "vit": ("vit_tiny_patch16_224", 40, {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}),
    "registers": ("vit_tiny_patch16_224", 40, {"patch_size": 8, "embed_dim": 24, "depth": 2, "reg_tokens": 2}),
    "distilled": ("deit_tiny_distilled_patch16_224", 48, {"embed_dim": 24, "depth": 2, "num_heads": 2}),
    "life": ("life_vit", 40, {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}),
    "poorvit": (
        "poorvit",
        40,
        {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_cls_token": 2, "latent_mode": "q"},
    ),
    "convit": ("convit_tiny", 48, {"embed_dim": 6, "depth": 3, "local_up_to_layer": 2}),
    "pit": ("pit_ti_224", 56, {"base_dims": [8, 8, 8], "depth": [1, 2, 1], "heads": [1, 2, 4]}),
    "pvt_v2": ("pvt_v2_b0", 64, {"embed_dims": [8, 16, 40, 64]}),
    "pvt_v2_linear": ("pvt_v2_b2_li", 64, {"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]}),
    "t2t": ("t2t_vit_7", 51, {"embed_dim": 24, "depth": 2, "num_heads": 2, "token_dim": 10}),
    "pvt": ("pvt_tiny", 64, {"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]}),
    "dhvt": ("dhvt_tiny_cifar_patch4", 21, {"embed_dim": 24, "depth": 2, "num_heads": 3}),
    "spt_lsa": (
        "vit_tiny_patch16_224",
        40,
        {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "spt": True, "lsa": True},
    ),
    "cvt": ("cvt_13", 45, {"embed_dims": [8, 12, 24], "depths": [1, 1, 1]}),
}


def small_student(case: str) -> Student:
    """In float64 and evaluation mode, its weights far enough from their start that heads look at something."""
    name, size, arguments = CASES[case]
    torch.manual_seed(5)
    student = Student(name, num_classes=4, image_size=size, model_args=arguments).double().eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return student


def images_for(student: Student, count: int) -> Tensor:
    size = student.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def by_hand(layer: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(attention matrix [N, heads, L, K], the layer's output) from the layer's weights and its input [N, L, C]."""
    match layer:
        case HeadTokenAttention():
            tokens = _with_head_tokens(layer, tokens)
            query, key, value = _split(layer.qkv(tokens), 3)
        case GPSA():
            query, key = _split(layer.qk(tokens), 2)
            value = layer.v(tokens)
        case ReducedAttention() | PvtV2Attention():
            query = layer.q(tokens)
            key, value = _split(layer.kv(_reduced(layer, tokens, grid)), 2)
        case ConvAttention():
            query, key, value = (_convolved(layer, kind, tokens, grid) for kind in "qkv")
        case LatentAttention():  # of the case below: its queries are products of two matrices
            query, key, value = layer.W_q(layer.q(tokens)), layer.k(tokens), layer.v(tokens)
        case _:
            query, key, value = _split(layer.qkv(tokens), 3)
    heads = layer.num_heads
    width = query.shape[-1] // heads
    scale = query.shape[-1] if isinstance(layer, ConvAttention) else width
    per_head = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = torch.einsum("nqc,nkc->nqk", query[..., part], key[..., part]) / math.sqrt(scale)
        if isinstance(layer, LocalityAttention):
            scores = scores * math.sqrt(scale) * layer.temperature[head]
            scores.diagonal(dim1=1, dim2=2).fill_(-math.inf)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        if isinstance(layer, GPSA):
            weights = _gated(layer, weights, head, grid)
        per_head.append((weights, weights @ value[..., part]))
    matrix = torch.stack([weights for weights, _ in per_head], dim=1)
    out = layer.proj(torch.cat([mixed for _, mixed in per_head], dim=-1))
    return _without_head_tokens(matrix, out, heads) if isinstance(layer, HeadTokenAttention) else (matrix, out)


def _with_head_tokens(layer: HeadTokenAttention, tokens: Tensor) -> Tensor:
    """One more token per head, made of the mean of that head's channels."""
    width, joined = tokens.shape[2] // layer.num_heads, [tokens]
    for head in range(layer.num_heads):
        mean = sum(tokens[:, place, head * width : (head + 1) * width] for place in range(tokens.shape[1]))
        made = layer.ht_proj(mean / tokens.shape[1])
        pieces = [F.gelu(layer.ht_norm(piece)) for piece in made.split(width, dim=-1)]
        joined.append((torch.cat(pieces, dim=-1) + layer.head_embed[:, head])[:, None])
    return torch.cat(joined, dim=1)


def _without_head_tokens(matrix: Tensor, out: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """What tokens take of tokens: what they take of a head's token they take of all alike."""
    count = out.shape[1] - heads
    direct = matrix[..., :count].clone()
    for head in range(heads):
        direct += matrix[..., count + head, None] / count
    direct[:, :, 0] = (direct[:, :, 0] + direct[:, :, count:].mean(2)) / 2
    out = out.clone()
    out[:, 0] += out[:, count:].mean(1)
    return direct[:, :, :count], out[:, :count]


def _split(tokens: Tensor, parts: int) -> tuple[Tensor, ...]:
    return tokens.chunk(parts, dim=-1)


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


def _reduced(layer: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    if getattr(layer, "sr", None) is None:
        return tokens
    maps = _as_map(tokens, grid)
    if getattr(layer, "pool", None) is not None:
        maps = F.adaptive_avg_pool2d(maps, 7)
    made = layer.norm(layer.sr(maps).flatten(2).transpose(1, 2))
    return F.gelu(made) if getattr(layer, "act", None) is not None else made


def _convolved(layer: ConvAttention, kind: str, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    prefix, patches = tokens[:, : -grid[0] * grid[1]], tokens[:, -grid[0] * grid[1] :]
    made = getattr(layer, f"conv_proj_{kind}")(_as_map(patches, grid)).flatten(2).transpose(1, 2)
    return getattr(layer, f"proj_{kind}")(torch.cat((prefix, made), dim=1))


def _gated(layer: GPSA, weights: Tensor, head: int, grid: tuple[int, int]) -> Tensor:
    """ConViT's mixture of content and position (d'Ascoli et al. 2021)."""
    count = grid[0] * grid[1]
    position = torch.zeros(count, count, dtype=torch.float64)
    slope, bias = layer.pos_proj.weight[head], layer.pos_proj.bias[head]
    for query in range(count):
        for key in range(count):
            across, down = key % grid[1] - query % grid[1], key // grid[1] - query // grid[1]
            position[query, key] = slope[0] * across + slope[1] * down + slope[2] * (across**2 + down**2) + bias
    gate = layer.gating_param[head].sigmoid()
    return (1 - gate) * weights + gate * position.softmax(-1)
