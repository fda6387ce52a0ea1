"""Weights trained elsewhere as a network's first ones: renamed, resized, and without a head of other classes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import pit, pvt_v2, vision_transformer
from timm.models.convit import ConVit
from timm.models.pit import PoolingVisionTransformer
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fastlg.errors import UserError, brief
from fastlg.models.general.walk import classifiers
from fastlg.models.student import Student
from fastlg.models.systems import poorvit
from fastlg.models.systems.poorvit import PoorViT
from fastlg.models.vits import pvt, t2t
from fastlg.models.vits.pvt import PyramidVisionTransformer
from fastlg.models.vits.t2t import T2TViT
from fastlg.models.weights import in_reference, reference_name

WRAPPINGS = ("model_state", "state_dict", "model", "unit")  # in files of the reference, timm, DeiT and fastlg
PREFIXES = ("module.", "student.", "bare.")  # of DistributedDataParallel; of our units and students
HEADS = ("head", "head_dist")
NEW_HEAD = "so that a new one begins"  # in what is said of a head that was left as it was drawn


@torch.no_grad()
def start_from(model: nn.Module, checkpoint: Mapping[str, Any], where: str, *, is_other_classes: bool = False) -> str:
    """Copies a checkpoint's weights into a Student or CNN, in place; returns what to say of it.

    checkpoint  a state dict or what holds one, under the names of timm, of the reference code or of a run of fastlg
    where       what messages call it
    is_other_classes  its head, though of the right size, tells other classes apart

    Heads of other classes are left as they were drawn, positions of another grid are resized. All or nothing: raises
    UserError that names the first tensors that are missing, unexpected, of the wrong shape or not finite.
    """
    bare = model.bare if isinstance(model, Student) else model
    own, given = bare.state_dict(), _tensors(checkpoint, where)
    given = _named_as(bare, given)
    fitted = _resized(bare, given)
    tables = _tables_of_its_own(own, given, fitted)
    resized = [name for name in fitted if name in own and name in given and given[name].shape != fitted[name].shape]
    resized = [name for name in resized if name not in tables]
    heads = list(dict.fromkeys([*HEADS, *classifiers(bare)]))
    kept = _heads_to_keep(heads, own, fitted, is_other_classes)
    fitted = {name: value for name, value in fitted.items() if not _is_below(name, kept)}
    _refuse_unfit(own, fitted, kept, where)
    for name, value in fitted.items():
        own[name].copy_(value)
    notes = [f"{name} resized from {_shape(given[name])} to {_shape(own[name])}" for name in resized[:1]]
    notes += [f"{len(resized) - 1} more resized likewise"] if len(resized) > 1 else []
    notes += [f"{name} stays the model's own table, another one than there" for name in tables]
    for name in kept:
        why = "tells other classes apart" if f"{name}.weight" in given else "is not there"
        notes.append(f"its {name} {why}, {NEW_HEAD}")
    return f"{len(fitted)} tensors from {where}{''.join(f'; {note}' for note in notes)}"


def _tensors(checkpoint: Any, where: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint, without what wraps its names."""
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"{where} holds a {type(checkpoint).__name__}, not a dict of tensors")
    for key in WRAPPINGS:
        if isinstance(checkpoint.get(key), Mapping):
            return _tensors(checkpoint[key], where)
    tensors = {str(name): value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if any(name.startswith("student.") for name in tensors):  # a unit's, whose projections and heads are not taken
        tensors = {name: value for name, value in tensors.items() if name.startswith("student.")}
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if not tensors:
        raise UserError(f"{where} holds no tensors; give a run folder, or a file of a model's weights")
    return tensors


def _named_as(bare: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of ``bare``, wherever they come from."""
    theirs = {reference_name(bare, name): name for name in bare.state_dict()} if in_reference(bare) else {}
    if sum(name in theirs for name in given) > sum(name in theirs.values() for name in given):
        return {theirs.get(name, name): value for name, value in given.items()}
    match bare:
        case PoolingVisionTransformer():
            rename = pit.checkpoint_filter_fn
        case PyramidVisionTransformerV2():
            rename = pvt_v2.checkpoint_filter_fn
        case _:
            return given
    return rename(given, bare)


def _resized(bare: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Positions on the grid of ``bare``, and its patches, as timm resizes them; other tensors as they are."""
    own = bare.state_dict()
    positions = given.get("pos_embed")
    try:
        match bare:
            case VisionTransformer():
                return vision_transformer.checkpoint_filter_fn(given, bare, adapt_layer_scale=True)
            case T2TViT():
                return t2t.checkpoint_filter_fn(given, bare)
            case PyramidVisionTransformer():
                return pvt.checkpoint_filter_fn(given, bare)
            case PoorViT():
                return poorvit.checkpoint_filter_fn(given, bare)
            case ConVit() if positions is not None and "pos_embed" in own:
                size = list(bare.patch_embed.grid_size)
                return {**given, "pos_embed": resample_abs_pos_embed(positions, size, num_prefix_tokens=0)}
            case PoolingVisionTransformer() if positions is not None:
                size = own["pos_embed"].shape[2:]
                if positions.shape[2:] != size:
                    positions = F.interpolate(positions.float(), size, mode="bicubic", antialias=True)
                return {**given, "pos_embed": positions}
            case _ if not in_reference(bare) and (rename := _filter_of(bare)):
                return dict(rename(dict(given), bare))
    except Exception:  # whatever timm makes of tensors of unexpected shapes; they are named next
        return dict(given)
    return dict(given)


def _tables_of_its_own(own: dict[str, Tensor], given: dict[str, Tensor], fitted: dict[str, Tensor]) -> list[str]:
    """What is given and not taken, for ``_resized`` put the model's own numbers in its place."""
    changed = [name for name in fitted if name in own and name in given and fitted[name] is not given[name]]
    return [
        name
        for name in changed
        if torch.equal(fitted[name], own[name].to(fitted[name].dtype))
        and not (given[name].shape == own[name].shape and torch.equal(given[name].to(own[name].dtype), own[name]))
    ]


def _filter_of(bare: nn.Module) -> Callable | None:
    """timm's own function that fits a checkpoint to ``bare``, where the model's file has one."""
    return getattr(sys.modules.get(type(bare).__module__), "checkpoint_filter_fn", None)


def _heads_to_keep(
    heads: Sequence[str], own: dict[str, Tensor], given: dict[str, Tensor], is_other_classes: bool
) -> list[str]:
    """Those that are left as they were drawn: of other classes, or not given."""
    names = [name for name in heads if f"{name}.weight" in own]
    return [
        name
        for name in names
        if is_other_classes
        or f"{name}.weight" not in given
        or len(given[f"{name}.weight"]) != len(own[f"{name}.weight"])
    ]


def _refuse_unfit(own: dict[str, Tensor], given: dict[str, Tensor], kept: Sequence[str], where: str) -> None:
    """Raises UserError that names what does not fit, of each kind the first."""
    wanted = [name for name in own if not _is_below(name, kept)]
    there = [name for name in wanted if name in given]
    same = [name for name in there if given[name].shape == own[name].shape]
    unequal = [f"{name} is {_shape(given[name])}, not {_shape(own[name])}" for name in there if name not in same]
    problems = [
        [f"no {name}" for name in wanted if name not in given],
        [f"{brief(name)} is not in the model" for name in given if name not in own],
        unequal,
        [f"{name} is not finite" for name in same if not bool(torch.isfinite(given[name]).all())],
    ]
    found = [f"{kind[0]}{f' and {len(kind) - 1} more' if kind[1:] else ''}" for kind in problems if kind]
    if found:
        fix = "give a checkpoint of the same model.name and model.args"
        raise UserError(f"{where} does not fit the model: {'; '.join(found)}; {fix}")


def _is_below(name: str, layers: Sequence[str]) -> bool:
    return any(name.startswith(f"{layer}.") for layer in layers)


def _shape(value: Tensor) -> list[int]:
    return list(value.shape)
