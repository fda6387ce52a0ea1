"""Pictures, TensorBoard and sheets never end a run: whatever they raise is one warning line, after the summary."""

from __future__ import annotations

import errno
import json
import sys

import pytest

from fastlg import report
from fastlg.analysis.plots import plot_curves

ROWS = [
    {"kind": "train", "step": 1, "epoch": 0, "loss_cls": 1.0},
    {"kind": "eval", "step": 1, "epoch": 1, "top1": 10.0},
]
TRAIN = ("train", "student.yaml", "teacher=null", "optim.epochs=1", "optim.global_batch_size=39")


@pytest.mark.parametrize("name", ["a$5_b_c$6", "price$1^$2", "_under", "犬", "x\x1b[31m", r"%s {} \frac{1}{0}", "$"])
def test_any_name_is_drawn_as_it_is_written(tmp_path, monkeypatch, recwarn, name):
    import matplotlib
    from matplotlib.text import Text

    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)  # a user's matplotlibrc
    drawn = set()
    monkeypatch.setattr(Text, "_get_layout", _noting(Text._get_layout, drawn))
    assert plot_curves({name: ROWS, "other": ROWS}, tmp_path / "c.png")
    plain = name.replace("\x1b", r"\x1b")
    assert {plain, f"{plain} 10.0"} <= {text for text, is_plain in drawn if is_plain}
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"] and not list(recwarn)


def _noting(layout, drawn):
    def noting(self, renderer):
        drawn.add((self.get_text(), not self.get_usetex() and not self.get_parse_math()))
        return layout(self, renderer)

    return noting


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("picture", ValueError("bad\nmore")),
        ("picture", FULL),
        ("open", TypeError("protobuf")),
        ("write", FULL),
        ("thread", FULL),
        ("close", MemoryError()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_run_outlives_whatever_a_picture_or_tensorboard_raises(project, fastlg, monkeypatch, place, error):
    from torch.utils import tensorboard

    def fails(*arguments, **more):
        raise error

    if place == "picture":
        from matplotlib.figure import Figure

        monkeypatch.setattr(Figure, "savefig", fails)
    elif place == "thread":  # of TensorBoard's, which prints a traceback where nobody looks after it
        from tensorboard.summary.writer.record_writer import RecordWriter

        monkeypatch.setattr(RecordWriter, "write", fails)
    else:
        method = {"open": "__init__", "write": "add_scalar", "close": "close"}[place]
        monkeypatch.setattr(tensorboard.SummaryWriter, method, fails)
    status, out, err = fastlg(*TRAIN, "log.tensorboard=true")
    assert status == 0 and err == ""
    warnings = [line for line in out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and type(error).__name__ in warnings[0] and "metrics.jsonl" in warnings[0]
    summary = json.loads((project / "runs" / "student" / "summary.json").read_text())
    assert summary["epochs"] == 1 and not list((project / "runs").rglob("*.partial"))


def test_the_summary_is_there_before_the_picture_is_drawn(project, fastlg, monkeypatch):
    from fastlg import run

    seen = []
    monkeypatch.setattr(run, "plot_curves", lambda runs, path: seen.append((path.parent / "summary.json").is_file()))
    assert fastlg(*TRAIN)[0] == 0 and seen == [True]


def test_tensorboard_that_cannot_be_imported_is_one_line(project, fastlg, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    status, out, _ = fastlg(*TRAIN, "log.tensorboard=true")
    assert status == 0 and out.count("TensorBoard is not installed") == 1


@pytest.mark.parametrize("path", ["sheet", "sheet.xyz", "nowhere/sheet.png", "images/train"])
def test_a_preview_that_cannot_be_written_is_refused_before_anything_is_prepared(project, fastlg, image_folder, path):
    (project / "images" / "train").mkdir(parents=True)
    status, _, err = fastlg("prepare", image_folder, "store", "--preview", path)
    assert status == 2 and path in err and err.count("\n") == 1 and not (project / "store").exists()


def test_a_sheet_that_fails_loses_no_store_and_one_that_was_asked_for_alone_is_one_line(
    project, fastlg, image_folder, monkeypatch
):
    from PIL import Image

    assert fastlg(*TRAIN)[0] == 0
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space")))
    status, out, err = fastlg("prepare", image_folder, "store", "--preview", "sheet.png")
    assert status == 0 and "warning  the picture sheet.png failed: " in out and "store is whole" in out, err
    status, out, err = fastlg("analyze", "runs/student", "--views")
    assert (
        status == 1 and err.startswith("fastlg: cannot write runs/student/views.png: No space") and err.count("\n") == 1
    )


def test_off_a_terminal_long_silences_are_broken(monkeypatch):
    said = []
    monkeypatch.setattr(report, "SILENCE_S", 0.02)
    monkeypatch.setattr(report.console, "print", lambda line, markup: said.append(line))
    with report.Bar("epoch 1/2", 7) as bar:
        bar.advance()
        while len(said) < 3:  # a step that takes its time
            bar.pulse.join(0.01)
        bar.advance()
    assert set(said[1:]) <= {"epoch 1/2  step 1 of 7", "epoch 1/2  step 2 of 7"}
    assert not bar.pulse.is_alive()


def test_what_was_said_anyway_breaks_the_silence(monkeypatch):
    said = []
    monkeypatch.setattr(report.console, "print", lambda line, markup: said.append(line))
    report.say("just now")
    with report.Bar("epoch 1/2", 7) as bar:
        bar.show("loss 1")
    assert said == ["just now", "epoch 1/2  loss 1"]
