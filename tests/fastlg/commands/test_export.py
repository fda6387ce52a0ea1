"""An exported student is a plain timm model: same logits, offline, without fastlg."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from fastlg.commands import export
from fastlg.commands.export import export_student
from fastlg.config import Config
from fastlg.errors import RunError, UserError
from fastlg.models import Student, resnet20

NAMES = ["ant", "bee", "crab", "dog", "éléphant"]
CASES = {
    "vit": ("vit_tiny_patch16_224", 40, {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}),
    "deit": ("deit_tiny_patch16_224.fb_in1k", 48, {"embed_dim": 24, "depth": 2, "num_heads": 2}),
    "distilled": ("deit_tiny_distilled_patch16_224", 48, {"embed_dim": 24, "depth": 2, "num_heads": 2}),
    "convit": ("convit_tiny", 48, {"embed_dim": 6, "depth": 3, "local_up_to_layer": 2}),
    "pit": ("pit_ti_224", 56, {"base_dims": [8, 8, 8], "depth": [1, 2, 1], "heads": [1, 2, 4]}),
    "pvt_v2": ("pvt_v2_b0", 64, {"embed_dims": [8, 16, 40, 64]}),
    "pvt_v2_linear": ("pvt_v2_b2_li", 64, {"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]}),
    "t2t": ("t2t_vit_7", 51, {"embed_dim": 24, "depth": 2, "num_heads": 2, "token_dim": 10}),
    "life": (
        "deit_tiny_distilled_patch16_224",
        48,
        {"embed_dim": 24, "depth": 2, "num_heads": 2, "life": {"own_key": True}},
    ),
    "pvt": ("pvt_tiny", 64, {"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]}),
    "spt": ("vit_tiny_patch16_224", 40, {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "spt": True}),
    "sl_vit": ("sl_vit_patch4_32", 24, {"embed_dim": 24, "depth": 2, "num_heads": 2}),
    "dhvt": ("dhvt_tiny_cifar_patch4", 21, {"embed_dim": 24, "depth": 2, "num_heads": 3}),
    "cvt": ("cvt_13", 45, {"embed_dims": [8, 12, 24], "depths": [1, 1, 1]}),
}


@pytest.fixture
def config() -> Config:
    return Config(
        run={"name": "r7", "seed": 9},
        data={"source": "somewhere/private"},
        augment={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
        model={"name": "vit_tiny_patch16_224"},
    )


def trained(case: str, init: str = "reference") -> Student:
    """A student off its start; LayerNorm eps must matter, so its inputs are small."""
    name, size, arguments = CASES[case]
    torch.manual_seed(2)
    student = Student(name, num_classes=5, image_size=size, blocks=[0, 1], model_args=arguments, init=init)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for module in student.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(0.02)
    return student


@pytest.mark.parametrize("init", ["reference", "timm"])
@pytest.mark.parametrize("case", CASES)
def test_timm_loads_the_folder_and_gives_the_same_logits(case, init, config, tmp_path):
    student = trained(case, init)
    export_student(student, tmp_path / "out", class_names=NAMES, config=config)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = torch.randn(3, 3, student.image_size, student.image_size, generator=torch.Generator().manual_seed(4))
    assert student.training, "exporting left the student in another mode"
    with torch.no_grad():
        want = student.eval()(x)[0]
        assert want.std() > 1e-3
        torch.testing.assert_close(loaded(x), want, rtol=1e-4, atol=1e-5)
    assert list(loaded.pretrained_cfg["label_names"]) == NAMES


def test_pvt_v2_eps_would_be_lost_without_the_fold(config, tmp_path, monkeypatch):
    """The same folder without the fold: timm's eps is visible, and the export refuses itself."""
    monkeypatch.setattr(export, "timm_weights", lambda bare: bare.state_dict())
    with pytest.raises(RunError, match="logits differ"):
        export_student(trained("pvt_v2"), tmp_path / "out", class_names=NAMES, config=config)
    assert list(tmp_path.iterdir()) == []


def test_export_leaves_the_student_and_the_random_state_alone(config, tmp_path):
    student = trained("pvt_v2")
    weights = {key: value.clone() for key, value in student.state_dict().items()}
    state = torch.get_rng_state()
    export_student(student, tmp_path / "out", class_names=NAMES, config=config)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[key]) for key, value in student.state_dict().items())


def test_timms_transform_reads_images_as_training_did(config, tmp_path):
    export_student(trained("vit"), tmp_path / "out", class_names=NAMES, config=config)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    data = timm.data.resolve_model_data_config(loaded)
    assert tuple(data["input_size"]) == (3, 40, 40)
    assert (tuple(data["mean"]), tuple(data["std"])) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (data["interpolation"], data["crop_pct"], data["crop_mode"]) == ("bilinear", 1.0, "squash")


def test_another_number_of_classes_can_be_asked_for(config, tmp_path):
    export_student(trained("pit"), tmp_path / "out", class_names=NAMES, config=config)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=9)
    assert loaded(torch.zeros(1, 3, 57, 57)).shape == (1, 9)


def test_folder_holds_weights_and_a_config_and_nothing_private(config, tmp_path):
    export_student(trained("vit"), tmp_path / "new" / "out", class_names=NAMES, config=config)
    assert sorted(p.name for p in (tmp_path / "new" / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    text = (tmp_path / "new" / "out" / "config.json").read_text(encoding="utf-8")
    described = json.loads(text)
    assert described["architecture"] == "vit_tiny_patch16_224"
    assert described["model_args"] == {**CASES["vit"][2], "img_size": 40}
    assert described["fastlg"]["run"] == "r7" and described["fastlg"]["seed"] == 9
    assert "private" not in text
    assert all(value.is_contiguous() for value in load_file(tmp_path / "new" / "out" / "model.safetensors").values())


def test_a_fresh_process_without_fastlg_loads_it(config, tmp_path):
    student = trained("vit").eval()
    export_student(student, tmp_path / "out", class_names=NAMES, config=config)
    code = (
        "import sys, timm, torch\n"
        f"model = timm.create_model('local-dir:{tmp_path / 'out'}', pretrained=True).eval()\n"
        "assert not any(name.startswith('fastlg') for name in sys.modules)\n"
        "print(model(torch.full((1, 3, 40, 40), 0.5)).tolist()[0])\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    want = student(torch.full((1, 3, 40, 40), 0.5))[0][0]
    assert json.loads(done.stdout) == pytest.approx(want.tolist(), rel=1e-5)


def test_empty_folder_is_used_and_a_full_one_refused(config, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export_student(trained("vit"), out, class_names=NAMES, config=config)
    before = (out / "config.json").read_bytes()
    with pytest.raises(UserError, match="not an empty folder"):
        export_student(trained("vit"), out, class_names=NAMES, config=config)
    assert (out / "config.json").read_bytes() == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not an empty folder"):
        export_student(trained("vit"), tmp_path / "file", class_names=NAMES, config=config)


def test_folder_below_a_file_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        export_student(trained("vit"), tmp_path / "file" / "out", class_names=NAMES, config=config)


def test_full_disk_leaves_no_folder(config, tmp_path, monkeypatch):
    def full(*_arguments, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_file", full)
    with pytest.raises(RunError, match="No space left"):
        export_student(trained("vit"), tmp_path / "out", class_names=NAMES, config=config)
    assert list(tmp_path.iterdir()) == []


def test_cnn_is_refused_with_the_reason(config, tmp_path):
    with pytest.raises(UserError, match="timm has no CIFAR ResNet"):
        export_student(resnet20(5), tmp_path / "out", class_names=NAMES, config=config)


def test_arguments_that_are_no_data_are_refused(config, tmp_path):
    arguments = {**CASES["vit"][2], "norm_layer": nn.LayerNorm}
    student = Student("vit_tiny_patch16_224", num_classes=5, image_size=40, model_args=arguments)
    with pytest.raises(UserError, match="cannot be written"):
        export_student(student, tmp_path / "out", class_names=NAMES, config=config)
