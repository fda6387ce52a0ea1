"""A user's own network, by module:function: the documented one trains, goes on, is tested and exported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from refusals import refused
from resuming import assert_same_run, cut_before_step

from fastlg.errors import UserError
from fastlg.models import Student
from fastlg.run.trained import load_trained

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "own_model.md").read_text(encoding="utf-8")
TINY = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
OVERRIDES = ("model.image_size=32", "model.blocks=auto", "model.args={width: 16}", "optim.epochs=1")


@pytest.fixture
def module(monkeypatch):
    """``module(text)`` writes a module into the working folder and gives its name; it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = []

    def write(text: str) -> str:
        name = f"own_nets_{abs(hash(text)) % 10**9}"
        Path(f"{name}.py").write_text(text, encoding="utf-8")
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_the_network_of_the_page_trains_goes_on_is_tested_and_exported(
    project, fastlg, monkeypatch, module, image_folder
):
    name = f"{module(TINY)}:tiny"
    train = (
        "train",
        "student.yaml",
        f"model.name={name}",
        *OVERRIDES,
        "optim.warmup_epochs=0",
        "log.checkpoint_steps=1",
    )
    status, out, err = fastlg(*train, "run.name=whole")
    assert status == 0, err
    with cut_before_step(monkeypatch, 3):
        assert fastlg(*train, "run.name=cut")[0] == 130
    assert fastlg(*train, "run.name=cut")[0] == 0
    assert_same_run(project / "runs" / "whole", project / "runs" / "cut")
    rows = [json.loads(line) for line in (project / "runs" / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss_guidance"] > 0 for row in rows if row["kind"] == "train")
    config, model, _ = load_trained(project / "runs" / "whole")
    assert model.blocks == [0, 1, 3] and model.grids == [(4, 4)] * 3 and model.dims == [16] * 3
    status, out, err = fastlg("eval", "runs/whole")
    assert status == 0 and "over 33 images" in out, err
    status, out, err = fastlg("export", "runs/whole", "out")
    assert status == 0, err
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    code = f"import torch; {out.split('load it with ')[1].strip()}; torch.manual_seed(0); "
    code += "print(model.eval()(torch.randn(2, 3, 32, 32))[0].flatten().tolist())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    torch.testing.assert_close(torch.tensor(json.loads(said.stdout)).view(2, 3), model(images)[0].detach())
    image = sorted((image_folder / "test" / "red").iterdir())[0]
    status, whole, err = fastlg("predict", "runs/whole", image, "--json")
    assert status == 0, err
    assert fastlg("predict", "out", image, "--json") == (0, whole, "")
    card = (project / "out" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    Image.open(image).save(project / "out" / "image.jpg", quality=100, subsampling=0)
    shutil.copy(f"{name.partition(':')[0]}.py", "out")  # as who hands both on does
    said = subprocess.run([sys.executable, "-c", code], cwd="out", capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    want = json.loads(fastlg("predict", "runs/whole", "out/image.jpg", "--json")[1])[0]["top"]
    assert said.stdout == "".join(f"{own['class']}: {100 * own['probability']:.1f} %\n" for own in want)


def test_a_run_whose_module_is_gone_is_one_line(project, fastlg, module):
    name = module(TINY)
    assert fastlg("train", "student.yaml", f"model.name={name}:tiny", *OVERRIDES, "teacher=null")[0] == 0
    sys.modules.pop(name)
    Path(f"{name}.py").unlink()
    for command in (("eval", "runs/student"), ("export", "runs/student", "out")):
        refused(fastlg(*command), f"{name} cannot be imported", "No module named", "working folder", project)


HEAD = "import torch, timm\nfrom torch import nn\n"


def giving(what: str) -> str:
    """Code of a network whose forward gives that of its images x and their mean colours m."""
    forward = f"    def forward(self, x):\n        m = x.mean((2, 3))\n        return {what}\n"
    return f"class Net(nn.Module):\n{forward}def net(num_classes): return Net()\n"


BROKEN = {
    "x = 1/0\n": "cannot be imported (ZeroDivisionError: division by zero)",
    "raise SystemExit(3)\n": "cannot be imported (SystemExit: 3)",
    "other = 1\n": "has no function net",
    "def net(num_classes): return 7\n": "gives a int; it must give a torch.nn.Module",
    "def net(): return 7\n": "fails: TypeError",
    "def net(num_classes): return nn.Linear(3, num_classes)\n": "cannot be run on images of 32 px",
    giving("m"): "it gives a Tensor, not (logits, features); docs/own_model.md",
    giving("(m, [])"): "lists no features",
    giving("(m[:, :2], [x])"): "gives logits [2, 2] instead of [N, 3]",
    giving("(m, [x[:, 0, 0]])"): "its feature 0 is [2, 32]; give tokens",
    giving("(m, [x[:, 0, :7]])"): "7 tokens, which make no square grid",
}


@pytest.mark.parametrize("body", BROKEN)
def test_what_is_no_student_is_one_line(body, tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        Student(f"{module(HEAD + body)}:net", num_classes=3, image_size=32)
    assert BROKEN[body] in str(caught.value) and "\n" not in str(caught.value)


def test_arguments_of_the_config_are_given_where_they_are_taken_and_not_set_twice(tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    name = module(
        HEAD + "seen = {}\ndef net(num_classes, image_size, drop_path, depth=2):\n    seen.update(locals())\n"
        "    return timm.create_model('test_vit3', num_classes=num_classes, img_size=image_size)\n"
    )
    student = Student(f"{name}:net", num_classes=3, image_size=48, drop_path=0.2, model_args={"depth": 5}, blocks=[0])
    seen = sys.modules[name].seen
    assert {key: seen[key] for key in ("num_classes", "image_size", "drop_path", "depth")} == {
        "num_classes": 3,
        "image_size": 48,
        "drop_path": 0.2,
        "depth": 5,
    }
    assert student.model_args == {"depth": 5, "image_size": 48} and student.bare.head.weight.abs().sum() > 0
    for key in ("num_classes", "image_size", "drop_path"):
        with pytest.raises(UserError, match=f"model.args.{key} cannot be set"):
            Student(f"{name}:net", num_classes=3, image_size=48, model_args={key: 1})


def test_grids_of_its_own_are_taken_and_those_that_do_not_fit_refused(tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    text = HEAD + (
        "class Net(nn.Module):\n    forward = lambda self, x: (x.mean((2, 3)), [x.flatten(2).transpose(1, 2)[:, :9]])\n"
        "def net(num_classes, grids):\n    made = Net()\n    made.grids = grids\n    return made\n"
    )
    name = f"{module(text)}:net"
    student = Student(name, num_classes=3, image_size=8, model_args={"grids": [[2, 4]]}, blocks=[0])
    assert student.grids == [(2, 4)] and student.dims == [3], "and one prefix token"
    for grids, says in (([[4, 4]], "9 tokens, which its grid"), ([], "has no"), ([3], "has no"), ([[0, 4]], "grid")):
        with pytest.raises(UserError, match=says):
            Student(name, num_classes=3, image_size=8, model_args={"grids": grids})
