"""model.weights through the command line: a run, an export or a file begins another run, whose resume needs it not."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml
from made_images import write_images
from refusals import refused
from resuming import assert_same_run, cut_before_step
from safetensors.torch import save_file

from fastlg.run.checkpoint import load_checkpoint

SHORT = ("optim.epochs=1", "optim.global_batch_size=39", "teacher=null")
FROZEN = ("optim.lr=1e-30", "optim.min_lr=0", "optim.weight_decay=0")  # what began is what is saved


@pytest.fixture(scope="module")
def donor(shared_project, image_folder):
    """A trained run and its export, beside the project."""
    from fastlg.commands.export import export_student
    from fastlg.config import load_config
    from fastlg.run.trained import load_trained
    from fastlg.train import train

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shared_project)
        patch.setenv("FASTLG_CACHE", str(shared_project / "cache"))
        train(load_config("student.yaml", [*SHORT, "run.name=donor"]))
        config, model, classes = load_trained(shared_project / "runs" / "donor")
        export_student(model, shared_project / "exported", class_names=classes, config=config)
    return shared_project / "runs" / "donor"


@pytest.fixture
def here(donor, shared_project, monkeypatch):
    monkeypatch.chdir(shared_project)
    monkeypatch.setenv("FASTLG_CACHE", str(shared_project / "cache"))
    return shared_project


def weights_of(run) -> dict[str, torch.Tensor]:
    unit = load_checkpoint(run / "checkpoints" / "last.pt")["unit"]
    return {key.removeprefix("student.bare."): value for key, value in unit.items()}


@pytest.mark.parametrize("form", ["run", "export", "checkpoint", "pth", "safetensors"])
def test_every_form_begins_a_run_with_the_same_weights(form, here, donor, fastlg):
    given = weights_of(donor)
    torch.save({"model": given}, here / "w.pth")
    save_file(given, here / "w.safetensors")
    forms = {"run": "runs/donor", "export": "exported", "checkpoint": "runs/donor/checkpoints/last.pt"}
    path = forms.get(form, f"w.{form}")
    status, out, err = fastlg("train", "student.yaml", *SHORT, *FROZEN, f"model.weights={path}", f"run.name={form}")
    assert status == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("start ")]
    assert line == f"start    {len(given)} tensors from model.weights {path}"
    for name, value in weights_of(here / "runs" / form).items():
        assert torch.equal(value, given[name]), name


def test_averaged_weights_begin_a_run_as_they_are_exported_and_an_unfinished_run_says_so(here, fastlg, monkeypatch):
    mean = ("train", "student.yaml", *SHORT, "optim.ema=0.5", "log.checkpoint_steps=1", "run.name=mean")
    with cut_before_step(monkeypatch, 2):
        assert fastlg(*mean)[0] != 0
    began = ("train", "student.yaml", *SHORT, *FROZEN, "model.weights=runs/mean")
    status, out, err = fastlg(*began, "run.name=early")
    assert status == 0 and "of model.weights runs/mean (unfinished run)" in out, err
    assert fastlg(*mean)[0] == 0
    status, out, err = fastlg(*began, "run.name=late")
    assert status == 0 and "tensors from the averaged weights of model.weights runs/mean\n" in out, err
    state = load_checkpoint(here / "runs" / "mean" / "checkpoints" / "last.pt")
    averaged, latest = state["engine"]["average"]["weights"], weights_of(here / "runs" / "mean")
    found = weights_of(here / "runs" / "late")
    assert all(torch.equal(value, averaged[f"bare.{name}"]) for name, value in found.items())
    assert not all(torch.equal(value, latest[name]) for name, value in found.items())


def test_another_size_other_classes_and_guidance_begin_with_all_but_the_head(here, donor, fastlg, tmp_path):
    for index, split in enumerate(("train", "test")):
        write_images(tmp_path / "others" / split, per_class=20, seed=index)
        (tmp_path / "others" / split).joinpath("red").rename(tmp_path / "others" / split / "scarlet")
    guided = (f"data.source={tmp_path / 'others'}", "model.image_size=48", "run.name=other", *FROZEN)
    overrides = ("optim.epochs=1", "optim.global_batch_size=60", "model.weights=runs/donor")
    status, out, err = fastlg("train", "student.yaml", *overrides, *guided)
    assert status == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("start ")]
    assert "pos_embed resized from [1, 17, 48] to [1, 37, 48]" in line
    assert "its head tells other classes apart, so that a new one begins" in line
    given, found = weights_of(donor), weights_of(here / "runs" / "other")
    assert torch.equal(found["blocks.2.mlp.fc2.weight"], given["blocks.2.mlp.fc2.weight"])
    assert not found["head.weight"].abs().max() > 1e-6, "zero, as the reference draws it"
    status, out, err = fastlg("eval", here / "runs" / "other")
    assert status == 0, err


def test_a_stopped_run_goes_on_without_its_start_and_only_under_the_same_name(here, donor, fastlg, monkeypatch):
    shutil.copytree(donor, here / "runs" / "mine")
    common = ("train", "student.yaml", "teacher=null", "log.checkpoint_steps=1", "model.weights=runs/mine")
    assert fastlg(*common, "run.name=whole")[0] == 0
    with cut_before_step(monkeypatch, 7):
        assert fastlg(*common, "run.name=cut")[0] != 0
    refused(fastlg(*common[:-1], "run.name=cut"), "model.weights", "another config")
    refused(fastlg(*common[:-1], "run.name=cut", "model.weights=runs/donor"), "model.weights", "another config")
    shutil.rmtree(here / "runs" / "mine")
    status, out, err = fastlg(*common, "run.name=cut")
    assert status == 0 and "resumed" in out and "\nstart " not in out, err
    assert_same_run(here / "runs" / "whole", here / "runs" / "cut")
    status, out, err = fastlg(*common[:-1], f"model.weights={here}/runs/mine", "run.name=cut")
    assert status == 0 and "is complete" in out, err


def test_a_teachers_recipe_may_begin_from_weights(here, fastlg):
    assert fastlg("train", "teacher.yaml", f"data.source={source(here)}", "run.name=cnn", "data.workers=0")[0] == 0
    overrides = ("optim.epochs=1", "optim.global_batch_size=39", "teacher.overrides.model.weights=runs/cnn")
    status, out, err = fastlg("train", "student.yaml", *overrides, "run.name=led")
    assert status == 0 and "tensors from model.weights runs/cnn" in out, err


def source(here) -> str:
    return yaml.safe_load((here / "student.yaml").read_text())["data"]["source"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("runs/donr", ["runs/donr does not exist", "runs/donor"]),
        ("student.yaml", ["student.yaml cannot be read"]),
        ("cut.pt", ["cut.pt cannot be read", "truncated"]),
        ("cut.safetensors", ["cut.safetensors cannot be read"]),
        ("runs", ["runs is no run folder"]),
        ("list.pt", ["holds a list"]),
        (
            "other.pt",
            ["does not fit the model: no cls_token and 41 more; strange is not in the model", "model.args"],
        ),
        ("altered.pt", ["altered.pt cannot be read", "truncated"]),
        ("/dev/zero", ["/dev/zero is a device"]),
    ],
)
def test_a_start_that_cannot_be_is_one_line_before_anything_is_trained(path, words, here, fastlg):
    whole = (here / "runs" / "donor" / "checkpoints" / "last.pt").read_bytes()
    (here / "cut.pt").write_bytes(whole[:5000])
    (here / "altered.pt").write_bytes(whole[:50000] + bytes([whole[50000] ^ 1]) + whole[50001:])
    (here / "cut.safetensors").write_bytes((here / "exported" / "model.safetensors").read_bytes()[:300])
    torch.save([1, 2], here / "list.pt")
    torch.save({"strange": torch.zeros(3)}, here / "other.pt")
    refused(fastlg("train", "student.yaml", f"model.weights={path}", "run.name=never"), *words)
    assert not (here / "runs" / "never").exists()
