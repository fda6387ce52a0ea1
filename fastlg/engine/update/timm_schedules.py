"""Learning rate schedules by their names in timm (``optim.schedule: timm:step``), as functions of the epoch."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping

import torch

from fastlg.config import OptimConfig
from fastlg.engine.update.values import check_kinds, refused
from fastlg.errors import UserError, brief

MOST = 2  # times optim.lr, of any epoch's rate; timm's noise stays below
NAMES = ("constant", "cosine", "multistep", "poly", "rsqrt", "step", "tanh", "wsd")
SET_ELSEWHERE = {
    "min_lr": "optim.min_lr",
    "warmup_epochs": "optim.warmup_epochs",
    "warmup_lr": "optim.warmup_factor",
    "sched": "optim.schedule",
}
NOT_TAKEN = ("optimizer", "step_on_epochs", "updates_per_epoch", "plateau_mode", "patience_epochs")


def timm_rates(optim: OptimConfig) -> Callable[[int], float]:
    """Learning rate of each 0-based epoch, as ``timm.scheduler.create_scheduler_v2`` makes it for epochs.

    Noise included, it is a function of the epoch alone, so that a resumed run needs nothing of it. Raises UserError for
    names and arguments that timm does not take, and for schedules that last longer or shorter than the run.
    """
    from timm.scheduler import create_scheduler_v2

    name = optim.schedule_of_timm
    _check(optim, name, inspect.signature(create_scheduler_v2).parameters)
    single = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim.lr)

    def made(args: dict):
        found = create_scheduler_v2(
            single,
            name,
            min_lr=optim.min_lr,
            warmup_epochs=optim.warmup_epochs,
            warmup_lr=optim.warmup_factor * optim.lr,
            **{"num_epochs": optim.epochs, **args},
        )
        found[0].step(optim.epochs - 1)
        return found

    try:
        scheduler, epochs = made(optim.schedule_args)
    except Exception as error:  # timm's own code, with a user's values
        raise refused(optim.schedule_args, made, error, "optim.schedule_args", optim.schedule) from None
    if epochs != optim.epochs:
        raise UserError(
            f"optim.schedule {optim.schedule} with optim.schedule_args {brief(optim.schedule_args)} lasts {epochs} "
            f"epochs, but optim.epochs is {optim.epochs}; set optim.epochs={epochs} with "
            f"optim.schedule_args.num_epochs={optim.schedule_args.get('num_epochs', optim.epochs)}"
        )

    def rate(epoch: int) -> float:
        scheduler.step(epoch)
        return float(single.param_groups[0]["lr"])

    for epoch in range(optim.epochs):
        if not 0 <= rate(epoch) <= MOST * optim.lr:
            raise UserError(
                f"optim.schedule {optim.schedule} with optim.schedule_args {brief(optim.schedule_args)} has a rate of "
                f"{rate(epoch):g} in epoch {epoch + 1}; mend the arguments so that it lies between 0 and "
                f"{MOST} times optim.lr, {optim.lr:g}"
            )
    return rate


def _check(optim: OptimConfig, name: str, known: Mapping[str, inspect.Parameter]) -> None:
    if name == "plateau":
        raise UserError(
            f"optim.schedule is {optim.schedule}, which follows what is measured; a rate here is a function of the "
            "epoch alone: choose another one"
        )
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f"did you mean timm:{near[0]}?" if near else f"choose timm:{', timm:'.join(NAMES)}"
        raise UserError(f"optim.schedule is {brief(optim.schedule)}, which timm does not have; {hint}")
    for key in optim.schedule_args:
        if key in SET_ELSEWHERE:
            raise UserError(f"optim.schedule_args.{key} cannot be set; set {SET_ELSEWHERE[key]}")
        if key in NOT_TAKEN:
            raise UserError(f"optim.schedule_args.{key} cannot be set: a learning rate here is one throughout an epoch")
        if key not in known:
            taken = [own for own in known if own not in (*SET_ELSEWHERE, *NOT_TAKEN)]
            near = difflib.get_close_matches(str(key), taken, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(taken)}"
            raise UserError(f"optim.schedule_args.{brief(key)} is nothing that timm's schedules take; {hint}")
    check_kinds(optim.schedule_args, known, "optim.schedule_args", optim.schedule)
