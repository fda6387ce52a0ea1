"""Which parameters weight decay spares, which Muon steps, and how fast each layer learns."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from timm.models import group_parameters
from torch import nn

from fastlg.config import OptimConfig
from fastlg.errors import UserError

SPARED = ("cls_token", "pos_embed", "dist_token", "distill_token")
OUTER = {"stem": re.compile(r"(^|\.)(stem|patch_embed)"), "head": re.compile(r"(^|\.)head")}  # first and last layers
POSITIONS = re.compile(r"(^|\.)pos_")  # ConViT's map of them


def groups_of(unit: nn.Module, optim: OptimConfig) -> list[dict]:
    """Of the optimizer of a run; ``unit.student`` is what is trained. Raises UserError where layers shall differ and
    the student does not tell them."""
    scales, student = None, unit.student
    if optim.layer_decay < 1:
        bare = getattr(student, "bare", student)
        inside = "student." if bare is student else "student.bare."
        found = layer_scales(bare, getattr(student, "name", type(student).__name__), optim.layer_decay)
        scales = {inside + name: share for name, share in found.items()}
    is_muon = optim.name == "muon"
    return param_groups(unit, optim.weight_decay, muon=is_muon, also=optim.muon_also, scales=scales)


def param_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    muon: bool = False,
    also: Collection[str] = (),
    scales: Mapping[str, float] | None = None,
) -> list[dict]:
    """Optimizer groups, [no decay, decay]; every trainable parameter is in exactly one, in definition order.

    No decay: 1-D parameters, names ending in ".bias", and class, distillation and position tokens (the reference
    code's rule); of a student without a walk of its own also what its author spares. ``muon`` takes the matrices
    between hidden layers (``is_matrix``), and those of the "stem" and the "head" where ``also`` names them, out of the
    decayed ones, to a third group that says so. ``module`` may be a student or a unit that wraps it with its
    projections: names are judged by what they contain. A group without parameters is left out.

    ``scales`` (``layer_scales``) splits every group by its parameters' share of the learning rate, which is then the
    group's ``lr_scale``; a parameter without one has all of it.
    """
    spared, decayed, matrices = [], [], []
    told, outer = _told(module, "undecayed"), {kind: _told(module, f"of_{kind}") for kind in OUTER}
    share_of = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        share_of[parameter] = (scales or {}).get(name, 1.0)
        if parameter.ndim == 1 or name.endswith(".bias") or any(token in name for token in SPARED) or name in told:
            spared.append(parameter)
        elif muon and is_matrix(parameter) and _place(name, outer) in (None, *also):
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    groups = [{"params": spared, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    groups.append({"params": matrices, "weight_decay": weight_decay, "muon": True})
    if scales is not None:
        groups = [own for group in groups for own in _by_share(group, share_of)]
    return [group for group in groups if group["params"]]


def _by_share(group: dict, share_of: Mapping[nn.Parameter, float]) -> list[dict]:
    shares = sorted({share_of[parameter] for parameter in group["params"]})
    return [
        {**group, "params": [own for own in group["params"] if share_of[own] == share], "lr_scale": share}
        for share in shares
    ]


def layer_scales(model: nn.Module, name: str, decay: float) -> dict[str, float]:
    """Parameter -> its share of the learning rate: 1 in the last layer, ``decay`` times that of the layer above in the
    others, as timm's ``param_groups_layer_decay`` has it. Layers are what the model's own ``group_matcher`` says.

    Raises UserError for a model, called ``name``, that says nothing of its layers, or sees a single one.
    """
    matcher = getattr(model, "group_matcher", None)
    layer_of = group_parameters(model, matcher(coarse=False), reverse=True) if callable(matcher) else {}
    last = max(layer_of.values(), default=0)
    if last == 0:
        raise UserError(
            f"optim.layer_decay is {decay:g}, but {name} does not say which of its layers come after which (timm's "
            "group_matcher); set optim.layer_decay=1"
        )
    return {own: decay ** (last - layer) for own, layer in layer_of.items()}


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a weight maps features to features: linear layers, and convolutions, flattened to [out, in * kh * kw];
    not depthwise ones, which map no channel to another."""
    return parameter.ndim == 2 or (parameter.ndim == 4 and parameter.shape[1] > 1)


def _place(name: str, outer: Mapping[str, set[str]]) -> str | None:
    """Of what sees pixels "stem", of what tells classes apart "head", of maps of positions "positions"; else None."""
    if POSITIONS.search(name):
        return "positions"
    return next((kind for kind, pattern in OUTER.items() if pattern.search(name) or name in outer[kind]), None)


def _told(module: nn.Module, what: str) -> set[str]:
    """Names of the weights that the attribute ``what`` of a Student lists."""
    return {
        ".".join(filter(None, (prefix, "bare", name)))
        for prefix, owner in module.named_modules()
        for name in getattr(owner, what, ())
    }
