"""``fastlg models`` tells of every model what training would find."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from refusals import refused

from fastlg.commands import models
from fastlg.commands.line.early import own_names
from fastlg.models import Student, resnet56

ROOT = Path(__file__).resolve().parents[3]


def told(out: str, name: str) -> str:
    return next(line for line in out.splitlines() if line.split()[:1] == [name])


@pytest.mark.parametrize("name", ["test_convnext2", "pvt_tiny"])
def test_it_tells_of_a_model_what_its_student_has(fastlg, name):
    status, out, err = fastlg("models", name, "--image-size", "64")
    assert (status, err) == (0, "")
    student = Student(name, num_classes=100, image_size=64)
    student.guide(range(student.depth))
    line = told(out, name)
    assert f"{sum(p.numel() for p in student.parameters()):,}  " in line and " 64 px " in line
    found = {}
    for first, last, *shape in re.findall(r"(\d+)(?:-(\d+))?: (\d+)x(\d+)x(\d+)", line):
        found |= {index: tuple(map(int, shape)) for index in range(int(first), int(last or first) + 1)}
    assert found == {
        index: (dim, *grid) for index, (dim, grid) in enumerate(zip(student.dims, student.grids, strict=True))
    }


def test_without_a_filter_it_lists_what_the_shipped_configs_train_and_what_the_paper_found(fastlg):
    status, out, err = fastlg("models")
    assert (status, err) == (0, "")
    for said in ("5,543,716", "cifar100/deit_tiny: 78.15 % published", "cifar100/resnet56: 70.43 % published"):
        assert said in out
    assert "unguided" not in out and re.search(r"and 1\d{3} models of timm", out)
    assert f"{sum(p.numel() for p in resnet56(100).parameters()):,}" in told(out, "resnet56")
    assert "0: 16x32x32, 1: 32x16x16, 2: 64x8x8" in told(out, "resnet56")


def test_students_that_timm_lacks_are_all_listed_and_each_is_on_a_page(fastlg, monkeypatch):
    monkeypatch.setattr(models, "described", lambda *_, **__: "as it is")
    monkeypatch.setattr(models, "own_names", lambda: {*own_names(), "a_new_one"})
    out = fastlg("models")[1]
    text = " ".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert {"t2t_vit_7", "cvt_13"} < own_names()
    assert [name for name in [*own_names(), "a_new_one"] if name not in out] == []
    assert [name for name in own_names() if f"`{name}`" not in text] == []


def test_of_many_it_lists_the_names_and_builds_none(fastlg, monkeypatch):
    monkeypatch.setattr(models, "described", lambda *_: pytest.fail("built"))
    status, out, _ = fastlg("models", "resnet")
    assert status == 0 and "  resnet18\n" in out and "  seresnet50\n" in out and "resnet56" in out
    status, out, _ = fastlg("models", "vit_*_224")
    assert status == 0 and all(re.fullmatch("  vit_.*_224", line) for line in out.splitlines()[1:])


def test_a_model_that_does_not_take_224_px_is_told_of_at_its_authors_size(fastlg):
    assert " 240 px " in told(fastlg("models", "crossvit_tiny")[1], "crossvit_tiny_240")


def test_a_users_own_network_is_told_too_and_what_is_not_there_is_one_line(fastlg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import timm\ndef net(num_classes): return timm.create_model('test_convnext', num_classes=num_classes)\n"
    (tmp_path / "own_listed.py").write_text(code)
    status, out, err = fastlg("models", "own_listed:net")
    assert status == 0 and "(your own)" in told(out, "own_listed:net"), err
    refused(fastlg("models", "not_there_at_all:net"), "not_there_at_all cannot be imported")
    refused(fastlg("models", "own_listed:other"), "own_listed has no function other")
    refused(fastlg("models", "pvt_tiny", "--image-size", "40"), "40")  # a name given whole; of several it is told
    refused(fastlg("models", "resnet188"), "no model's name contains resnet188", "did you mean resnet18")
