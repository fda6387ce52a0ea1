"""Which parameters weight decay spares, and which Muon steps."""

from __future__ import annotations

import re

from torch import nn

SPARED = ("cls_token", "pos_embed", "dist_token", "distill_token")
NOT_HIDDEN = re.compile(r"(^|\.)(head|stem|patch_embed|pos_)")  # first and last layers; ConViT's map of positions


def param_groups(module: nn.Module, weight_decay: float, *, muon: bool = False) -> list[dict]:
    """Optimizer groups, [no decay, decay]; every trainable parameter is in exactly one, in definition order.

    No decay: 1-D parameters, names ending in ".bias", and class, distillation and position tokens (the reference
    code's rule); of a student without a walk of its own also what its author spares. ``muon`` takes the matrices
    between hidden layers (``is_hidden_matrix``) out of the decayed ones, to a third group that says so. ``module`` may
    be a student or a unit that wraps it with its projections: names are judged by what they contain. A group without
    parameters is left out.
    """
    spared, decayed, matrices = [], [], []
    told, outer = _told(module, "undecayed"), _told(module, "outer")
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim == 1 or name.endswith(".bias") or any(token in name for token in SPARED) or name in told:
            spared.append(parameter)
        elif muon and name not in outer and is_hidden_matrix(name, parameter):
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    groups = [{"params": spared, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    groups.append({"params": matrices, "weight_decay": weight_decay, "muon": True})
    return [group for group in groups if group["params"]]


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a weight maps hidden features to hidden features: linear layers of blocks, guidance projections, and
    convolutions, flattened to [out, in * kh * kw]. Not heads, patch embeddings and stems, which see classes and pixels;
    nor depthwise convolutions, which map no channel to another."""
    is_linear = parameter.ndim == 2 or (parameter.ndim == 4 and parameter.shape[1] > 1)
    return is_linear and NOT_HIDDEN.search(name) is None


def _told(module: nn.Module, what: str) -> set[str]:
    """Names of the weights that the attribute ``what`` of a Student lists."""
    return {
        ".".join(filter(None, (prefix, "bare", name)))
        for prefix, owner in module.named_modules()
        for name in getattr(owner, what, ())
    }
