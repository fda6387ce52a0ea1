"""L_drloc and the distillation token through the command line: recorded, told, resumed, evaluated, exported."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import yaml
from refusals import refused
from resuming import assert_same_run, cut_before_step, rows

from fastlg.run.checkpoint import load_checkpoint
from fastlg.run.trained import load_trained

NETWORKS = {  # at 32 px, but for the pyramid, whose last grid there is one token; (side of the grid, width)
    "vit_tiny_patch16_224": ({"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}, [0, 1, 2], 32, 4, 24),
    "vit_tiny_patch16_gap_224": (None, [0, 1, 2], 32, 4, 24),  # no class token
    "convit_tiny": ({"embed_dim": 24, "depth": 3, "num_heads": 2, "local_up_to_layer": 2}, [0, 1, 2], 64, 4, 48),
    "pit_ti_224": ({"base_dims": [8, 8, 8], "depth": [1, 1, 1], "heads": [1, 2, 2]}, [0, 1, 2], 64, 2, 16),
    "pvt_v2_b0": ({"embed_dims": [8, 16, 20, 32], "depths": [1, 1, 1, 1]}, [0, 1, 3], 64, 2, 32),
    "pvt_tiny": ({"embed_dims": [8, 16, 20, 32], "depths": [1, 1, 1, 1]}, [0, 1, 3], 64, 2, 32),
    "t2t_vit_7": ({"embed_dim": 24, "depth": 3, "num_heads": 2, "token_dim": 12}, [0, 1, 2], 64, 2, 24),
    "cvt_13": ({"embed_dims": [8, 12, 24], "depths": [1, 1, 2]}, [0, 1, 3], 64, 2, 24),
}
NETWORKS["vit_tiny_patch16_gap_224"] = (
    {**NETWORKS["vit_tiny_patch16_224"][0], "class_token": False, "global_pool": "avg"},
    *NETWORKS["vit_tiny_patch16_224"][1:],
)
DRLOC = ("drloc.weight=0.5", "drloc.hidden=16", "drloc.sample_size=8", "drloc.warmup_epochs=0")


def write_network(project, name: str) -> str:
    """NAME.yaml, a short guided run of that student; returns what the command takes."""
    arguments, blocks, size, _, _ = NETWORKS[name]
    config = yaml.safe_load((project / "student.yaml").read_text())
    config["model"] = {"name": name.replace("_gap", ""), "image_size": size, "blocks": blocks, "args": arguments}
    config["optim"] |= {"epochs": 1, "global_batch_size": 39}
    (project / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"{name}.yaml"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_is_asked_for_distances_beside_guidance(name, here, fastlg):
    _, _, _, side, width = NETWORKS[name]
    status, out, err = fastlg("train", write_network(here, name), *DRLOC, "drloc.mode=ce")
    assert status == 0, err
    assert f"drloc    ce loss of 8 pairs an image on a grid of {side} x {side}" in out
    train = [row for row in rows(here / "runs" / name) if row["kind"] == "train"]
    assert all(row["loss_drloc"] > 0 and row["loss_guidance"] > 0 for row in train)
    unit = load_checkpoint(here / "runs" / name / "checkpoints" / "last.pt")["unit"]
    assert unit["drloc.hidden.0.weight"].shape == (16, 2 * width)


def test_a_run_with_distances_stopped_in_the_middle_ends_in_the_same_bits_and_exports_the_student_alone(
    here, fastlg, monkeypatch
):
    common = ("train", "student.yaml", *DRLOC, "log.checkpoint_steps=1", "log.every_steps=1")
    status, out, err = fastlg(*common, "run.name=whole")
    assert status == 0, err
    whole, cut = here / "runs" / "whole", here / "runs" / "cut"
    with cut_before_step(monkeypatch, 7):  # in the second epoch
        assert fastlg(*common, "run.name=cut")[0] != 0
    status, out, err = fastlg(*common, "run.name=cut")
    assert status == 0 and "resumed" in out, err
    assert_same_run(whole, cut)
    refused(fastlg(*common, "run.name=cut", "drloc.mode=ce"), "drloc.mode", "another config")
    assert fastlg("export", whole, here / "out")[0] == 0
    theirs = timm.create_model(f"local-dir:{here / 'out'}", pretrained=True).eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), load_trained(whole)[1].eval()(images)[0], rtol=1e-4, atol=1e-5)


def test_the_loss_is_recorded_and_told_where_it_is_on_and_only_there(here, fastlg):
    common = ("train", "student.yaml", "optim.epochs=1", "optim.global_batch_size=39", "log.every_steps=1")
    for name, overrides, told in (
        ("guided", (), ("cls", "guidance")),
        ("both", DRLOC, ("cls", "guidance", "drloc")),
        ("alone", ("teacher=null", *DRLOC), ("cls", "drloc")),
        ("neither", ("teacher=null",), ()),
    ):
        status, out, err = fastlg(*common, f"run.name={name}", *overrides)
        assert status == 0, err
        (line,) = [line for line in out.splitlines() if "epoch 1/1  loss" in line][-1:]
        inside = line.partition("(")[2].partition(")")[0]
        assert tuple(part.split()[0] for part in inside.split(", ") if part) == told, line
        row = rows(here / "runs" / name)[-2]
        assert ("loss_drloc" in row) == ("drloc" in told)
        parts = row["loss_cls"] + 2.5 * row["loss_guidance"] + 0.5 * row.get("loss_drloc", 0.0)
        assert row["loss"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "pit_ti_distilled_224"])
def test_a_student_with_a_distillation_token_trains_and_evaluates_by_the_mean_of_both(name, kind, here, fastlg):
    config = write_network(here, "vit_tiny_patch16_224" if name.startswith("deit") else "pit_ti_224")
    own = (f"model.name={name}", f"run.name={name}-{kind}", f"guidance.logits={kind}")
    status, out, err = fastlg("train", config, *own, "guidance.logits_token=distillation")
    assert status == 0 and f"; {kind} logits for the distillation token, weight 0.5" in out, err
    run = here / "runs" / f"{name}-{kind}"
    unit = load_checkpoint(run / "checkpoints" / "last.pt")["unit"]
    assert all(unit[f"student.bare.{head}.weight"].abs().sum() > 0 for head in ("head", "head_dist")), "both learn"
    top1 = json.loads((run / "summary.json").read_text())["top1_last"]
    status, out, err = fastlg("eval", run)
    assert status == 0 and f"top-1 {top1:.2f} %" in out, err
    model = load_trained(run)[1].eval()
    seen = []
    for head in (model.bare.head, model.bare.head_dist):
        head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        logits = model(torch.randn(3, 3, model.image_size, model.image_size))[0]
    torch.testing.assert_close(logits, (seen[0] + seen[1]) / 2)
    assert fastlg("export", run, here / f"out-{name}-{kind}")[0] == 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["drloc.weight=0.5", "teacher=null", "model.name=resnet20", "model.args={}", "model.blocks=auto"],
         ["drloc.weight is 0.5", "resnet20", "no grid", "drloc.weight=0"]),
        (["drloc.weight=1", "model.args.patch_size=32"], ["1 x 1", "model.image_size"]),
        (["drloc.weight=1", "model.args.patch_size=16", "drloc.pool=true"], ["1 x 1", "model.image_size"]),
        (["drloc.weight=-1"], ["drloc.weight"]),
        (["drloc.weight=1", "drloc.mode=ce", "drloc.normalize=true"], ["normalize", "drloc.mode=l1"]),
        (["drloc.mode=l2"], ["drloc.mode", "l1", "ce", "cbr"]),
        (["drloc.sample_size=0"], ["drloc.sample_size"]),
        (["guidance.logits=soft", "guidance.logits_token=distillation"],
         ["guidance.logits_token", "vit_tiny_patch16_224 has no distillation token", "guidance.logits_token=class"]),
        (["guidance.logits_token=distillation"], ["guidance", "logits_token", "guidance.logits=soft or hard"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)  # fmt: skip
def test_a_loss_that_cannot_be_is_one_line_before_anything_is_trained(project, fastlg, overrides, words):
    refused(fastlg("train", "student.yaml", *overrides), *words)
    assert not (project / "runs").exists()
