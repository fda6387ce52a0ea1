"""Students without a walk of their own through the command line: trained, cut and gone on, tested, exported."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from any_students import FAMILIES
from refusals import refused
from resuming import assert_same_run, cut_before_step
from torch import nn

from fastlg.assemble import assemble
from fastlg.config import load_config
from fastlg.data.stores import open_stores
from fastlg.run.trained import load_trained

TRAINED = ["swin_tiny_patch4_window7_224", "levit_128s", "life_vit"]  # the second: norms with statistics, two heads


def of(name: str, *more: str) -> tuple[str, ...]:
    size, arguments = FAMILIES[name]
    chosen = ("model.blocks=auto", f"model.image_size={size}", f"model.args={json.dumps(arguments)}")
    return ("train", "student.yaml", f"model.name={name}", *chosen, "optim.epochs=1", "optim.warmup_epochs=0", *more)


@pytest.mark.parametrize("name", TRAINED)
def test_it_is_guided_goes_on_to_the_same_bits_is_tested_and_exported(name, project, fastlg, monkeypatch):
    status, out, err = fastlg(*of(name, "run.name=whole", "log.checkpoint_steps=1"))
    assert status == 0, err
    with cut_before_step(monkeypatch, 3):
        assert fastlg(*of(name, "run.name=cut", "log.checkpoint_steps=1"))[0] == 130
    status, out, err = fastlg(*of(name, "run.name=cut", "log.checkpoint_steps=1"))
    assert status == 0, err
    assert_same_run(project / "runs" / "whole", project / "runs" / "cut")
    losses = [json.loads(line) for line in (project / "runs" / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss_guidance"] > 0 for row in losses if row["kind"] == "train")
    status, out, err = fastlg("eval", "runs/whole")
    assert status == 0 and "over 33 images" in out, err
    status, out, err = fastlg("export", "runs/whole", "out")
    assert status == 0 and "timm.create_model('local-dir:out', pretrained=True)" in out, err
    loaded = timm.create_model("local-dir:out", pretrained=True).eval()
    _, model, _ = load_trained(project / "runs" / "whole")
    images = torch.randn(2, 3, model.image_size, model.image_size)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "is_cnn"), [("resnet18", True), ("swin_tiny_patch4_window7_224", False)])
def test_a_cnn_trains_in_channels_last_memory_as_a_cifar_resnet_does(name, is_cnn, project):
    config = load_config("student.yaml", [*of(name)[2:], "teacher=null", "engine.channels_last=auto"])
    parts = assemble(config, open_stores(config.data), None, None)
    wide = [m.weight for m in parts.unit.modules() if isinstance(m, nn.Conv2d) and min(m.weight.shape[1:]) > 1]
    assert wide and all(weight.is_contiguous(memory_format=torch.channels_last) is is_cnn for weight in wide)
    assert parts.switches.channels_last is is_cnn


def test_what_it_cannot_take_is_one_line_before_anything_is_trained(project, fastlg):
    refused(fastlg(*of("levit_128s", "model.resolution=[[0,32],[0.5,64]]")), "model.resolution", "images of one size")
    refused(fastlg(*of("levit_128s", "model.blocks=[0,1,3]")), "levit_128s has no block 3", "0 to 2")
    refused(fastlg(*of("efficientformer_l1", "model.image_size=32")), "cannot be run on images of 32 px", "224")
    refused(fastlg(*of("resnet18", "teacher.stages=[0,1,3]")), "teacher.stages", "no stage 3", "it has 0 to 2")
    assert not (project / "runs").exists()
