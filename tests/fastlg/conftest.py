"""A tiny real task every end-to-end test may train on: three classes of textured squares, as image folders."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from made_images import write_images

TEACHER = {
    "augment": {"rand_augment": None, "erase": 0.0, "crop_scale": [0.5, 1.0]},
    "data": {"source": "set by the student"},
    "model": {"name": "resnet20", "image_size": 16},
    "optim": {"name": "sgd", "lr": 0.05, "min_lr": 0.0, "warmup_epochs": 0, "epochs": 1, "global_batch_size": 20},
}
STUDENT = {
    "run": {"seed": 3},
    "data": {"workers": 0},
    "model": {
        "name": "vit_tiny_patch16_224",
        "image_size": 32,
        "blocks": [0, 1, 2],
        "args": {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
    },
    "optim": {"lr": 1.0e-3, "warmup_epochs": 1, "epochs": 2, "global_batch_size": 16},
    "log": {"every_steps": 2, "eval_batch_size": 25, "tensorboard": False},
}


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """root/train and root/test with 3 classes; 26 and 11 images a class, sizes differ by class."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", per_class=26, seed=0)
    write_images(root / "test", per_class=11, seed=1)
    return root


def write_project(folder: Path, image_folder: Path) -> None:
    """student.yaml and teacher.yaml on the tiny images."""
    data = {**STUDENT["data"], "source": str(image_folder)}
    student = {**STUDENT, "data": data, "teacher": {"recipe": "teacher.yaml"}}
    (folder / "student.yaml").write_text(yaml.safe_dump(student))
    (folder / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))


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


@pytest.fixture(autouse=True)
def one_thread():
    """Two test processes on two cores must not fight; results do not depend on it within a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
