"""``fuse``: the blocks of a timm vision transformer on the fused parts, and back."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from .attention.api import HEAD_DIMS, MOST_TOKENS, short_attention
from .norm.api import add_layer_norm

TIMM_BLOCK = ("timm.models.vision_transformer", "Block")


class FusedBlock:
    """Mixed into the class of a block by ``fuse``: the same parameters, buffers, hooks and names, another forward."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens [N, L, C] -> [N, L, C]. Without mask, for ``short_attention`` knows none."""
        if attn_mask is not None or is_causal:
            raise ValueError("a fused block takes no attention mask; call fastlg_kernels.unfuse(model) first")
        attn = self.attn
        qkv = attn.qkv(self.norm1(x)).unflatten(-1, (3, attn.num_heads, -1))
        attended = attn.proj_drop(attn.proj(short_attention(qkv, scale=attn.scale)))
        norm = self.norm2
        keep = drawn_keep(self.drop_path1, x)
        x, normed = add_layer_norm(x, attended, norm.weight, norm.bias, keep=keep, eps=norm.eps)
        return x + self.drop_path2(self.mlp(normed))


def drawn_keep(drop_path: nn.Module, x: Tensor) -> Tensor | None:
    """Factors [N] of a timm DropPath for this batch, None where it drops nothing."""
    rate = getattr(drop_path, "drop_prob", 0.0) or 0.0
    if not drop_path.training or rate == 0.0:
        return None
    keep = x.new_empty((x.shape[0],), dtype=torch.float32).bernoulli_(1 - rate)
    return keep.div_(1 - rate) if rate < 1 and drop_path.scale_by_keep else keep


@lru_cache
def _fused_class(of: type) -> type:
    return type(f"Fused{of.__name__}", (FusedBlock, of), {"__module__": __name__})


def fuse(model: nn.Module) -> nn.Module:
    """Run the blocks of ``model`` on ``short_attention`` and ``add_layer_norm``; returns the model itself.

    model  any network with blocks of timm's ``vision_transformer.Block``: ViT, DeiT and what else is built of them

    Parameters, buffers, hooks and the names in the state dict stay; ``unfuse(model)`` takes it back, at any time. Done
    twice it is done once. A fused model can be copied and compiled; ``torch.save`` its state dict, not the model.
    Stochastic depth draws its factors with the device's generator, in another order than timm.

    Raises ValueError, the model being left as it was, where there is no such block, or a block holds what the parts do
    not know: layer scale, normalised queries and keys, a gate, dropout of attention, other heads than of 32 or 64
    channels, other norms than layer norm, more than 256 tokens.
    """
    blocks = {name: module for name, module in model.named_modules() if _is_block(module)}
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no block of {'.'.join(TIMM_BLOCK)}; there is nothing to fuse")
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None) or 0
    tokens = patches + getattr(model, "num_prefix_tokens", 0)
    for name, block in blocks.items():
        if obstacle := _obstacle(block) or (tokens > MOST_TOKENS and f"{tokens} tokens are more than {MOST_TOKENS}"):
            raise ValueError(f"{name or type(model).__name__} cannot be fused: {obstacle}; leave this model as it is")
    for block in blocks.values():
        if not isinstance(block, FusedBlock):
            block.__class__ = _fused_class(type(block))
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Undo ``fuse``; returns the model itself. A model that is not fused stays what it is."""
    for module in model.modules():
        if isinstance(module, FusedBlock):
            module.__class__ = type(module).__mro__[2]
    return model


def _is_block(module: nn.Module) -> bool:
    """Whether it is timm's own block: a subclass may compute something else."""
    kind = type(module).__mro__[2] if isinstance(module, FusedBlock) else type(module)
    return (kind.__module__, kind.__name__) == TIMM_BLOCK


def _obstacle(block: nn.Module) -> str:
    """What this block holds that the fused parts do not know; "" where there is nothing."""
    attn, norm = block.attn, block.norm2
    if type(attn).__name__ != "Attention":
        return f"its attention is a {type(attn).__name__}"
    heads = attn.qkv.out_features // 3 // attn.num_heads
    for name, part in (("q_norm", attn.q_norm), ("k_norm", attn.k_norm), ("norm", getattr(attn, "norm", None))):
        if not isinstance(part, nn.Identity | None):
            return f"its attention has {name}, a {type(part).__name__}"
    facts = (
        (getattr(attn, "gate", None) is not None, "its attention has a gate"),
        (attn.attn_drop.p > 0, f"its attention has dropout of {attn.attn_drop.p}"),
        (heads not in HEAD_DIMS, f"its heads have {heads} channels, which are neither 32 nor 64"),
        (not isinstance(block.ls1, nn.Identity) or not isinstance(block.ls2, nn.Identity), "it has layer scale"),
        (not isinstance(norm, nn.LayerNorm), f"its norm2 is a {type(norm).__name__}"),
    )
    obstacle = next((words for is_so, words in facts if is_so), "")
    if not obstacle and (norm.weight is None or norm.bias is None):
        obstacle = "its norm2 has no weight or no bias"
    return obstacle
