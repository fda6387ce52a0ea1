"""Optimizers by their names in timm (``optim.name: timm:lamb``), beside the exact ones."""

from __future__ import annotations

import difflib
import inspect
from functools import partial

import torch

from fastlg.config import OptimConfig
from fastlg.engine.update.values import check_kinds, refused
from fastlg.errors import UserError, brief

SET_ELSEWHERE = {"lr": "lr", "weight_decay": "weight_decay", "layer_decay": "layer_decay", "opt": "name"}
BY_ENGINE = ("params", "capturable", "differentiable", "maximize")
NOT_HERE = {  # by what a name begins or ends with
    "adahessian": "needs second derivatives, which no step here makes",
    "kron": "draws from a random generator of its own, which no checkpoint here holds",
    "bnb": "is bitsandbytes', whose states no checkpoint here is known to hold",
    "fused": "is Apex's, whose states no checkpoint here is known to hold",
}


def check_optimizer(optim: OptimConfig) -> None:
    """Raises UserError for a name that timm lacks, arguments that it does not take, and what cannot be stepped here."""
    if not optim.of_timm:
        return
    _class_of(optim)
    try:  # some values only fail at the first step
        _try(optim, optim.args)
    except UserError:
        raise
    except Exception as error:  # timm's own code, with a user's values
        raise refused(optim.args, partial(_try, optim), error, "optim.args", optim.name) from None


def _try(optim: OptimConfig, args: dict) -> None:
    """One step of two small weights with ``args`` in the place of the config's."""
    weights = [torch.nn.Parameter(torch.ones(size)) for size in ((3, 2), (2,))]
    groups = [{"params": [weight], "weight_decay": 0.1} for weight in weights]
    optimizer = timm_optimizer(groups, optim.model_copy(update={"args": args}), optim.lr)
    if args:
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()


def timm_optimizer(
    groups: list[dict], optim: OptimConfig, lr: float | torch.Tensor, *, on_device: bool = False
) -> torch.optim.Optimizer:
    """What ``timm.optim.create_optimizer_v2`` makes of parameter groups that carry their own weight decay.

    ``on_device``: it counts its steps in tensors there, see ``keeps_on_host``. Raises UserError.
    """
    from timm.optim import create_optimizer_v2

    _class_of(optim)
    own = {"capturable": True} if on_device else {}

    def made(args: dict) -> torch.optim.Optimizer:
        return create_optimizer_v2(groups, optim.of_timm, lr=lr, **own, **args)

    try:
        return made(optim.args)
    except Exception as error:  # timm's own code, with a user's values
        raise refused(optim.args, made, error, "optim.args", optim.name) from None


def keeps_on_host(optim: OptimConfig) -> str:
    """Why updates cannot be captured as a CUDA graph; "" where they can: by the exact optimizers, and by torch's own
    that are told to be ``capturable``. Raises UserError for names that timm lacks."""
    if optim.sam_rho:
        return "sharpness-aware updates set random numbers back on the host"
    if not optim.of_timm:
        return ""
    kind = _class_of(optim)
    is_torchs = kind.__module__.startswith("torch.optim.") and "capturable" in inspect.signature(kind).parameters
    return "" if is_torchs else f"{optim.name} keeps numbers of a step on the host"


def _class_of(optim: OptimConfig) -> type[torch.optim.Optimizer]:
    """Raises UserError for names that timm lacks, what cannot be stepped here, and arguments that it does not take."""
    from timm.optim import get_optimizer_class, list_optimizers

    name, known = optim.of_timm, list_optimizers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(f'timm:{own}' for own in near)}?" if near else f"timm has {', '.join(known)}"
        raise UserError(f"optim.name is {brief(optim.name)}, which timm does not have; {hint}")
    for part, why in NOT_HERE.items():
        if name.startswith(part):
            raise UserError(f"optim.name is {optim.name}, which {why}; choose another one")
    kind = get_optimizer_class(name, bind_defaults=False)
    taken = [own for own in inspect.signature(kind).parameters if own not in (*SET_ELSEWHERE, *BY_ENGINE)]
    for key in optim.args:
        if key in SET_ELSEWHERE:
            raise UserError(f"optim.args.{key} cannot be set; set optim.{SET_ELSEWHERE[key]}")
        if key in BY_ENGINE:
            raise UserError(f"optim.args.{key} cannot be set: the engine decides it")
        if key not in taken:
            near = difflib.get_close_matches(str(key), taken, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(taken)}"
            raise UserError(f"optim.args.{brief(key)} is nothing that {optim.name} takes; {hint}")
    check_kinds(optim.args, inspect.signature(kind).parameters, "optim.args", optim.name)
    return kind
