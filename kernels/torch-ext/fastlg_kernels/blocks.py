"""``fuse``: the blocks of a timm vision transformer on the fused parts, and back."""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
from torch import Tensor, nn

from .attention.api import HEAD_DIMS, MOST_TOKENS, short_attention
from .mlp.api import add_mlp
from .mlp.tiles import obstacle as mlp_sizes_obstacle
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
        if self.fuses_mlp(x):
            fc1, fc2 = ((layer.weight, layer.bias) for layer in (self.mlp.fc1, self.mlp.fc2))
            keeps = {"keep": keep, "keep_mlp": drawn_keep(self.drop_path2, x)}
            return add_mlp(x, attended, (norm.weight, norm.bias), fc1, fc2, **keeps, eps=norm.eps)
        x, normed = add_layer_norm(x, attended, norm.weight, norm.bias, keep=keep, eps=norm.eps)
        return x + self.drop_path2(self.mlp(normed))

    def fuses_mlp(self, x: Tensor) -> bool:
        return False


class FusedMlpBlock(FusedBlock):
    """The same for a block whose MLP is one that ``add_mlp`` knows."""

    def fuses_mlp(self, x: Tensor) -> bool:
        """Where products are bfloat16 or float16: the kernels know no others, and torch alone would only make the
        hidden layer twice."""
        is_cast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if is_cast else self.mlp.fc1.weight.dtype
        return dtype.itemsize == 2


def drawn_keep(drop_path: nn.Module, x: Tensor) -> Tensor | None:
    """Factors [N] of a timm DropPath for this batch, None where it drops nothing. One that has ``factors(x)``, [N] or
    None, is asked first."""
    rate = getattr(drop_path, "drop_prob", 0.0) or 0.0
    if not drop_path.training or rate == 0.0:
        return None
    if hasattr(drop_path, "factors") and (drawn := drop_path.factors(x)) is not None:
        return drawn.float()
    keep = x.new_empty((x.shape[0],), dtype=torch.float32).bernoulli_(1 - rate)
    return keep.div_(1 - rate) if rate < 1 and drop_path.scale_by_keep else keep


@lru_cache
def _fused_class(of: type, kind: type[FusedBlock]) -> type:
    return type(f"Fused{of.__name__}", (kind, of), {"__module__": __name__, "fused_from": of})


def fuse(model: nn.Module) -> nn.Module:
    """Run the blocks of ``model`` on ``short_attention``, and on ``add_mlp`` or, where the MLP is one that it does not
    know, ``add_layer_norm``; returns the model itself.

    model  any network with blocks of timm's ``vision_transformer.Block``: ViT, DeiT and what else is built of them

    Parameters, buffers, hooks and the names in the state dict stay; ``unfuse(model)`` takes it back, at any time. Done
    twice it is done once. A fused model can be copied and compiled; ``torch.save`` its state dict, not the model.
    Stochastic depth draws its factors with the device's generator, in another order than timm. Hooks of the modules
    inside a block (its norm2, its attention, its MLP's layers) are not called. MLPs are fused where products are
    bfloat16 or float16, under autocast or by the weights' dtype; those with another activation than the exact GELU,
    dropout, a norm or no biases, with more than 192 channels or other layers than nn.Linear stay as they are, and a
    warning says which and why.

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
    left = {}
    for name, block in blocks.items():
        if not isinstance(block, FusedBlock):
            if reason := _mlp_obstacle(block.mlp):
                left.setdefault(reason, []).append(f"{name}.mlp" if name else "mlp")
            block.__class__ = _fused_class(type(block), FusedBlock if reason else FusedMlpBlock)
    for reason, names in left.items():
        told = ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]}, {len(names)} of them"
        warnings.warn(f"{told}: not fused, the rest is: {reason}", stacklevel=2)
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Undo ``fuse``; returns the model itself. A model that is not fused stays what it is."""
    for module in model.modules():
        if isinstance(module, FusedBlock):
            module.__class__ = type(module).fused_from
    return model


def _is_block(module: nn.Module) -> bool:
    """Whether it is timm's own block: a subclass may compute something else."""
    kind = type(module).fused_from if isinstance(module, FusedBlock) else type(module)
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


def _mlp_obstacle(mlp: nn.Module) -> str:
    """What this MLP holds that ``add_mlp`` does not know; "" where there is nothing."""
    if type(mlp).__name__ != "Mlp":
        return f"it is a {type(mlp).__name__}"
    rates, act = [drop.p for drop in (mlp.drop1, mlp.drop2)], mlp.act
    if type(mlp.fc1) is not nn.Linear or type(mlp.fc2) is not nn.Linear:
        return "its layers are not plain nn.Linear"
    facts = (
        (type(act).__name__ != "GELU" or getattr(act, "approximate", "none") != "none", f"its activation is {act}"),
        (any(rates), f"it has dropout of {max(rates)}"),
        (not isinstance(mlp.norm, nn.Identity), f"it has norm, a {type(mlp.norm).__name__}"),
        (mlp.fc1.bias is None or mlp.fc2.bias is None, "its layers have no biases"),
    )
    obstacle = next((words for is_so, words in facts if is_so), "")
    return obstacle or mlp_sizes_obstacle(mlp.fc1.in_features, mlp.fc1.out_features)
