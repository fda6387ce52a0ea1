"""A callback that tells a run to Weights & Biases: ``fastlg.train(..., callbacks=[WandbLogger(project="mine")])``."""

from __future__ import annotations

from typing import Any

from fastlg.callbacks import Ended, Evaluated, Report, Started
from fastlg.data.sources.base import import_extra


class WandbLogger:
    """Losses, rates and accuracies by step, the config, and the summary; ``train/loss``, ``eval/top1`` and so on.

    run   a run of wandb's that you began and will end; None: one is begun when the training starts, and ended with it
    init  arguments of ``wandb.init`` for the latter: project (fastlg if not given), name (the run folder's), mode, ...

    It never fails a run (``may_fail``). A resumed training is another run of wandb's, unless ``id`` and ``resume`` say
    otherwise. Raises UserError where wandb is not installed.
    """

    may_fail = True

    def __init__(self, run: Any = None, **init: Any):
        self.run, self.init, self.is_own = run, init, run is None
        self.wandb = import_extra("wandb", "wandb", "WandbLogger") if self.is_own else None

    def on_start(self, event: Started) -> None:
        if self.is_own:
            named = {"project": "fastlg", "name": event.folder.name, "config": event.config}
            self.run = self.wandb.init(**{**named, **self.init})

    def on_report(self, event: Report) -> None:
        values = {f"train/{name}": value for name, value in event.values.items()}
        self.run.log({**values, "epoch": event.epoch}, step=event.step)

    def on_evaluate(self, event: Evaluated) -> None:
        values = {f"eval/{name}": getattr(event, name) for name in ("top1", "top5", "loss", "best")}
        self.run.log({**values, "epoch": event.epoch}, step=event.step)

    def on_end(self, event: Ended) -> None:
        if self.run is None:  # it failed before it started
            return
        for name, value in (event.summary or {}).items():
            self.run.summary[name] = value
        if self.is_own:
            self.run.finish(exit_code=0 if event.error is None else 1)
