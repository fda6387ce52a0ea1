"""Each mistake of a user is one line that says what, where and the fix; status 2; no traceback; nothing is lost."""

from __future__ import annotations

import json
import shutil

import pytest
from refusals import refused


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.epoch=3", ["optim.epoch", "optim.epochs"]),
        ("model.blocks=[0, 1, 3]", ["3", "2"]),
        ("model.blocks=[0, 1]", ["[0, 1]", "[0, 1, 2]"]),
        ("model.name=resnet50_clip", ["resnet50_clip"]),
        ("model.args.depht=2", ["depht"]),
        ("optim.betas=[0.9, 1.0]", ["optim.betas", "1.0"]),
        ("data.source=no/such/folder", ["no/such/folder"]),
        ("teacher.recipe=nothing", ["nothing"]),
        ("teacher.weights=no/such/run", ["no/such/run"]),
        ("augment.rand_augment=rand-q9", ["rand-q9"]),
        ("engine.precision=fp16", ["fp16", "bf16"]),
        ("engine.device=cuda", ["cuda", "engine.device=cpu"]),
        ("engine.device=cpu guidance.impl=triton", ["guidance.impl", "triton", "guidance.impl=auto"]),
        ("engine.device=cpu engine.graph=true", ["engine.graph", "CUDA", "auto"]),
        ("engine.deepspeed_config=/dev/zero", ["/dev/zero", "a device"]),
        ("engine.micro_batch_size=7", ["7", "optim.global_batch_size 16"]),
        ("data.workers=1e9", ["data.workers is 1000000000", "from 0 to 1,024"]),
        ("data.workers=1024", ["data.workers is 1024", "cores", "at most"]),
        ("model.args.depth=1000000000", ["model.args.depth is 1000000000", "at most 1,000"]),
        ("model.args.embed_dim=1000000", ["model.args.embed_dim is 1000000", "at most 65,536"]),
        ("model.args.embed_dim=60000", ["weights", "at most 2,000,000,000"]),
        ("model.args.norm_layer=[1]", ["model.args"]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_values_are_refused_before_anything_is_trained(project, fastlg, override, words):
    if "device=cuda" in override and __import__("torch").cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    refused(fastlg("train", "student.yaml", *override.split(" ") if "device=cpu" in override else [override]), *words)
    assert not (project / "runs").exists(), "something was trained before the mistake was found"


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        ("~nouser", ["FASTLG_CACHE=~nouser", "no user"]),
        ("x" * 300, ["FASTLG_CACHE=xxx", "255 bytes"]),
        ("x/" * 2500, ["FASTLG_CACHE=x/x", "4,000 bytes"]),
        ("/dev/null", ["/dev/null", "set FASTLG_CACHE"]),
        ("/proc/nothing", ["/proc/nothing", "set FASTLG_CACHE"]),
        ("student.yaml", ["student.yaml", "set FASTLG_CACHE"]),
    ],
    ids=lambda value: value[:15] if isinstance(value, str) else "",
)
def test_a_cache_folder_that_cannot_be_is_named(project, fastlg, monkeypatch, cache, words):
    monkeypatch.setenv("FASTLG_CACHE", cache)
    refused(fastlg("train", "student.yaml", "teacher=null"), *words)


def test_other_settings_of_the_environment_do_no_harm(project, fastlg, monkeypatch):
    monkeypatch.setenv("FASTLG_LAUNCHER", "nobody")
    monkeypatch.setenv("HOME", "")
    assert fastlg("train", "student.yaml", "teacher=null", "optim.epochs=1")[0] == 0


@pytest.mark.parametrize("override", ["guidance.weight=1e300", "guidance.weight=3e38"])
def test_a_first_loss_that_is_not_finite_fails_dry_run_and_run(project, fastlg, override):
    for dry_run in (("--dry-run",), ()):
        refused(fastlg("train", "student.yaml", override, *dry_run), "loss inf", "guidance.weight", status=1)
    assert not (project / "runs" / "student" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, ["deep"]),
        ('{"a": NaN}', ["NaN is no number"]),
        (" " * (2 << 20), ["1,048,576 bytes"]),
        ("[1]", ["list"]),
        ("{", ["not valid JSON"]),
    ],
    ids=lambda value: value[:10].strip() if isinstance(value, str) else "",
)
def test_a_deepspeed_file_that_cannot_be_is_named(project, fastlg, text, words):
    (project / "ds.json").write_text(text)
    arguments = ("train", "student.yaml", "teacher=null", "engine.deepspeed_config=ds.json", "--dry-run")
    refused(fastlg(*arguments), "engine.deepspeed_config ds.json", *words)


def test_a_folder_of_other_files_and_another_run_are_left_alone(project, fastlg):
    (project / "runs" / "student").mkdir(parents=True)
    (project / "runs" / "student" / "thesis.txt").write_text("years of work")
    refused(fastlg("train", "student.yaml"), "runs/student", "run.name")
    assert (project / "runs" / "student" / "thesis.txt").read_text() == "years of work"

    one = ("train", "student.yaml", "teacher=null", "run.name=one", "optim.epochs=1")
    assert fastlg(*one)[0] == 0
    before = (project / "runs" / "one" / "checkpoints" / "last.pt").read_bytes()
    refused(fastlg(*one, "optim.lr=0.5"), "runs/one", "optim.lr", "0.001", "0.5", "run.name")
    refused(fastlg(*one, "--resume", "never"), "runs/one", "never")
    assert (project / "runs" / "one" / "checkpoints" / "last.pt").read_bytes() == before


def test_damaged_and_foreign_checkpoints_are_named(project, fastlg):
    one = ("train", "student.yaml", "teacher=null", "optim.epochs=1")
    assert fastlg(*one)[0] == 0
    run = project / "runs" / "student"
    good = (run / "checkpoints" / "last.pt").read_bytes()
    (run / "summary.json").unlink()
    (run / "checkpoints" / "last.pt").write_bytes(good[: len(good) // 2])
    refused(fastlg(*one), "last.pt", "--resume")
    refused(fastlg("eval", run), "last.pt")
    refused(fastlg("eval", project), "no run folder")
    other = project / "other.pt"
    other.write_bytes(good)
    refused(fastlg(*one, "run.name=two", "run.seed=9", "--resume", str(other)), "other.pt", "run.seed", "3", "9")
    refused(fastlg(*one, "run.name=two", "--resume", "nowhere.pt"), "nowhere.pt")


def test_a_loss_that_turns_non_finite_stops_before_a_checkpoint(project, fastlg):
    arguments = (
        "train",
        "student.yaml",
        "teacher=null",
        "optim.lr=1e30",
        "optim.warmup_epochs=0",
        "log.every_steps=50",
    )
    refused(fastlg(*arguments), "not finite at step", "classification", status=1)
    assert not (project / "runs" / "student" / "checkpoints").exists()


def test_test_images_of_other_classes_are_refused(project, fastlg, image_folder):
    mixed = project / "mixed"
    shutil.copytree(image_folder, mixed)
    (mixed / "test" / "red").rename(mixed / "test" / "purple")
    refused(fastlg("train", "student.yaml", f"data.source={mixed}"), "purple")


def test_one_class_and_no_image_are_refused(project, fastlg, image_folder):
    single = project / "single"
    for split in ("train", "test"):
        shutil.copytree(image_folder / split / "red", single / split / "red")
    refused(fastlg("train", "student.yaml", f"data.source={single}"), "red")
    (project / "empty" / "train").mkdir(parents=True)
    refused(fastlg("train", "student.yaml", f"data.source={project / 'empty'}"), "empty")


def test_hostile_files_in_a_class_folder_behave_as_their_manifest_says(project, fastlg, image_folder, shared):
    manifest = json.loads((shared / "data" / "corrupt" / "manifest.json").read_text(encoding="utf-8"))
    for entry in manifest["files"]:
        if entry["expect"] != "reject":
            continue
        folder = project / entry["file"].partition(".")[0]
        shutil.copytree(image_folder, folder)
        shutil.copy(shared / "data" / "corrupt" / entry["file"], folder / "train" / "red")
        refused(fastlg("train", "student.yaml", "--dry-run", "teacher=null", f"data.source={folder}"), entry["file"])
    good = project / "good"
    shutil.copytree(image_folder, good)
    accepted = [entry["file"] for entry in manifest["files"] if entry["expect"] == "accept"]
    assert accepted
    for name in accepted:
        shutil.copy(shared / "data" / "corrupt" / name, good / "train" / "red")
    status, out, err = fastlg("train", "student.yaml", "--dry-run", "teacher=null", f"data.source={good}")
    assert status == 0 and f"{78 + len(accepted)} train" in out, err


def test_a_loss_that_explodes_only_in_the_test_is_not_saved(project, fastlg):
    """With one update per epoch, every loss seen in training is that of the weights before the explosion."""
    one_step = ("optim.global_batch_size=78", "optim.warmup_epochs=0", "optim.name=sgd")
    refused(fastlg("train", "student.yaml", "teacher=null", "optim.lr=1e30", *one_step), "not", "optim.lr", status=1)
    assert not (project / "runs" / "student" / "checkpoints").exists()


def test_another_teacher_cannot_take_over_a_started_run(project, fastlg):
    assert fastlg("train", "student.yaml", "optim.epochs=1")[0] == 0
    (project / "runs" / "student" / "summary.json").unlink()
    recipe = project / "teacher.yaml"
    recipe.write_text(recipe.read_text().replace("lr: 0.05", "lr: 0.04"))
    refused(fastlg("train", "student.yaml", "optim.epochs=1"), "another teacher", "teacher.weights")


def test_compare_and_train_do_not_overwrite_each_other(project, fastlg):
    assert fastlg("train", "student.yaml", "optim.epochs=1")[0] == 0
    before = (project / "runs" / "student" / "summary.json").read_text()
    refused(fastlg("compare", "student.yaml", "optim.epochs=1"), "runs/student", "run.name")
    assert (project / "runs" / "student" / "summary.json").read_text() == before


@pytest.mark.parametrize("damage", ["", "optim: [1", "just words"])
def test_a_damaged_config_of_a_run_is_named(project, fastlg, damage):
    assert fastlg("train", "student.yaml", "teacher=null", "optim.epochs=1")[0] == 0
    run = project / "runs" / "student"
    (run / "config.yaml").write_text(damage)
    for command in (("eval", run), ("train", "student.yaml", "teacher=null", "optim.epochs=1")):
        refused(fastlg(*command), "config.yaml")


def test_eval_refuses_to_change_the_trained_model(project, fastlg):
    assert fastlg("train", "student.yaml", "teacher=null", "optim.epochs=1")[0] == 0
    refused(fastlg("eval", project / "runs" / "student", "model.image_size=64"), "model.image_size")
