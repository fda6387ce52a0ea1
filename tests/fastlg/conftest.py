"""A tiny real task every end-to-end test may train on: three classes of textured squares, as image folders."""

from __future__ import annotations

import sys

import pytest
import torch
from made_images import write_images
from tiny_project import write_project


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """root/train and root/test with 3 classes; 26 and 11 images a class, sizes differ by class."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", per_class=26, seed=0)
    write_images(root / "test", per_class=11, seed=1)
    return root


@pytest.fixture
def project(tmp_path, image_folder, monkeypatch):
    """A working folder with student.yaml and teacher.yaml; nothing is written outside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTLG_CACHE", str(tmp_path / "cache"))
    write_project(tmp_path, image_folder)
    return tmp_path


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory, image_folder):
    """The same for tests that start processes; one folder per test file, so that they share a teacher."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, image_folder)
    return folder


@pytest.fixture
def here(shared_project, monkeypatch):
    """The working folder of all tests of a file, so that store and teacher are made once."""
    monkeypatch.chdir(shared_project)
    monkeypatch.setenv("FASTLG_CACHE", str(shared_project / "cache"))
    return shared_project


@pytest.fixture
def fastlg(monkeypatch, capfd):
    """Runs the command in this process: fastlg("train", "x.yaml") -> (exit status, stdout, stderr)."""
    from fastlg.cli import main

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["fastlg", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as leave:
            status = leave.code or 0
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def forked_runs(monkeypatch):
    """The runs of many that the command starts are forked: for tests of what becomes of them, not of how they start."""
    from forked_runs import ForkingSubprocess

    monkeypatch.setattr("fastlg.commands.many.pool.subprocess", ForkingSubprocess)


@pytest.fixture(autouse=True)
def one_thread():
    """Two test processes on two cores must not fight; results do not depend on it within a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
