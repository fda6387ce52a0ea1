"""Pictures, TensorBoard and sheets never end a run: whatever they raise is one warning line, after the summary."""

from __future__ import annotations

import errno
import json
import shutil
import sys
import threading
from types import SimpleNamespace

import pytest

from fastlg.batch import Batch
from fastlg.commands import prepare
from fastlg.config import Config
from fastlg.errors import RunError
from fastlg.run.curves import plot_curves
from fastlg.run.report import Log, read_metrics

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
    from fastlg.run import run

    seen = []
    monkeypatch.setattr(
        run, "plot_curves", lambda _, path, *__, **___: seen.append((path.parent / "summary.json").is_file())
    )
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


# ---- every place that writes a picture or a log, and everything that it may raise

RAISED = [
    FULL,
    OSError(errno.EROFS, "Read-only file system"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError("no number at all"),
    ValueError("bad\nmore\x1b[31m"),
    KeyError("key"),
    AttributeError("a library of another version"),
    MemoryError(),
    RuntimeError(""),
]


@pytest.fixture
def one_warning(capfd):
    """Call it at the end: what the process said is one line, a warning, and no error."""

    def check(error: Exception) -> str:
        out, err = capfd.readouterr()
        lines = out.splitlines()
        assert err == "" and len(lines) == 1 and lines[0].startswith("warning  ") and lines[0].isprintable(), out + err
        assert f"({type(error).__name__})" in lines[0]
        return lines[0]

    capfd.readouterr()
    return check


def raising(error: Exception):
    def fails(*arguments, **more):
        raise error

    return fails


IDS = [f"{type(error).__name__}-{getattr(error, 'errno', '')}" for error in RAISED]


@pytest.mark.parametrize("error", RAISED, ids=IDS)
@pytest.mark.parametrize("place", ["__init__", "add_scalar", "close", "thread", "flush"])
def test_metrics_are_whole_whatever_tensorboard_raises(tmp_path, monkeypatch, one_warning, place, error):
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard import SummaryWriter

    def log_three():
        log = Log(tmp_path, after_step=-1, tensorboard=True)
        if place in ("thread", "flush"):
            monkeypatch.setattr(RecordWriter, {"thread": "write"}.get(place, place), raising(error))
        for step in range(3):
            log.write("train", step, loss=step)
        log.close()

    hook = threading.excepthook
    if place not in ("thread", "flush"):
        monkeypatch.setattr(SummaryWriter, place, raising(error))
    log_three()
    assert "metrics.jsonl holds the same numbers" in one_warning(error)
    assert [row["loss"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    assert threading.excepthook is hook


@pytest.mark.parametrize("error", RAISED, ids=IDS)
def test_no_curves_are_left_half_drawn_whatever_is_raised(tmp_path, monkeypatch, one_warning, error):
    from matplotlib.figure import Figure

    def fails(self, path, **more):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(Figure, "savefig", fails)
    assert plot_curves({"run": ROWS}, tmp_path / "c.png") is False
    one_warning(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", RAISED, ids=IDS)
def test_a_preview_warns_and_an_asked_for_sheet_is_one_line_whatever_is_raised(
    tmp_path, monkeypatch, one_warning, error
):
    monkeypatch.setattr(prepare, "open_stores", lambda _: SimpleNamespace(train=None))
    monkeypatch.setattr(
        prepare, "new_loader", lambda *_, **__: SimpleNamespace(epoch=lambda _: iter([Batch(*[[]] * 5)]))
    )
    monkeypatch.setattr(prepare, "make_views", lambda *_: lambda *_: None)
    monkeypatch.setattr(prepare, "contact_sheet", raising(error))
    prepare.preview_store(tmp_path / "store", tmp_path / "sheet.png")
    out = one_warning(RunError())
    assert "the store" in out and "is whole" in out
    config = Config.model_validate({"data": {"source": "x"}, "model": {"name": "resnet20"}})
    monkeypatch.setattr(prepare, "load_trained", lambda _: (config, None, None))
    with pytest.raises(RunError, match=r"^cannot (write|draw) .*views\.png: ") as caught:
        prepare.preview_run(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("in_the_way", ["tensorboard", "curves.png"])
def test_a_run_outlives_what_lies_in_the_way_of_its_pictures(project, fastlg, in_the_way):
    assert fastlg(*TRAIN, "log.tensorboard=true")[0] == 0
    folder = project / "runs" / "student"
    (folder / "summary.json").unlink()
    path = folder / in_the_way
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("a file")
    else:
        path.unlink()
        path.mkdir()
        (path / "x").write_text("not empty")
    status, out, err = fastlg(*TRAIN, "log.tensorboard=true")
    assert status == 0 and err == "" and (folder / "summary.json").is_file()
    assert len([line for line in out.splitlines() if line.startswith("warning")]) == 1, out
