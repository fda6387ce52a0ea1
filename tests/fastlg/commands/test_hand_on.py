"""What an export is handed on with: a card whose words hold and whose snippet runs, and ONNX that gives the logits."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re

import numpy as np
import pytest
import torch
from any_students import any_student
from PIL import Image
from refusals import refused
from test_export import NAMES, trained

from fastlg.commands.export import export_student
from fastlg.commands.hand_on import onnx as onnx_export
from fastlg.config import Config
from fastlg.errors import RunError
from fastlg.models import Student

ONNX = ("onnx", "onnxscript", "onnxruntime")
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ONNX)), reason="onnx, onnxscript or onnxruntime is not installed"
)


def settings(**more) -> Config:
    tree = {"run": {"name": "r7", "seed": 9}, "data": {"source": "somewhere/private"}, "model": {"name": "x"}}
    return Config.model_validate({**tree, **more})


def run_snippet(folder, monkeypatch) -> list[str]:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(folder)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    return out.getvalue().splitlines()


def test_the_card_says_what_was_measured_and_its_snippet_predicts_alike(project, fastlg, monkeypatch, image_folder):
    arguments = ("optim.epochs=2", "teacher.overrides.optim.epochs=1", "augment.mean=[0.2,0.3,0.1]")
    assert fastlg("train", "student.yaml", *arguments)[0] == 0
    run = project / "runs" / "student"
    summary = json.loads((run / "summary.json").read_text())
    status, _, err = fastlg("export", run, "out", "--which", "best")
    assert status == 0, err
    card = (project / "out" / "README.md").read_text(encoding="utf-8")
    assert f"top-1 {summary['top1_best']:.2f} %" in card and "on 33 test images" in card
    for fact in (summary["commit"], "3 classes: blue, green, red", "2 epochs of batch 16", "seed 3", "weight 2.5"):
        assert fact in card
    assert "block 0 by stage 0" in card and "guided by teacher" in card and "mean 0.2, 0.3, 0.1" in card
    assert str(project) not in card and str(image_folder) not in card
    Image.open(image_folder / "test" / "red" / "003.png").save(project / "out" / "image.jpg")
    status, out, _ = fastlg("predict", project / "out", project / "out" / "image.jpg", "--json")
    want = [(own["class"], own["probability"]) for own in json.loads(out)[0]["top"]]
    said = [line.removesuffix(" %").split(": ") for line in run_snippet(project / "out", monkeypatch)]
    assert [name for name, _ in said] == [name for name, _ in want]
    assert [float(value) for _, value in said] == pytest.approx([100 * value for _, value in want], abs=0.051)


def test_a_snippet_of_a_model_that_timm_lacks_tells_timm_of_it(tmp_path, monkeypatch):
    export_student(trained("t2t"), tmp_path / "out", class_names=NAMES, config=settings())
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / "out" / "image.jpg")
    assert len(run_snippet(tmp_path / "out", monkeypatch)) == 5
    assert "import fastlg.models" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_card_without_measurements_says_so_and_nothing_private(tmp_path):
    export_student(trained("vit"), tmp_path / "out", class_names=["a|b", "c\nd", "e", "f", "g"], config=settings())
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "not measured" in card and "private" not in card and "| guidance | none |" in card
    assert r"a\|b, c\nd" in card, "a name breaks no table"


OWN = """
from torch import nn


class Pooled(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, num_classes)

    def forward(self, images):
        maps = self.patches(images)
        return self.head(maps.mean((2, 3))), [maps]


def pooled(num_classes):
    return Pooled(num_classes)
"""


@needs_onnx
@pytest.mark.parametrize("case", ["vit", "pit", "t2t", "hiera_tiny_224", "own_of_onnx:pooled"])
def test_onnxruntime_gives_the_logits_for_any_batch(case, tmp_path, monkeypatch, caplog):
    """The fourth attends over five axes, the last gives its features beside its logits."""
    import onnxruntime

    (tmp_path / "own_of_onnx.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    made = {
        "hiera_tiny_224": any_student,
        "own_of_onnx:pooled": lambda name: Student(name, num_classes=5, image_size=16),
    }
    student = made.get(case, trained)(case).train()
    export_student(student, tmp_path / "out", class_names=NAMES, config=settings(), onnx=True)
    assert student.training and sorted(path.name for path in (tmp_path / "out").iterdir())[-1] == "model.safetensors"
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [own for own in caplog.records if own.levelno >= 30] == [], "it ended well"
    size = student.image_size
    for count in (1, 2, 7):
        images = torch.randn(count, 3, size, size)
        with torch.no_grad():
            want = student.eval()(images)[0]
        (found,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(found, want.numpy(), rtol=1e-4, atol=1e-5)


@needs_onnx
def test_what_torch_cannot_write_is_one_line_with_the_first_cause(tmp_path, monkeypatch):
    def export(*_, **__):
        try:
            raise ValueError("no such operator")
        except ValueError as error:
            raise RuntimeError("Failed. Next steps:\n- write a report") from error

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(RunError, match="cannot write vit_tiny_patch16_224 as ONNX: no such operator$"):
        export_student(trained("vit"), tmp_path / "out", class_names=NAMES, config=settings(), onnx=True)
    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_other_logits_leave_no_export(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match="its logits differ by"):
        export_student(trained("vit"), tmp_path / "out", class_names=NAMES, config=settings(), onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_libraries_is_one_line_before_anything_is_written(project, fastlg, monkeypatch):
    assert fastlg("train", "student.yaml", "teacher=null", "optim.epochs=1")[0] == 0
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    for module in ("onnx", "onnxscript"):
        monkeypatch.setitem(__import__("sys").modules, module, __import__("types").ModuleType(module))
    refused(fastlg("export", "runs/student", "out", "--onnx"), "needs onnxruntime", "pip install 'fastlg[onnx]'")
    assert not (project / "out").exists()
