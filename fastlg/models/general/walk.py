"""Students without a walk of their own: their features come from timm's ``forward_intermediates``, or from themselves.

A network is taken that has ``forward_intermediates`` and ``forward_head`` as timm's models have them, or whose forward
gives (logits [N, K], features): tokens [N, L, C], or maps [N, C, H, W].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastlg.errors import UserError, first_line
from fastlg.models.convolutions import PatchConv2d
from fastlg.models.families import Family, is_seen
from fastlg.models.vits.token_model import BlockShape

FORMATS = ("NLC", "NHWC", "NCHW")  # of timm's intermediates, the one that copies least first
HOW = "docs/own_model.md says what is"


def general_family(model: nn.Module, name: str, image_size: int, num_classes: int) -> Family:
    """How a network without a walk of its own is walked; its "blocks" are the features that it lists, mostly stages.

    Raises UserError where it lists none, where they are no tokens or maps, and for images that it does not take.
    """
    form, (logits, features) = _probed(model, name, image_size)
    if not isinstance(logits, Tensor) or logits.shape[1:] != (num_classes,):
        found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(f"model.name {name} gives logits {found} instead of [N, {num_classes}], one per class")
    grids = getattr(model, "grids", None)
    shapes = [_shape_of(index, feature, grids, name) for index, feature in features.items()]
    walk = partial(walk_intermediates, form=form, last=len(shapes) - 1) if form else walk_features
    return Family(walk, lambda model, size: shapes, _sees_all)


def walk_intermediates(
    model: nn.Module, images: Tensor, wanted: frozenset[int], *, form: str, last: int
) -> tuple[Tensor, dict[int, Tensor]]:
    """As the walks of families.py. Tokens come without prefix tokens, maps as [N, C, H, W] whatever their memory is.

    The ``last`` feature is always asked for: some models (Hiera) run no further than to the last one that is.
    """
    if not wanted:
        return model(images), {}
    indices = sorted(wanted | {last})
    final, features = model.forward_intermediates(images, indices=indices, output_fmt=form)
    if form == "NHWC":
        features = [feature.permute(0, 3, 1, 2) for feature in features]
    return model.forward_head(final), dict(zip(indices, features, strict=True))


def walk_features(model: nn.Module, images: Tensor, wanted: frozenset[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """Of a network that gives (logits, features) itself: all of them, which costs nothing."""
    given = model(images)
    if not isinstance(given, (tuple, list)) or len(given) != 2:  # a tensor of two images would be taken apart
        raise TypeError(f"it gives a {type(given).__name__}, not (logits, features)")
    return given[0], dict(enumerate(given[1]))


def told_by_timm(model: nn.Module) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Names of the weights that a model's author spares from decay, of those of its first layers, and of its last."""
    names = [name for name, _ in model.named_parameters()]
    listed = getattr(model, "no_weight_decay", None)
    parts = listed() if callable(listed) else ()
    outer = [tuple(f"{name}." for name in layers) for layers in (_first(model), classifiers(model))]
    return (
        frozenset(name for name in names if any(part in name for part in parts)),
        *(frozenset(name for name in names if name.startswith(own)) for own in outer),
    )


def classifiers(model: nn.Module) -> list[str]:
    """Names of the layers that tell classes apart, as a model with timm's ``get_classifier`` says."""
    asked = getattr(model, "get_classifier", None)
    given = asked() if callable(asked) else ()
    heads = (given,) if isinstance(given, nn.Module) else given
    layers = {id(own) for head in heads for own in head.modules() if isinstance(own, (nn.Linear, nn.Conv2d))}
    return [name for name, module in model.named_modules() if id(module) in layers]


def _first(model: nn.Module) -> tuple[str, ...]:
    """The layers that timm calls a model's first convolutions."""
    told = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    return (told,) if isinstance(told, str) else tuple(told)


def _sees_all(model: nn.Module, image_size: int) -> bool:
    """Whether one of the first convolutions reaches the last row and column of images of that size; later ones may pad.

    timm's own kinds pad by the size of what they are given.
    """
    modules = dict(model.named_modules())
    first = [modules.get(name) for name in _first(model)]
    plain = [conv for conv in first if type(conv) in (nn.Conv2d, PatchConv2d)]
    return len(plain) < len(first) or not first or any(is_seen(conv, image_size) for conv in plain)


def _opens(model: nn.Module) -> bool:
    return callable(getattr(model, "forward_intermediates", None)) and callable(getattr(model, "forward_head", None))


def _all_intermediates(
    model: nn.Module, images: Tensor, wanted: frozenset[int], *, form: str
) -> tuple[Tensor, dict[int, Tensor]]:
    final, features = model.forward_intermediates(images, output_fmt=form)
    if form == "NLC":  # which says nothing of the grid
        features = model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
    elif form == "NHWC":
        features = [feature.permute(0, 3, 1, 2) for feature in features]
    return model.forward_head(final), dict(enumerate(features))


def _probed(model: nn.Module, name: str, image_size: int) -> tuple[str, tuple[Tensor, dict[int, Tensor]]]:
    """(form of its intermediates, "" of a network that gives its features itself; logits and all features)."""
    forms = {form: partial(_all_intermediates, form=form) for form in FORMATS} if _opens(model) else {"": walk_features}
    reason = ""
    ghost = _ghost(model)
    for form, run in forms.items():
        try:
            logits, features = _run(model, ghost, run, image_size)
        except Exception as error:  # a form it does not have; or whatever it makes of images of that size, or of none
            reason = first_line(error)
            continue
        if not features:
            raise UserError(f"model.name {name} lists no features, so that nothing can be guided; {HOW}")
        return form, (logits, features)
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-1]
    hint = f"try model.image_size={size}" if _opens(model) and size != image_size else HOW
    raise UserError(f"model.name {name} cannot be run on images of {image_size} px: {reason}; {hint}")


def _ghost(model: nn.Module) -> nn.Module | None:
    try:
        return on_meta(model).eval()
    except Exception:  # their code, which need not let itself be copied
        return None


def _run(model: nn.Module, ghost: nn.Module | None, run: Callable, image_size: int) -> Any:
    """``run`` of a copy without weights, on no pixels; of the model itself where its code needs numbers."""
    every = frozenset(range(1000))
    with torch.no_grad():
        try:
            if ghost is not None:
                return run(ghost, torch.empty(2, 3, image_size, image_size, device="meta"), every)
        except AssertionError:  # so does timm refuse a form, before anything else
            raise
        except Exception:
            pass
        was = model.training
        try:
            with torch.random.fork_rng(devices=[]):
                return run(model.eval(), torch.zeros(2, 3, image_size, image_size), every)
        finally:
            model.train(was)


def on_meta(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes and no memory."""
    ghosts: dict[int, Any] = {}
    for parameter in model.parameters():
        ghosts[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in model.buffers():
        ghosts[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, ghosts)


def _shape_of(index: int, feature: Any, grids: Any, name: str) -> BlockShape:
    """Grid and channels. Tokens are of the network's own ``grids``, else of a square behind one prefix or none."""
    what = f"model.name {name}: its feature {index}"
    if not isinstance(feature, Tensor) or feature.dim() not in (3, 4):
        found = list(feature.shape) if isinstance(feature, Tensor) else f"a {type(feature).__name__}"
        raise UserError(f"{what} is {found}; give tokens [N, L, C] or a map [N, C, H, W]")
    if feature.dim() == 4:
        return BlockShape(tuple(feature.shape[2:]), feature.shape[1])
    count, dim = feature.shape[1:]
    if grids is not None:
        try:
            high, wide = grids[index]
            grid = int(high), int(wide)
        except (TypeError, ValueError, IndexError, KeyError):
            raise UserError(f"{what} has no (H, W) in the network's grids; {HOW}") from None
        if min(grid) < 1 or math.prod(grid) > count:
            raise UserError(f"{what} has {count} tokens, which its grid {grid} does not fit")
        return BlockShape(grid, dim)
    side = math.isqrt(count)
    if count not in (side**2, side**2 + 1):
        raise UserError(f"{what} has {count} tokens, which make no square grid; set the network's grids ({HOW})")
    return BlockShape((side, side), dim)
