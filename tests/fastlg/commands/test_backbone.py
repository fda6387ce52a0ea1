"""``fastlg export --backbone``: what timm then loads gives the student's maps, of known channels and strides."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import timm
import torch
from refusals import refused

from fastlg.commands.export import export_student
from fastlg.config import config_from
from fastlg.errors import UserError
from fastlg.models import Student
from fastlg.models.build import new_model

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "detector.py"
SMALL = {"depth": 5, "embed_dim": 32, "num_heads": 2, "patch_size": 8}


def exported(folder: Path, name: str, size: int, args: dict) -> tuple[Student, object]:
    section = {"name": name, "image_size": size, "args": args}
    config = config_from({"data": {"source": "none"}, "model": section}, "here")
    torch.manual_seed(1)
    student = new_model(config.model, None, 3)
    own = {"class_names": ["a", "b", "c"], "config": config, "backbone": True}
    return student.eval(), export_student(student, folder / "out", **own)


@pytest.mark.parametrize(
    ("name", "size", "args", "levels", "takes_others"),
    [
        ("vit_tiny_patch16_224", 32, SMALL, [(32, 8)] * 4, True),
        ("deit_tiny_distilled_patch16_224", 32, SMALL, [(32, 8)] * 4, False),
        ("t2t_vit_7", 32, {"embed_dim": 64, "depth": 2, "num_heads": 1}, [(64, 16)] * 2, False),
        ("pvt_v2_b0", 64, {}, [(32, 4), (64, 8), (160, 16), (256, 32)], True),
    ],
)
def test_timm_loads_the_maps_of_the_student(tmp_path, name, size, args, levels, takes_others):
    student, maps = exported(tmp_path, name, size, args)
    assert (maps.levels, maps.takes_others) == (levels, takes_others)
    body = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert list(zip(body.feature_info.channels(), body.feature_info.reduction(), strict=True)) == levels
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found = body(images)
    assert [tuple(own.shape[1:]) for own in found] == [(dim, size // down, size // down) for dim, down in levels]
    if len({down for _, down in levels}) == 1:  # a flat student: the tokens that a teacher would guide
        blocks = [(number + 1) * student.depth // len(levels) - 1 for number in range(len(levels))]
        student.guide(blocks)
        with torch.no_grad():
            tokens = student(images)[1]
        for own, other in zip(found, tokens, strict=True):
            patches = other[:, -own[0, 0].numel() :].transpose(1, 2).reshape(own.shape)
            torch.testing.assert_close(own, patches, rtol=1e-5, atol=1e-5)
    last = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, out_indices=(0,)).eval()
    assert len(last(images)) == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{levels[-1][0]} channels at 1/{levels[-1][1]}" in card and "As a backbone" in card


def test_a_backbone_is_no_classifier_and_a_network_without_maps_no_backbone(tmp_path, fastlg, monkeypatch):
    exported(tmp_path, "vit_tiny_patch16_224", 32, SMALL)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_args"]["features_only"] is True
    refused(fastlg("predict", tmp_path / "out", EXAMPLE.parents[1] / "docs" / "scaling.png"), "is a backbone")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    refused(fastlg("export", tmp_path / "run", tmp_path / "both", "--backbone", "--onnx"), "two folders")
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, k):\n"
        "        super().__init__()\n"
        "        self.grids, self.fc = [(4, 4)], torch.nn.Linear(48, k)\n"
        "    def forward(self, x):\n"
        "        tokens = torch.nn.functional.avg_pool2d(x, 8).flatten(2).transpose(1, 2).repeat(1, 1, 16)\n"
        "        return self.fc(tokens.mean(1)), [tokens]\n"
        "def net(num_classes, **more):\n"
        "    return Net(num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="mine:net has no forward_intermediates"):
        exported(tmp_path / "own", "mine:net", 32, {})


def test_a_detector_of_torchvision_learns_on_a_backbone(tmp_path, capsys):
    exported(tmp_path, "vit_tiny_patch16_224", 32, SMALL)
    losses = runpy.run_path(str(EXAMPLE))["train"](str(tmp_path / "out"), steps=14, batch=2, side=48, lr=2e-3)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3]), losses
    assert "step 13  loss" in capsys.readouterr().out
