"""``fastlg pretrain``: a student learns without labels, goes on to the same bits, and begins another run by name."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from reach import BARE, first_batch
from refusals import refused
from resuming import assert_same_run, cut_before_step
from timm.layers import resample_abs_pos_embed, resample_patch_embed

from fastlg import assemble
from fastlg.api.results import open_run
from fastlg.commands.many.forms import markdown
from fastlg.commands.many.rows import Row, Single
from fastlg.commands.many.table import Table
from fastlg.commands.pretrain import unlabelled
from fastlg.commands.report.facts import facts_of
from fastlg.commands.report.run_page import run_page
from fastlg.config import EngineConfig
from fastlg.config.auto import Facts, values_of
from fastlg.data.stores import open_stores
from fastlg.engine.switches import decide
from fastlg.errors import UserError
from fastlg.models.pretraining.unit import about_half
from fastlg.run.checkpoint import load_checkpoint
from fastlg.run.folder import read_summary
from fastlg.train import begin_epoch

SMALL = ("pretrain.local_crops=2", "pretrain.outputs=24", "optim.global_batch_size=38", "optim.epochs=2")
STILL = ("model.drop_path=0", "optim.lr=1e-3", "engine.device=cpu")


@pytest.fixture(scope="module")
def here(shared_project):
    """The project with a run without labels in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shared_project)
        patch.setenv("FASTLG_CACHE", str(shared_project / "cache"))
        from fastlg.train import train

        train(unlabelled("student.yaml", [*SMALL, *STILL, "run.name=start"])[0])
    return shared_project


@pytest.fixture(autouse=True)
def inside(here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setenv("FASTLG_CACHE", str(here / "cache"))


def checkpoint(name):
    return load_checkpoint(Path("runs", name, "checkpoints", "last.pt"))


def test_an_update_moves_unit_teacher_and_center_as_the_authors_do():
    """Two updates of the engine beside the same in plain torch, one parameter and one image at a time."""
    own = ("pretrain.local_crops=1", "pretrain.outputs=6", "pretrain.clip_each=0.05", "pretrain.momentum=0.9")
    options = ("teacher=null", *BARE, *own, "optim.name=sgd", "optim.momentum=0", "optim.lr=0.5", "optim.epochs=4")
    parts, _, views = first_batch(*options, "optim.weight_decay=0.1")
    unit, teacher = parts.unit, parts.teacher
    for epoch in (0, 1):
        begin_epoch(parts, epoch)
        parts.engine.set_learning_rate(0.5)
        before = {name: own.detach().clone() for name, own in unit.named_parameters()}
        followed = {name: own.clone() for name, own in teacher.named_parameters()}
        center = teacher.center.clone()
        said = teacher.head(teacher.student(views.student.flatten(0, 1))[0]).unflatten(0, (-1, 2))
        shares = ((said - center) / (0.04 + 0.03 * epoch / 9)).softmax(dim=-1)
        answers = [unit.head(unit.student(view)[0]) for view in (*views.student.unbind(1), *views.small.unbind(1))]
        pairs = [(i, v) for i in range(2) for v in range(3) if i != v]
        loss = sum(-(shares[:, i] * (answers[v] / 0.1).log_softmax(1)).sum(1).mean() for i, v in pairs) / len(pairs)
        gradients = dict(zip(before, torch.autograd.grad(loss, list(unit.parameters())), strict=True))
        out = parts.engine.step(views, None, len(views.student))
        assert out.loss.item() == pytest.approx(loss.item(), rel=1e-5)
        assert torch.allclose(teacher.center, 0.9 * center + 0.1 * said.mean(dim=(0, 1)), atol=1e-6)
        decay = 0.4 + (0.1 - 0.4) * (1 + math.cos(math.pi * epoch / 4)) / 2
        for name, weight in unit.named_parameters():
            slope = gradients[name] * min(1.0, 0.05 / (gradients[name].norm().item() + 1e-6))
            decayed = weight.ndim > 1 and not name.endswith(("cls_token", "pos_embed"))
            wanted = before[name] - 0.5 * (slope + (decay * before[name] if decayed else 0))
            wanted = before[name] if epoch == 0 and name == "head.last.weight" else wanted
            assert torch.allclose(weight, wanted, atol=2e-6), name
            rate = 1 - (1 - 0.1 * (1 + math.cos(math.pi * epoch / 4)) / 2)
            assert torch.allclose(dict(teacher.named_parameters())[name], followed[name].lerp(weight, rate), atol=1e-6)
    assert not any(own.requires_grad for own in teacher.parameters())


def test_a_cut_run_goes_on_to_the_same_bits_and_parts_of_a_batch_change_nothing(fastlg, monkeypatch):
    every = (*SMALL, *STILL, "model.drop_path=0.1", "log.checkpoint_steps=1", "log.every_steps=1")
    assert fastlg("pretrain", "student.yaml", *every, "run.name=whole")[0] == 0
    with cut_before_step(monkeypatch, 4):
        assert fastlg("pretrain", "student.yaml", *every, "run.name=cut")[0] == 130
    assert fastlg("pretrain", "student.yaml", *every, "run.name=cut")[0] == 0
    assert_same_run(Path("runs/whole"), Path("runs/cut"))
    whole, cut = checkpoint("whole")["teacher"], checkpoint("cut")["teacher"]
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert fastlg("pretrain", "student.yaml", *SMALL, *STILL, "engine.micro_batch_size=19", "run.name=parts")[0] == 0
    start, parts = checkpoint("start")["teacher"], checkpoint("parts")["teacher"]
    assert all(torch.allclose(value, parts[name], atol=1e-6) for name, value in start.items())


FROZEN = ("optim.lr=1e-30", "optim.min_lr=0", "optim.weight_decay=0", "optim.epochs=1", "optim.global_batch_size=39")


@pytest.mark.parametrize("guided", [True, False])
def test_its_teacher_begins_a_run_by_name_and_what_has_no_counterpart_is_told(guided, fastlg):
    options = (*FROZEN, "run.name=next", "model.weights=runs/start", *(() if guided else ("teacher=null",)))
    if guided:
        options = (*options, "--dry-run")
    status, out, err = fastlg("train", "student.yaml", *options)
    assert status == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("start ")]
    assert "its head is not there, so that a new one begins" in line
    assert "left there: center, head.layers.0.weight" in line and line.endswith("head.last.weight")
    if not guided:
        taught = checkpoint("start")["teacher"]
        begun = {name: value for name, value in checkpoint("next")["unit"].items() if "bare.head" not in name}
        assert len(begun) == sum(name.startswith("student.") for name in taught)
        assert all(torch.equal(value, taught[name]) for name, value in begun.items())
        moved = checkpoint("start")["unit"]["student.bare.blocks.0.mlp.fc1.weight"]
        assert not torch.equal(begun["student.bare.blocks.0.mlp.fc1.weight"], moved), "the teacher, not the student"


def test_patches_and_positions_of_another_size_are_resized_as_from_any_weights_and_told(fastlg):
    """timm's own resizing, of the teacher's: twice the side of the patches, three times that of the images."""
    other = ("teacher=null", "model.args.patch_size=16", "model.image_size=96", "model.weights=runs/start")
    status, out, err = fastlg("train", "student.yaml", *FROZEN, *other, "run.name=larger")
    assert status == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("start ")]
    assert "pos_embed resized from [1, 17, 48] to [1, 37, 48]; 1 more resized likewise" in line
    assert "model.args.patch_size was 8 and is 16: the same weights may compute something else" in line
    taught, begun = checkpoint("start")["teacher"], checkpoint("larger")["unit"]
    patches, places = "student.bare.patch_embed.proj.weight", "student.bare.pos_embed"
    assert torch.allclose(begun[patches], resample_patch_embed(taught[patches], [16, 16]), atol=1e-6)
    assert torch.allclose(begun[places], resample_abs_pos_embed(taught[places], [6, 6]), atol=1e-6)


def test_its_score_is_told_by_what_measured_it(here, fastlg):
    """In the lines of its epochs, in those of a run that is complete, in a table's header and file, and on its page."""
    by = "by 20 nearest training images"
    status, out, err = fastlg("pretrain", "student.yaml", *SMALL, *STILL, "optim.epochs=1", "run.name=told")
    lines = [line for line in out.splitlines() if " test top-1" in line or line.startswith("done")]
    assert status == 0 and len(lines) == 2 and all(by in line for line in lines), (out, err)
    status, out, err = fastlg("train", "runs/start/config.yaml")
    lines = [line for line in out.splitlines() if "top-1" in line]
    assert status == 0 and len(lines) == 2 and all(by in line for line in lines), (out, err)
    assert f"runs/start, top-1 {read_summary(Path('runs/start'))['top1_last']:.2f} % {by}>" in repr(
        open_run("runs/start")
    )
    facts = facts_of(Path("runs/start"))
    single = Single("start", facts.config, (), state="done", summary=facts.summary)
    table = Table("t", [(Row({"row": "start"}, "start", (), facts.config, "start"), [single])], [3], [])
    assert f"of runs without labels: top-1 {by}" in markdown(table)
    assert table.as_json()["rows"][0]["runs"][0]["measured_by"] == by.removeprefix("by ")
    page = run_page(facts, "")
    assert f"on test images top-1 is {by}" in page and f"top-1 {by}, as the run told it" in page
    assert "the networks see 2 large and 2 small crops of an image" in page and "Error)" not in page


def test_what_has_no_place_is_refused_in_a_line(fastlg):
    again, start = ("train", "student.yaml", "teacher=null", "--dry-run"), "model.weights=runs/start"
    refused(fastlg(*again, start, "model.name=deit_tiny_patch16_224"), "without labels as vit_tiny_patch16_224")
    refused(fastlg(*again, start, "model.args.depth=2"), "blocks.2.norm1.weight is not in the model")
    taught = ("train", "student.yaml", "--dry-run", "teacher.recipe=runs/start/config.yaml")
    refused(fastlg(*taught), "trains without labels (pretrain)", "teacher.overrides.pretrain=null")
    for command in (("eval", "runs/start"), ("export", "runs/start", "out"), ("predict", "runs/start", ".")):
        refused(fastlg(*command), "trained without labels", "model.weights=runs/start")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("optim.ema=0.9", ["optim.ema has no place", "set optim.ema=0"]),
        ("optim.sam_rho=0.1", ["optim.sam_rho has no place"]),
        ("model.weights=runs/start", ["model.weights has no place"]),
        ("model.resolution=[[0,16],[0.5,32]]", ["model.resolution has no place"]),
        ("engine.kind=deepspeed", ["DeepSpeed", "engine.kind=plain"]),
        ("data.loader=ffcv", ["data.loader has no place", "data.loader=auto"]),
        ("optim.weight_decay=0", ["pretrain.final_weight_decay"]),
        ("model.name=resnet20 model.args={}", ["pretrain is for students"]),
        ("pretrain.local_size=20", ["pretrain.local_size", "set pretrain.local_size=32"]),
        ("engine.graph=true", ["engine.graph"]),
        ("pretrain.global_scale=[0.9,0.5]", ["the smaller number comes first"]),
    ],
)
def test_settings_that_contradict_it_are_refused(overrides, words, fastlg):
    result = fastlg("pretrain", "student.yaml", "--dry-run", "run.name=no", *overrides.split())
    refused(result, *words)
    blamed = result[2].partition("override")[2]
    assert "pretrain={}" not in blamed and (not blamed or overrides.split()[0] in blamed), "what was typed"


def test_a_config_that_contradicts_it_is_blamed_and_not_what_the_recipe_sets(here, fastlg):
    tree = yaml.safe_load((here / "student.yaml").read_text())
    (here / "mapped.yaml").write_text(yaml.safe_dump({**tree, "data": {**tree["data"], "loader": "ffcv"}}))
    result = fastlg("pretrain", "mapped.yaml", "--dry-run")
    refused(result, "mapped.yaml by the recipe of fastlg pretrain: data.loader has no place", "data.loader=auto")
    assert "override" not in result[2]
    refused(
        fastlg("pretrain", "mapped.yaml", "--dry-run", "data.loader=auto", "optim.ema=0.5"), "override optim.ema=0.5:"
    )


def test_on_a_gpu_its_blocks_are_not_fused_and_cudnn_is_told_what_holds_for_it(inside, monkeypatch):
    asked = {}
    monkeypatch.setattr(assemble, "decide", lambda *own, **more: asked.update(more) or decide(*own, **more))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    config = unlabelled("student.yaml", ["run.name=parts"])[0]
    assemble.assemble(config, open_stores(config.data), None, None)
    switches = decide(EngineConfig(), torch.device("cuda"), torch.bfloat16, **asked)
    assert not switches.fuse and "views of two sizes" in switches.off()
    assert not switches.tune_convolutions and torch.backends.cudnn.benchmark is False


def test_whitening_is_of_the_large_views_that_the_student_begins_with(inside, capsys):
    own = ("model.init=whitening", "model.args.patch_size=4", "model.args.embed_dim=48", "data.workers=0")
    config = unlabelled("student.yaml", [*SMALL, *own, "run.name=white"])[0]
    parts = assemble.assemble(config, open_stores(config.data), None, None)
    assert "start    whitening in 48 of 48 channels, from 152 views" in capsys.readouterr().out
    seen = [parts.views(batch, 0).student.flatten(0, 1) for batch in parts.train_loader.epoch(0)]
    conv = parts.unit.student.bare.patch_embed.proj
    patches = (
        torch.cat(seen).double().unfold(2, 4, 1).unfold(3, 4, 1).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    )
    made = patches @ conv.weight.detach().double().flatten(1).mT
    moments = made.mT @ made / len(made)
    assert (moments - moments.diag().diag()).abs().max() < 1e-4 and moments.diag()[0] > 0.99
    assert torch.equal(parts.teacher.student.bare.patch_embed.proj.weight, conv.weight)


def test_warm_up_is_the_authors_share_where_epochs_are_made_of_the_images():
    config = unlabelled("own_images", [])[0]
    found = values_of(config, Facts(2000, 10, 300))
    assert found["optim.warmup_epochs"] == round(0.15 * found["optim.epochs"])


@pytest.mark.parametrize(("side", "patch", "half"), [(56, 8, 32), (64, 8, 32), (32, 8, 16), (16, 8, 8), (224, 16, 112)])
def test_small_views_are_about_half_in_whole_patches(side, patch, half):
    own = SimpleNamespace(bare=SimpleNamespace(patch_embed=SimpleNamespace(patch_size=(patch, patch))))
    assert about_half(own, side) == half


def test_a_run_with_labels_is_not_made_of_it():
    with pytest.raises(UserError, match="pretrain=null asks for a run with labels.*fastlg train"):
        unlabelled("student.yaml", ["pretrain=null"])


def test_a_config_gives_model_images_epochs_and_batch_and_the_authors_the_rest():
    config, told = unlabelled("student.yaml", ["optim.epochs=40", "optim.global_batch_size=64", "optim.min_lr=0"])
    assert (config.run.name, config.teacher, config.optim.epochs) == ("student_pretrained", None, 40)
    assert config.optim.lr == pytest.approx(1e-4 * 64 / 256) and config.optim.warmup_epochs == 6
    assert (config.optim.min_lr, config.optim.weight_decay, config.pretrain.final_weight_decay) == (0, 0.04, 0.4)
    assert "optim.lr 2.5e-05" in told and "its teacher is left out" in told
    again, _ = unlabelled("student.yaml", ["optim.name=timm:nadamw", "optim.args.eps=1e-6", "teacher.weights=nowhere"])
    assert again.optim.args == {"eps": 1e-6} and again.teacher is None
    last, _ = unlabelled(
        "student.yaml", ["optim.min_lr=0", "optim.min_lr=1e-7", "optim.min_lr=0", "pretrain.outputs=9"]
    )
    assert (last.optim.min_lr, last.pretrain.outputs) == (0, 9)
