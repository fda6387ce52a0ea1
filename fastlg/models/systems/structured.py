"""First weights with structure for plain ViTs: mimetic (Trockman & Kolter 2023, arXiv 2305.09828) and impulse, fitted
(Zheng et al. 2024, arXiv 2404.01139) or in closed form (2025, arXiv 2505.19985).

They make queries, keys, values and projections so that attention begins as it ends up in trained networks, or as a
convolution. All else, biases included, begins as ``model.init: reference`` has it; the authors' code leaves it at
torch's defaults.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fastlg.errors import UserError
from fastlg.models.systems.impulse import STEPS, fit, impulses

KINDS = ("mimetic", "impulse", "impulse_closed")
WINDOW = 3  # side of the impulses' window, in tokens
OFFSETS = (4, 1, 5, 3, 7, 0, 2, 6, 8)  # places of that window that heads look at, in turn; 4 is a token's own
NORM_POSITIONS, NORM_QUERIES = 18.0, 7.0  # of the closed form, as its authors have them
QUERY, VALUE = (0.7, 0.7), (0.4, -0.4)  # shares of noise and of the identity, likewise for mimetic


def expect_plain(model: nn.Module, kind: str, name: str) -> None:
    """Raises UserError for a network whose attention, or whose positions, ``model.init: kind`` has no weights for."""
    reason = _unfit(model, kind)
    if reason:
        raise UserError(f"model.init {kind}: {name} {reason}; use model.init=reference, or a plain vit_* or deit_*")


def _unfit(model: nn.Module, kind: str) -> str:
    if not isinstance(model, VisionTransformer) or not hasattr(model.patch_embed, "grid_size"):
        return "is no plain ViT"
    layers = [getattr(block, "attn", None) for block in model.blocks]
    if not all(type(layer) is Attention and type(layer.qkv) is nn.Linear for layer in layers):
        return "makes its queries and keys in another way than a plain ViT"
    if any(type(part) is not nn.Identity for layer in layers for part in (layer.q_norm, layer.k_norm)):
        return "normalises queries and keys, which would undo it"
    if any(layer.attn_dim != model.embed_dim for layer in layers):
        return "has heads that are not its width divided among them"
    if model.pos_embed is None:
        return "has no positions that are learned for every token"
    if kind != "impulse_closed" and model.embed_dim % 4:
        return f"is {model.embed_dim} wide, but sin-cos positions take a multiple of 4 channels"
    return ""


@torch.no_grad()
def start_structured(model: VisionTransformer, kind: str, seed: int) -> str:
    """Overwrites, in place on the CPU, the weights that ``kind`` is about: a pure function of ``seed``, which leaves
    torch's own generator alone. Returns what to say of it.

    mimetic         queries and keys near 0.7 of the identity, values and projections near -0.4 of it; patch positions
                    become the sin-cos table
    impulse         each head, in all blocks alike, is fitted to look one token aside; likewise the table
    impulse_closed  the same without a fit, on the model's own positions times 18, each block with noise of its own

    The authors' positions are never trained, have no class token beside them and are read by pooling (but for the
    closed form, which is also used with one). Here the positions are where training begins, a class token keeps its
    own, and the head reads what it reads (``model.args.global_pool=avg`` pools).
    """
    random = torch.Generator().manual_seed(seed)
    layers = [block.attn for block in model.blocks]
    if kind == "mimetic":
        _set_positions(model)
        _start_mimetic(layers, random)
        return f"mimetic weights in {len(layers)} blocks"
    if kind == "impulse_closed":
        _start_closed(model, layers, random)
        return f"impulse weights in {len(layers)} blocks, closed form"
    _set_positions(model)
    grid, heads = tuple(model.patch_embed.grid_size), layers[0].num_heads
    chosen = torch.randint(WINDOW**2, (heads,), generator=random).tolist()
    began = time.monotonic()
    positions = _normed(sincos_table(grid, model.embed_dim)).float()
    query, key, loss = fit(positions, impulses(grid, chosen), layers[0].head_dim, random)
    for layer in layers:
        _set_rows(layer, query.mT, key)
    took = time.monotonic() - began
    return f"impulse weights in {len(layers)} blocks, fitted in {STEPS:,} steps to a loss of {loss:.4f} ({took:.0f} s)"


def sincos_table(grid: tuple[int, int], dim: int) -> Tensor:
    """float64 [H W, dim]: [sin(y w), sin(x w), cos(y w), cos(x w)] of each patch, w_i = 10000^(-4 i / dim); timm's."""
    height, width = grid
    rates = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows = torch.arange(height).repeat_interleave(width)[:, None] * rates
    columns = torch.arange(width).repeat(height)[:, None] * rates
    return torch.cat((rows.sin(), columns.sin(), rows.cos(), columns.cos()), dim=1)


def mimetic_queries(noise: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """(W_q, W_k) [d, D] of one head: W_q' W_k is the best approximation of rank d of 0.7 ``noise`` + 0.7 I, [D, D]."""
    left, right = _halves(noise, *QUERY)
    return left[:, :head_dim].mT, right[:head_dim]


def mimetic_values(noise: Tensor, *, transposed: bool = True) -> tuple[Tensor, Tensor]:
    """(W_v, W_proj) [D, D] from A = 0.4 ``noise`` - 0.4 I: the map W_proj W_v of a token is A', as the paper means it.

    ``transposed`` False: as the code of the impulse papers has its mimetic mode, W_v W_proj = A. What a token goes
    through is then another matrix, of nearly the same negative diagonal.
    """
    left, right = _halves(noise, *VALUE)
    return (left.mT, right.mT) if transposed else (left, right)


def closed_queries(positions: Tensor, target: Tensor, noise: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """(Q [heads, D, d], K [heads, d, D]), each of Frobenius norm 1, by which P Q K P' comes nearest to the impulses.

    positions  P [N, D], normalised
    target     [heads, N, N], 1 where a head is to look; ``noise``, likewise, is added where it is not to
    """
    wanted = 1000 * target + 3 * noise * (target == 0)
    _, sizes, right = _svd(positions.mT @ positions)
    kept = right[:head_dim]  # of the directions that positions differ in, as many as a head tells apart
    inverse = (kept.mT / sizes[:head_dim]) @ kept @ positions.mT
    found = [_svd(inverse @ own @ inverse.mT) for own in wanted]
    roots = [sizes[:head_dim].sqrt() for _, sizes, _ in found]
    query = torch.stack([left[:, :head_dim] * root for (left, _, _), root in zip(found, roots, strict=True)])
    key = torch.stack([root[:, None] * right[:head_dim] for (_, _, right), root in zip(found, roots, strict=True)])
    return query / query.norm(dim=(1, 2), keepdim=True), key / key.norm(dim=(1, 2), keepdim=True)


def _start_mimetic(layers: Sequence[Attention], random: torch.Generator) -> None:
    dim = layers[0].attn_dim
    for layer in layers:
        heads = [mimetic_queries(_noise(dim, random), layer.head_dim) for _ in range(layer.num_heads)]
        _set_rows(layer, *(torch.stack(own) for own in zip(*heads, strict=True)))
    for layer in layers:
        _set_values(layer, *mimetic_values(_noise(dim, random)))


def _start_closed(model: VisionTransformer, layers: Sequence[Attention], random: torch.Generator) -> None:
    model.pos_embed.mul_(NORM_POSITIONS)
    grid = tuple(model.patch_embed.grid_size)
    count = math.prod(grid)
    positions = _normed(model.pos_embed[0, -count:].double())
    target = impulses(grid, [OFFSETS[head % len(OFFSETS)] for head in range(layers[0].num_heads)])
    for layer in layers:
        noise = torch.empty(target.shape, dtype=torch.float64)
        nn.init.trunc_normal_(noise, std=0.6, generator=random)
        query, key = closed_queries(positions, target.double(), noise, layer.head_dim)
        _set_rows(layer, NORM_QUERIES * query.mT, NORM_QUERIES * key)
        _set_values(layer, *mimetic_values(_noise(layer.attn_dim, random)))


def _set_positions(model: VisionTransformer) -> None:
    grid = tuple(model.patch_embed.grid_size)
    model.pos_embed[0, -math.prod(grid) :] = sincos_table(grid, model.embed_dim).to(model.pos_embed.dtype)


def _set_rows(layer: Attention, query: Tensor, key: Tensor) -> None:
    """``query`` and ``key`` [heads, d, D]."""
    dim = layer.attn_dim
    layer.qkv.weight[:dim] = query.flatten(0, 1).to(layer.qkv.weight.dtype)
    layer.qkv.weight[dim : 2 * dim] = key.flatten(0, 1).to(layer.qkv.weight.dtype)


def _set_values(layer: Attention, value: Tensor, projection: Tensor) -> None:
    layer.qkv.weight[2 * layer.attn_dim :] = value.to(layer.qkv.weight.dtype)
    layer.proj.weight.copy_(projection)


def _noise(dim: int, random: torch.Generator) -> Tensor:
    """float64 [dim, dim], uniform, of standard deviation 1 / sqrt(dim)."""
    return (2 * torch.rand(dim, dim, generator=random, dtype=torch.float64) - 1) * math.sqrt(3 / dim)


def _halves(noise: Tensor, share: float, identity: float) -> tuple[Tensor, Tensor]:
    """(L, R) with L R = share * noise + identity * I, the singular values divided between them."""
    left, sizes, right = _svd(share * noise + identity * torch.eye(len(noise), dtype=noise.dtype))
    return left * sizes.sqrt(), sizes.sqrt()[:, None] * right


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U, S, V'); of each pair of signs, which LAPACK leaves open, the one with U's largest entry positive."""
    left, sizes, right = torch.linalg.svd(matrix)
    signs = left.gather(0, left.abs().argmax(dim=0, keepdim=True)).sign()[0]
    return left * signs, sizes, right * signs[:, None]


def _normed(positions: Tensor) -> Tensor:
    return F.layer_norm(positions, positions.shape[-1:], eps=1e-5)
