"""One comparison on images whose classes are called what a page must not obey, and its reports."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from made_images import write_images
from tiny_project import write_project

from fastlg.commands.compare import compare
from fastlg.commands.report.go import write_report
from fastlg.config import load_config

HOSTILE = {"blue": "<script>alert(1)", "green": "a&b\"'<b>x"}


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """folder, where compare trained ``both`` and two reports lie; ``seen``: the first (views, batch) of each run."""
    import importlib

    loop = importlib.import_module("fastlg.train")
    folder, seen = tmp_path_factory.mktemp("report"), {}
    for split, count in (("train", 26), ("test", 11)):
        write_images(folder / "images" / split, per_class=count, seed=len(split))
        for name, other in HOSTILE.items():
            (folder / "images" / split / name).rename(folder / "images" / split / other)
    for number in range(4):  # mistakes that every network makes
        one, other = (folder / "images/test" / name / f"{number:03d}.png" for name in ("red", HOSTILE["blue"]))
        swapped = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(swapped)
    write_project(folder, folder / "images")
    batches = loop.batches

    def recorded(parts, epoch, start=0):
        for views, batch in batches(parts, epoch, start):
            seen.setdefault(parts.config.run.name, (views, batch))
            yield views, batch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FASTLG_CACHE", str(folder / "cache"))
        patch.setattr(loop, "batches", recorded)
        hard = ["optim.epochs=2", "optim.lr=1e-5"]  # so that there are mistakes to show
        compare(load_config("student.yaml", [*hard, "run.name=both", "engine.device=cpu"]))
        pages = {"both": write_report(folder / "runs/both"), "guided": write_report(folder / "runs/both/guided")}
    return SimpleNamespace(folder=folder, seen=seen, pages=pages, names=sorted([*HOSTILE.values(), "red"]))


@pytest.fixture
def here(reported, monkeypatch):
    monkeypatch.chdir(reported.folder)
    monkeypatch.setenv("FASTLG_CACHE", str(reported.folder / "cache"))
    return reported.folder
