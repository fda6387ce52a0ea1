"""Students that timm lacks through the command line: guided, cached, stopped, resumed, evaluated, exported."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import yaml
from resuming import cut_before_step, rows

from fastlg.run.checkpoint import load_checkpoint
from fastlg.run.trained import load_trained

STUDENTS = {  # at 32 px
    "t2t_vit_7": {"blocks": [0, 1, 2], "args": {"embed_dim": 24, "depth": 3, "num_heads": 2, "token_dim": 12}},
    "pvt_tiny": {"blocks": [0, 1, 3], "args": {"embed_dims": [8, 16, 20, 32], "depths": [1, 1, 1, 1]}},
    "cvt_13": {"blocks": [0, 1, 3], "args": {"embed_dims": [8, 12, 24], "depths": [1, 1, 2]}},
    "sl_vit_patch4_32": {"blocks": [0, 1, 2], "args": {"embed_dim": 24, "depth": 3, "num_heads": 2}},
    "dhvt_tiny_cifar_patch4": {"blocks": [0, 1, 2], "args": {"embed_dim": 24, "depth": 3, "num_heads": 2}},
}


@pytest.fixture(params=STUDENTS)
def name(request, project):
    """student.yaml of the tiny project with that student."""
    config = yaml.safe_load((project / "student.yaml").read_text())
    config["model"] = {"name": request.param, "image_size": 32, **STUDENTS[request.param]}
    (project / "student.yaml").write_text(yaml.safe_dump(config))
    return request.param


def test_a_guided_run_stopped_in_the_middle_ends_in_the_same_bits_and_is_evaluated_and_exported(
    name, project, fastlg, monkeypatch
):
    common = ("train", "student.yaml", "log.checkpoint_steps=1", "log.every_steps=1")
    status, _, err = fastlg(*common, "run.name=whole")
    assert status == 0, err
    whole, cut = project / "runs" / "whole", project / "runs" / "cut"
    assert all(row["loss_guidance"] > 0 for row in rows(whole) if row["kind"] == "train")
    with cut_before_step(monkeypatch, 7):  # in the second epoch
        assert fastlg(*common, "run.name=cut")[0] != 0
    status, out, err = fastlg(*common, "run.name=cut")
    assert status == 0 and "resumed" in out, err
    assert rows(whole) == rows(cut)
    first, second = (load_checkpoint(run / "checkpoints" / "last.pt") for run in (whole, cut))
    assert first["unit"].keys() == second["unit"].keys()
    assert all(torch.equal(value, second["unit"][key]) for key, value in first["unit"].items())

    top1 = json.loads((whole / "summary.json").read_text())["top1_last"]
    status, out, err = fastlg("eval", whole)
    assert status == 0 and f"top-1 {top1:.2f} %" in out, err
    status, out, err = fastlg("export", whole, project / "out")
    assert status == 0 and "import fastlg.models; timm.create_model(" in out, err
    theirs = timm.create_model(f"local-dir:{project / 'out'}", pretrained=True).eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), load_trained(whole)[1].eval()(images)[0], rtol=1e-4, atol=1e-5)


def test_cached_features_train_it_as_the_teacher_would(name, project, fastlg):
    still = ["augment.rand_augment=null", "augment.erase=0", "augment.crop_scale=[1,1]", "augment.crop_ratio=[1,1]"]
    common = [*still, "teacher.norm_stats=running", "teacher.cache_dtype=fp32", "optim.epochs=1"]
    assert fastlg("train", "student.yaml", *common, "teacher.mode=online", "run.name=online")[0] == 0
    status, out, err = fastlg("train", "student.yaml", *common, "teacher.mode=auto", "run.name=cached")
    assert status == 0 and "cache    building" in out, err
    online, cached = rows(project / "runs" / "online"), rows(project / "runs" / "cached")
    assert [row["loss"] for row in online] == pytest.approx([row["loss"] for row in cached], rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.blocks=[0,1,9]"], "has no block 9"),
        (["model.blocks=[0,1]"], "differ in length"),
        (["model.args.img_size=64"], "model.image_size"),
        (["model.args.depht=3"], "model.args.depht is no argument"),
    ],
)
def test_a_block_that_is_not_there_and_arguments_that_do_not_fit_are_one_line(name, fastlg, overrides, says):
    status, _, err = fastlg("train", "student.yaml", *overrides)
    assert status == 2 and says in err and err.count("\n") == 1, err
