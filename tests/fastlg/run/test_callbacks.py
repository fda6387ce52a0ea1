"""Callbacks: who is told what and when, at no cost where nobody listens, and who may end a run."""

from __future__ import annotations

import json

import pytest
import torch
from engine_cases import Watch

from fastlg import callbacks as protocol
from fastlg.assemble import assemble
from fastlg.callbacks import HOOKS, Callbacks
from fastlg.config import load_config
from fastlg.data.stores import open_stores
from fastlg.errors import RunError, UserError
from fastlg.ranks.stop import StopRequest
from fastlg.run import run as running
from fastlg.run.run import Run
from fastlg.train import batches, train

ALONE = ["teacher=null", "optim.epochs=2"]


class Spy:
    """Notes every event; ``fails`` names the hook that raises."""

    def __init__(self, fails: str = "", may_fail: bool = False):
        self.seen, self.fails, self.may_fail = [], fails, may_fail

    def of(self, hook: str) -> list:
        return [event for name, event in self.seen if name == hook]


def _noting(hook: str):
    def told(self, event) -> None:
        self.seen.append((hook, event))
        if hook == self.fails:
            raise ValueError("no room\nleft")

    return told


for name in HOOKS:
    setattr(Spy, name, _noting(name))


def rows(project, kind):
    lines = (project / "runs" / "student" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_events_come_in_order_and_hold_what_the_record_holds(project):
    spy = Spy()
    summary = train(load_config("student.yaml", ALONE), callbacks=[spy])
    steps = ["on_step_end", "on_step_end", "on_report"] * 2  # 4 steps an epoch, a report every 2
    epoch = [*steps, "on_evaluate", "on_epoch_end"]
    assert [hook for hook, _ in spy.seen] == ["on_start", *epoch, *epoch, "on_end"]
    assert [event.step for event in spy.of("on_step_end")] == list(range(1, 9))
    assert [(event.epoch, event.step) for event in spy.of("on_epoch_end")] == [(1, 4), (2, 8)]
    for event, row in zip(spy.of("on_report"), rows(project, "train"), strict=True):
        assert (event.epoch, event.step) == (row["epoch"], row["step"])
        assert event.values == {key: value for key, value in row.items() if key not in ("kind", "step", "epoch")}
    for event, row in zip(spy.of("on_evaluate"), rows(project, "eval"), strict=True):
        assert {key: getattr(event, key) for key in ("epoch", "step", "top1", "top5", "loss", "count")} == {
            key: value for key, value in row.items() if key != "kind"
        }
    losses = [event.out.loss.item() for event in spy.of("on_step_end")]
    means = [sum(losses[:4]) / 4, sum(losses[4:]) / 4]
    assert [event.values["loss"] for event in spy.of("on_epoch_end")] == pytest.approx(means, rel=1e-6)
    assert spy.of("on_end")[0].summary == summary and spy.of("on_evaluate")[-1].best == summary["top1_best"]
    assert spy.of("on_start")[0].config["optim"]["epochs"] == 2 and spy.of("on_start")[0].step == 0

    again = Spy()
    assert train(load_config("student.yaml", ALONE), callbacks=[again]) == summary and again.seen == []


@pytest.fixture
def stepping(project):
    """``stepping(callbacks)``: a run and its first batch, ready for steps."""
    open_runs = []

    def make(callbacks):
        config = load_config("student.yaml", [*ALONE, "log.every_steps=1000", "augment.rand_augment=null"])
        parts = assemble(config, open_stores(config.data), None, None)
        parts.unit.train()
        run = Run(parts, StopRequest(), callbacks=callbacks)
        steps = run.steps(batches(parts, 0))
        open_runs.append((run, steps))
        return run, parts, next(steps)

    yield make
    for run, steps in open_runs:
        steps.close()
        run.close()


def one_step(run, parts, pair):
    run.after_step(parts.engine.step(*pair, parts.step_total(run.position.batch)))


@pytest.mark.parametrize("listens", [False, True])
def test_telling_of_a_step_asks_the_device_for_nothing(listens, stepping):
    spy = Spy()
    run, parts, pair = stepping(Callbacks([spy]) if listens else None)
    one_step(run, parts, pair)
    with Watch() as watch:
        one_step(run, parts, pair)
        one_step(run, parts, pair)
    assert watch.seen == []
    assert len(spy.of("on_step_end")) == (3 if listens else 0)
    with Watch() as watch:
        (spy.of("on_step_end")[-1].out.loss if listens else torch.ones(())).item()
    assert watch.seen, "the watch sees nothing: this test would pass whatever a step does"


def test_a_step_that_nobody_listens_to_makes_no_event(stepping, monkeypatch):
    class Other:
        def on_epoch_end(self, event):
            raise AssertionError

    def made(*_):
        raise AssertionError("an event was made")

    monkeypatch.setattr(running, "StepEnd", made)
    monkeypatch.setattr(protocol.Callbacks, "tell", made)
    for callbacks in (None, Callbacks([Other()])):
        run, parts, pair = stepping(callbacks)
        one_step(run, parts, pair)
        assert run.step == 1
        run.position.batch = 0


@pytest.mark.parametrize("hook", HOOKS)
def test_a_users_error_ends_the_run_with_its_name(hook, project):
    with pytest.raises(RunError, match=rf"^callback Spy\.{hook} failed: no room \(ValueError\)$") as failure:
        train(load_config("student.yaml", ALONE), callbacks=[Spy(hook)])
    assert isinstance(failure.value.__cause__, ValueError), "the traceback of the user's own code is kept"
    assert (project / "runs" / "student" / "summary.json").exists() == (hook == "on_end")


@pytest.mark.parametrize("hook", HOOKS)
def test_what_may_fail_is_one_warning_and_is_left_alone(hook, project, capfd):
    logger, other = Spy(hook, may_fail=True), Spy()
    train(load_config("student.yaml", ALONE), callbacks=[logger, other])
    assert len(logger.of(hook)) == 1 and logger.seen[-1][0] == hook, "it was called again"
    assert len(other.seen) == 1 + 2 * 8 + 1
    told = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning  Spy")]
    assert told == [f"warning  Spy.{hook} failed: no room (ValueError); it is not called again, the run goes on"]


def test_a_run_that_breaks_tells_why(project):
    class Breaks:
        def on_step_end(self, event):
            if event.step == 3:
                raise KeyError("mine")

    spy = Spy()
    with pytest.raises(RunError, match="Breaks.on_step_end failed"):
        train(load_config("student.yaml", ALONE), callbacks=[spy, Breaks()])
    (ended,) = spy.of("on_end")
    assert ended.summary is None and isinstance(ended.error, RunError)


@pytest.mark.parametrize(
    ("given", "words"),
    [([Spy], "Spy is a class; give an object of it"), ([object()], "none of the methods"), (Spy(), "give a list")],
)
def test_what_would_never_be_called_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        Callbacks(given)
