"""Which parameters weight decay spares."""

from __future__ import annotations

from torch import nn

SPARED = ("cls_token", "pos_embed", "dist_token", "distill_token")


def param_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two optimizer groups, [no decay, decay]; every trainable parameter is in exactly one, in definition order.

    No decay: 1-D parameters, names ending in ".bias", and class, distillation and position tokens (the reference
    code's rule). ``module`` may be a student or a unit that wraps it with its projections: names are judged by what
    they contain. A group without parameters is left out.
    """
    spared, decayed = [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        keep = parameter.ndim == 1 or name.endswith(".bias") or any(token in name for token in SPARED)
        (spared if keep else decayed).append(parameter)
    groups = [{"params": spared, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    return [group for group in groups if group["params"]]
