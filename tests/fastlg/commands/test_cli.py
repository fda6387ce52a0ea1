"""What the commands print and how they leave."""

from __future__ import annotations

import os
import signal
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest

from fastlg.ranks.stop import Stopped, StopRequest

ROOT = Path(__file__).resolve().parents[3]


def test_doctor_names_every_extra_and_the_command_that_adds_it(fastlg, monkeypatch):
    import fastlg.commands.doctor as doctor

    status, out, err = fastlg("doctor")
    assert status == 0 and "torch" in out and "timm" in out
    monkeypatch.setattr(doctor, "is_installed", lambda name: False)
    status, out, err = fastlg("doctor")
    assert status == 0
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in declared.keys() - {"dev", "all", "docs"}:  # what a run can use; the site is built from a checkout
        assert f"pip install 'fastlg[{extra}]'" in out


@pytest.mark.parametrize("rank", [None, "0", "1"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trian",), "'train'"),
        (("train",), "CONFIG"),
        (("train", "quickstart", "--gpu"), "--gpus"),
        (("train", "quickstart", "--gpus", "two"), "--gpus"),
    ],
)
def test_unknown_commands_and_options_are_one_line_of_rank_0_and_2(fastlg, monkeypatch, arguments, says, rank):
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
    status, out, err = fastlg(*arguments)
    assert status == 2 and out == ""
    assert err == "" if rank == "1" else (err.startswith("fastlg: ") and says in err and err.count("\n") == 1), err


def test_help_and_no_command_at_all_show_the_commands(fastlg):
    for arguments, wanted in ((("--help",), 0), ((), 2)):
        status, out, _ = fastlg(*arguments)
        assert status == wanted and "compare" in out


ENDS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "status"), ENDS)
def test_a_stop_request_waits_for_the_loop_and_carries_the_shells_status(number, status, request):
    request.addfinalizer(partial(signal.signal, number, signal.signal(number, signal.SIG_DFL)))  # as without nohup
    before = signal.getsignal(number)
    with StopRequest() as stop:
        stop.raise_if_set()
        signal.raise_signal(number)
        with pytest.raises(Stopped) as stopped:
            stop.raise_if_set()
    assert stopped.value.status == status
    assert signal.getsignal(number) == before


def test_prepare_writes_a_store_that_train_reads_and_pictures_of_the_views(project, fastlg, image_folder):
    import json

    import numpy as np
    from PIL import Image

    status, out, err = fastlg("prepare", image_folder, "store", "--preview", "sheet.png")
    assert status == 0, err
    manifest = json.loads((project / "store" / "manifest.json").read_text())
    assert [manifest["splits"][split]["count"] for split in ("train", "test")] == [78, 33]
    sheet = np.asarray(Image.open(project / "sheet.png"))
    assert len(np.unique(sheet)) > 200, "the sheet is blank"
    assert fastlg("train", "student.yaml", "data.source=store", "teacher=null", "optim.epochs=1")[0] == 0
    status, out, err = fastlg("analyze", "runs/student", "--views")
    assert status == 0 and (project / "runs" / "student" / "views.png").is_file(), err
    status, _, err = fastlg("prepare", "nowhere", "store2")
    assert status == 2 and "nowhere" in err and not (project / "store2").exists()


@pytest.mark.parametrize(("options", "download"), [((), True), (("--no-download",), False)])
def test_prepare_fetches_a_source_unless_told_not_to(project, fastlg, monkeypatch, options, download):
    from torchvision import datasets

    asked = []

    def cifar(root, download, train):
        asked.append(download)
        raise RuntimeError("Dataset not found or corrupted.")

    monkeypatch.setattr(datasets, "CIFAR10", cifar)
    status, out, err = fastlg("prepare", "torchvision:CIFAR10", "store", *options)
    assert status == 2 and asked == [download]
    assert ("prepare: --download" in err) is not download and not (project / "store").exists()


def test_ctrl_c_before_a_run_is_one_line(fastlg, monkeypatch):
    from fastlg.commands import doctor

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "report", interrupted)
    assert fastlg("doctor") == (130, "", "fastlg: stopped by SIGINT\n")


def test_two_signals_at_once_are_one_request(monkeypatch):
    """Some schedulers send two; Python prints an error of its own for one whose handler is gone."""
    reported, both = [], {signal.SIGTERM, signal.SIGINT}
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    with StopRequest() as stop:
        signal.pthread_sigmask(signal.SIG_BLOCK, both)
        for number in both:
            os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        assert stop.poll() and stop.signum in both
    assert reported == []
