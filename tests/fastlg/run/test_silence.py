"""Off a terminal a line is said at least every 10 s, whatever a run is at; by an injected clock, never a real one."""

from __future__ import annotations

import threading
from importlib import import_module

import pytest

from fastlg.analysis import go as look
from fastlg.commands import cache, compare, doctor, evaluate, export, models, prepare
from fastlg.commands.hand_on import hub, predict
from fastlg.commands.line import early
from fastlg.commands.report import go as page
from fastlg.engine.plain import PlainEngine
from fastlg.files.verify import Verification
from fastlg.ranks import pulse
from fastlg.ranks import say as saying
from fastlg.run import checkpoint, report, run

training = import_module("fastlg.train")  # the module; the attribute of the package is the verb


class Clock:
    """Stands still but for those who wait; ``at`` holds what somebody else says meanwhile, by its second."""

    def __init__(self, seconds: float, at: dict[float, str] | None = None):
        self.now, self.end, self.others = 1000.0, 1000.0 + seconds, {1000.0 + s: line for s, line in (at or {}).items()}

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        until = self.now + seconds
        for due in sorted(self.others):
            if due <= min(until, self.end):
                self.now = due
                pulse.say(self.others.pop(due))
        self.now = min(until, self.end)
        return until > self.end


@pytest.mark.parametrize(
    ("seconds", "others", "said"),
    [
        (9.9, {}, []),
        (35, {}, [(10, "at it"), (20, "at it"), (30, "at it")]),
        (25, {4: "loss 1"}, [(4, "loss 1"), (14, "at it"), (24, "at it")]),
        (29, {9: "a", 18: "b", 27: "c"}, [(9, "a"), (18, "b"), (27, "c")]),
    ],
)
def test_a_silence_lasts_ten_seconds_at_most(monkeypatch, seconds, others, said):
    clock, lines = Clock(seconds, others), []
    monkeypatch.setattr(pulse, "time", clock)
    monkeypatch.setattr(saying, "time", clock)
    monkeypatch.setattr(saying.console, "print", lambda line, markup: lines.append((clock.now - 1000, line)))
    monkeypatch.setattr(saying.Spoken, "at", 0.0)
    own = pulse.Pulse(lambda: "at it")
    own.is_over = clock
    monkeypatch.setattr(pulse.Pulse, "_inside", [own])
    own._run()
    assert lines == said
    own.about, lines[:] = (lambda: ""), []  # it waits for others that speak themselves
    clock.now, clock.end = clock.now + 1, clock.now + 36
    own._run()
    assert lines == []


def test_the_innermost_speaks_and_no_thread_is_left(monkeypatch):
    said, inner_spoke = [], threading.Event()

    def note(line, markup):
        said.append(line)
        if line == "inner":
            inner_spoke.set()

    monkeypatch.setattr(pulse, "SILENCE_S", 0.01)
    monkeypatch.setattr(saying.console, "print", note)
    before = threading.active_count()
    with pulse.Pulse(lambda: "outer"), pulse.Pulse(lambda: "inner"):
        assert inner_spoke.wait(60) and threading.active_count() == before + 1
    count = len(said)
    assert threading.active_count() == before and set(said) <= {"outer", "inner"}
    with report.Bar("epoch 1/2", 7) as bar:
        bar.advance()
    assert pulse.Pulse._inside == [] and len(said) - count <= 1


def test_a_terminal_and_the_other_ranks_are_left_alone(monkeypatch):
    for name, holder, value in (("speaks", pulse, False), ("isatty", pulse.sys.stdout, True)):
        with monkeypatch.context() as patched:
            patched.setattr(holder, name, lambda value=value: value)
            with pulse.Pulse(lambda: "never") as own:
                assert own.thread is None


HELD = {
    # what takes its time: (where, its name, what is said meanwhile)
    "making the store": (training, "open_stores", "starting runs/student"),
    "building the parts": (training, "assemble", "starting runs/student"),
    "the first step": (PlainEngine, "step", "epoch 1/1  step 0 of 2"),
    "a batch that comes late": (training.Parts, "step_total", "epoch 1/1  step 0 of 2"),
    "reading files again": (Verification, "wait", "at work  runs/student"),
    "testing": (run, "evaluate", "epoch 1/1  testing"),
    "saving": (checkpoint, "save_checkpoint", "at work  runs/student"),
    "drawing": (run, "plot_curves", "at work  runs/student"),
}


@pytest.fixture
def hold(monkeypatch):
    """hold(where, name, line): that part waits until ``line`` was said; with no line the test fails, however fast the
    machine. Each part waits once."""
    spoken, heard = threading.Condition(), []
    original = pulse.say

    def say(line, **more):
        original(line, **more)
        with spoken:
            heard.append(line)
            spoken.notify_all()

    def hold(holder, name, wanted):
        method, is_first = getattr(holder, name), [True]

        def waits(*arguments, **more):
            if is_first:
                is_first.clear()
                with spoken:
                    start = len(heard)
                    assert spoken.wait_for(lambda: wanted in heard[start:], timeout=60), (wanted, heard[start:])
            return method(*arguments, **more)

        monkeypatch.setattr(holder, name, waits)

    monkeypatch.setattr(pulse, "say", say)
    monkeypatch.setattr(pulse, "SILENCE_S", 0.01)
    return hold


def test_whatever_a_run_waits_for_it_says_what_it_is_at(project, fastlg, hold):
    for holder, name, wanted in HELD.values():
        hold(holder, name, wanted)
    status, out, err = fastlg("train", "student.yaml", "teacher=null", "optim.epochs=1", "optim.global_batch_size=39")
    assert status == 0, err
    for _, _, wanted in HELD.values():
        assert wanted in out.splitlines()
    assert pulse.Pulse._inside == []


def test_every_command_that_takes_long_says_what_it_is_at(project, fastlg, hold, image_folder, monkeypatch):
    monkeypatch.setattr(hub, "push", lambda folder, name: "its address")
    monkeypatch.setattr(early, "expect_exporting", lambda *asked: None)
    short = ("student.yaml", "optim.epochs=1", "optim.global_batch_size=39")
    own, image = "runs/student/guided", str(sorted(image_folder.glob("test/*/*"))[0])
    for arguments, holder, name, wanted in (
        (("prepare", image_folder, "store"), prepare, "write_store", f"prepare  {image_folder}"),
        (("compare", *short), compare, "open_stores", "at work  runs/student"),
        (("cache", *short), cache, "open_stores", "caching  the features of student"),
        (("eval", own), evaluate, "load_trained", f"testing  {own}"),
        (("export", own, "out"), export, "export_student", f"export   {own}"),
        (("export", own, "again", "--push-to-hub", "me/it"), hub, "push", "pushing  again to me/it"),
        (("predict", own, image, "--json"), predict, "predictor_of", "predict  0 of 1 images"),
        (("models", "deit_tiny_patch16_224"), models, "described", "building deit_tiny_patch16_224"),
        (("doctor",), doctor, "decide", "at work  fastlg doctor"),
        (("analyze", own, "--images", "2"), look, "measure", f"looking at {own}"),
        (("report", own), page, "run_page", f"report   {own}"),
    ):
        hold(holder, name, wanted)
        status, out, err = fastlg(*arguments)
        beside, result = (err, out) if arguments[0] == "predict" else (out, err)
        assert (status == 0 or arguments[0] == "cache") and wanted in beside.splitlines(), err
        assert "predict  " not in result
    assert pulse.Pulse._inside == []
