"""What a run tells while it goes, to objects of the user's: the whole protocol, and who may fail.

A callback is any object with some of these methods; each takes one event, what it returns is ignored. Rank 0 alone
calls them, in the order they were given. Nothing is told of a run that was complete already, nor of the teacher's.

    on_start(Started)       before the first step, of a resumed run too
    on_step_end(StepEnd)    after every update; its losses lie on the device, and reading one waits for the device
    on_report(Report)       every log.every_steps updates: the row that metrics.jsonl gets
    on_evaluate(Evaluated)  after each pass over the test split, or the validation split where there is one
    on_epoch_end(EpochEnd)  after each epoch, tested (if due) and saved
    on_end(Ended)           at last, whether the run is complete, was stopped or failed

An error in a callback ends the run with a line that names it (RunError, the error as its cause); the last checkpoint
stays. One that has ``may_fail = True``, as the loggers of fastlg.integrations do, never does: its first error is one
warning, and it is not called again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastlg.batch import StepOutput
from fastlg.errors import RunError, UserError, first_line
from fastlg.ranks.say import say

HOOKS = ("on_start", "on_step_end", "on_report", "on_evaluate", "on_epoch_end", "on_end")


class Started(NamedTuple):
    """``config``: nested, as config.yaml has it; ``step``: updates done before, 0 of a new run."""

    folder: Path
    config: dict[str, Any]
    step: int


class StepEnd(NamedTuple):
    """``epoch`` from 0, ``step``: updates done; ``out``: losses and counts of this rank's part, on the device."""

    epoch: int
    step: int
    learning_rate: float
    out: StepOutput


class Report(NamedTuple):
    """``values``: means since the last report: loss, loss_cls, loss_guidance, top1, lr, images_per_s."""

    epoch: int
    step: int
    values: dict[str, float]


class Evaluated(NamedTuple):
    """The test split after ``epoch`` epochs: top-1 and top-5 in percent, mean cross entropy, images; ``best`` top-1.

    Of a run without labels by its nearest training images, as ``measured_by`` in its summary says.
    """

    epoch: int
    step: int
    top1: float
    top5: float
    loss: float
    count: int
    best: float


class EpochEnd(NamedTuple):
    """``epoch``: epochs done, of ``epochs``; ``values``: means over the training images of the epoch."""

    epoch: int
    epochs: int
    step: int
    values: dict[str, float]


class Ended(NamedTuple):
    """``summary``: summary.json's content; None of a run that was stopped or failed, ``error``."""

    summary: dict[str, Any] | None
    error: BaseException | None


class Callbacks:
    """Calls the methods that the given objects have. ``on_step_end`` is empty where none has it: nothing is made then.

    Raises UserError for an object without any of them, which would never be called.
    """

    def __init__(self, given: Sequence[object] = ()):
        if not isinstance(given, (list, tuple)):
            raise UserError(f"callbacks is a {type(given).__name__}; give a list of objects")
        for one in given:
            if isinstance(one, type):
                raise UserError(f"callback {_name(one)} is a class; give an object of it: {one.__name__}()")
            if not any(callable(getattr(one, hook, None)) for hook in HOOKS):
                raise UserError(f"callback {_name(one)} has none of the methods {', '.join(HOOKS)}")
        self.given = list(given)
        self.on_step_end = self.having("on_step_end")

    def tell(self, hook: str, event: tuple) -> None:
        """Calls ``hook`` of all that have it. Raises RunError that names the one that failed."""
        for one in self.having(hook):
            try:
                getattr(one, hook)(event)
            except Exception as error:
                self._failed(one, hook, error)

    def having(self, hook: str) -> list[object]:
        """The objects that have this method."""
        return [one for one in self.given if callable(getattr(one, hook, None))]

    def _failed(self, one: object, hook: str, error: Exception) -> None:
        what = f"{_name(one)}.{hook} failed: {first_line(error)} ({type(error).__name__})"
        if not getattr(one, "may_fail", False):
            raise RunError(f"callback {what}") from error
        say(f"warning  {what}; it is not called again, the run goes on")
        self.given = [other for other in self.given if other is not one]
        self.on_step_end = self.having("on_step_end")


def _name(one: object) -> str:
    return (one if isinstance(one, type) else type(one)).__qualname__
