"""Checkpoints of the reference code (lkhl/tiny-transformers), or of the authors of a neighbouring system, read into
our models under their own names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.models.convit import ConVit
from timm.models.pit import PoolingVisionTransformer
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fastlg.errors import UserError
from fastlg.models.resnet_cifar import CifarResNet
from fastlg.models.student import Student
from fastlg.models.systems.life import has_life

# Our names -> the reference's, as (pattern, replacement) pairs applied in this order.
_ATTENTION = ((r"\.attn\.qkv\.", ".attn.qkv_transform."), (r"\.attn\.proj\.", ".attn.projection."))
_RESNET = (
    (r"^stages\.(\d+)\.(\d+)\.", lambda m: f"s{int(m[1]) + 1}.b{int(m[2]) + 1}."),
    (r"\.conv1\.", ".f.a."),
    (r"\.bn1\.", ".f.a_bn."),
    (r"\.conv2\.", ".f.b."),
    (r"\.bn2\.", ".f.b_bn."),
    (r"\.shortcut\.0\.", ".proj."),
    (r"\.shortcut\.1\.", ".bn."),
    (r"^head\.", "head.fc."),
)
_VIT = ((r"^blocks\.", "layers."), (r"^patch_embed\.proj\.", "patch_embed.projection."), *_ATTENTION)
_PIT = ((r"^transformers\.(\d+)\.pool\.", lambda m: f"pools.{int(m[1]) - 1}."), *_ATTENTION)
_PVT_V2 = (
    (r"^patch_embed\.", "patch_embed1."),
    (r"^stages\.(\d+)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
    (r"^stages\.(\d+)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
    (r"^stages\.(\d+)\.norm\.", lambda m: f"norm{int(m[1]) + 1}."),
    (r"\.dwconv\.", ".dwconv.dwconv."),
)

_LIFE_SWIN = (
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),
    (r"^head\.fc\.", "head."),
)
_TABLES = re.compile(r"\.attn_mask$")  # follow from sizes, and lie in some of the source's state dicts all the same


@torch.no_grad()
def load_reference(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Copies a reference checkpoint into a CifarResNet, a Student or its bare timm model, in place.

    ``state_dict`` is the checkpoint's ``model_state``, or the whole checkpoint that holds it. All or nothing: raises
    UserError that names every missing, unexpected and wrongly shaped tensor, by the reference's names.
    """
    if not isinstance(state_dict, Mapping):
        raise UserError(f"a reference checkpoint is a dict of tensors, not a {type(state_dict).__name__}")
    source = state_dict["model_state"] if isinstance(state_dict.get("model_state"), Mapping) else state_dict
    model = model.bare if isinstance(model, Student) else model
    targets = {reference_name(model, name): tensor for name, tensor in model.state_dict().items()}
    problems = [f"missing {name}" for name in targets if name not in source]
    is_table = _TABLES.search if isinstance(model, SwinTransformerV2) else lambda name: None
    problems += [f"unexpected {name}" for name in source if name not in targets and not is_table(name)]
    for name in (name for name in targets if name in source):
        value, wanted = source[name], tuple(targets[name].shape)
        if not isinstance(value, Tensor):
            problems.append(f"{name} is no tensor")
        elif tuple(value.shape) != wanted:
            problems.append(f"{name} is {list(value.shape)}, not {list(wanted)}")
    if problems:
        raise UserError(
            f"reference checkpoint does not fit {type(model).__name__} ({len(problems)} mismatches; check depth, size "
            f"and number of classes): {'; '.join(problems)}"
        )
    for name, tensor in targets.items():
        tensor.copy_(source[name])


def reference_name(model: nn.Module, name: str) -> str:
    """The reference code's name of one of ``model``'s state-dict entries. Raises UserError for models it lacks."""
    renames = _renames(model)
    if renames is None:
        raise UserError(f"no reference checkpoints are known for {type(model).__name__}")
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def in_reference(model: nn.Module) -> bool:
    """Whether the reference code has such models."""
    return _renames(model) is not None


def _renames(model: nn.Module) -> tuple[tuple[str, str | Callable[[re.Match], str]], ...] | None:
    if (own := getattr(model, "reference_names", None)) is not None:
        return own
    match model:
        case CifarResNet():
            return _RESNET
        case VisionTransformer():
            return () if has_life(model) else _VIT
        case SwinTransformerV2() if has_life(model):
            return _LIFE_SWIN
        case PoolingVisionTransformer():
            return _PIT
        case PyramidVisionTransformerV2():
            return _PVT_V2
        case ConVit():
            return ()
        case _:
            return None
