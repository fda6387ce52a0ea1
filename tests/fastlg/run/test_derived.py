"""What a config leaves to the images is made of them by the rules of docs/own_images.md, once, and kept."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from made_images import write_images
from refusals import refused
from resuming import assert_same_run, cut_before_step

from fastlg.config import load_config, save_config
from fastlg.config.auto import KEYS, Facts, open_keys, values_of
from fastlg.derived import derived
from fastlg.errors import UserError
from fastlg.models.build import build_model
from fastlg.run.folder import SHOWN

TABLE = [  # images, classes, shorter side -> px, the teacher's px, batch, epochs, whether images are seen 50 times
    ((188, 4, 300), 96, 64, 16, 115, True),  # 12 steps an epoch, 1,371 updates
    ((319, 4, 64), 64, 32, 16, 90, True),
    ((320, 4, 65), 96, 64, 32, 179, True),
    ((1020, 17, 500), 96, 64, 32, 100, True),
    ((1500, 10, 32), 64, 32, 32, 83, True),
    ((2040, 102, 500), 96, 64, 32, 80, True),  # 50 updates for each class are more
    ((5000, 10, 200), 96, 64, 32, 46, False),
    ((20_000, 10, 200), 96, 64, 32, 23, False),
]


@pytest.mark.parametrize(("facts", "size", "teachers", "batch", "epochs", "often"), TABLE)
def test_the_rules_are_those_that_the_page_states(facts, size, teachers, batch, epochs, often):
    student, teacher = load_config("own_images"), load_config("own_images_teacher")
    steps = math.ceil(facts[0] / batch)
    assert epochs == math.ceil(max(100 * math.sqrt(facts[0]), 50 * facts[1]) / steps)
    augment = {"augment.rand_augment": "rand-m9-mstd0.5-inc1" if often else None, "augment.erase": 0.25 * often}
    shared = {"optim.global_batch_size": batch, "optim.epochs": epochs}
    rising = {64: [(0.0, 32), (0.3, 48), (0.6, 64)], 96: [(0.0, 48), (0.3, 72), (0.6, 96)]}[size]
    sizes = {"model.image_size": size, "model.resolution": rising}
    wanted = sizes | {"optim.warmup_epochs": round(epochs / 20), "optim.lr": 8e-3} | augment | shared
    assert values_of(student, Facts(*facts)) == wanted
    assert values_of(student.replace({"teacher": None}), Facts(*facts)) == wanted | {"optim.lr": 4e-3}
    for own, rate in (({"guidance.weight": 0}, 4e-3), ({"guidance.weight": 0, "guidance.logits": "soft"}, 8e-3)):
        assert values_of(student.replace(own), Facts(*facts))["optim.lr"] == rate
    shared["augment.rand_augment"] = augment["augment.rand_augment"]
    assert values_of(teacher, Facts(*facts)) == {"model.image_size": teachers} | shared
    assert set(KEYS) == set(open_keys(student))


def test_a_number_takes_the_place_of_a_rule_and_the_others_follow_it():
    config = load_config("own_images", ["optim.global_batch_size=8", "optim.epochs=4", "optim.name=adamw"])
    found = values_of(config, Facts(320, 4, 300))
    assert (found["optim.warmup_epochs"], found["augment.rand_augment"], found["optim.lr"]) == (0, None, 2e-3)
    assert not {"optim.global_batch_size", "optim.epochs"} & found.keys()
    with pytest.raises(UserError, match="optim.lr is auto.*muon and adamw, not timm:lamb"):
        values_of(load_config("own_images", ["optim.name=timm:lamb"]), Facts(320, 4, 300))


@pytest.mark.parametrize(
    ("own", "sizes"),
    [
        (["optim.epochs=4"], []),  # too short to rise
        (["model.image_size=224", "model.args.patch_size=16"], [112, 160, 224]),
        (["model.image_size=224", "model.args={}"], [112, 160, 224]),  # the name's own patches of 16 px
        (["model.image_size=100"], []),  # refused as ever, in the model's own words
        (["model.image_size=24"], []),
        (["model.args.reg_tokens=1"], []),
        (["model.name=deit_tiny_distilled_patch16_224"], []),
        (["model.name=swin_tiny_patch4_window7_224"], []),
        (["model.name=resnet20", "model.args={}", "teacher=null"], []),
        (["drloc.weight=0.1"], []),
        (["teacher.mode=cache", "teacher.cache_form=compact"], []),
        (["teacher.mode=cache"], [48, 72, 96]),
    ],
)
def test_images_grow_where_every_part_of_the_run_can_follow(own, sizes):
    config = load_config("own_images", ["augment.rand_augment=null", "augment.erase=0", *own])
    found = values_of(config, Facts(1020, 17, 500))
    assert [size for _, size in found["model.resolution"]] == sizes
    if sizes:  # which the model takes
        build_model(config.replace(found).model, num_classes=17, guided=True)


TINY = ("model.args={patch_size: 16, embed_dim: 24, depth: 3, num_heads: 3}", "data.workers=0", "log.every_steps=1")
SHORT = ("teacher.overrides.optim.epochs=1", "teacher.overrides.optim.global_batch_size=39")
OWN = ("optim.epochs=2", "optim.global_batch_size=39", "log.tensorboard=false", "log.checkpoint_steps=1")


def test_own_images_train_resume_and_are_kept_resolved(project, image_folder, fastlg, monkeypatch):
    run = ("train", "own_images", f"data.source={image_folder}", *TINY, *SHORT, *OWN)
    status, out, err = fastlg(*run, "run.name=whole")
    assert status == 0, err
    line = next(line for line in out.splitlines() if line.startswith("derived"))
    assert "image_size 64" in line and "teacher: image_size 32" in line and "78 images of 3 classes" in line
    saved = yaml.safe_load((project / "runs" / "whole" / "config.yaml").read_text())
    assert (saved["model"]["image_size"], saved["optim"]["lr"], saved["optim"]["warmup_epochs"]) == (64, 8e-3, 0)
    assert saved["teacher"]["overrides"]["model.image_size"] == 32 and "auto" not in saved["optim"].values()
    with cut_before_step(monkeypatch, 5):  # one of the teacher's steps would be the first, but it is there
        assert fastlg(*run, "run.name=cut", "optim.epochs=3")[0] == 130
    assert fastlg(*run, "run.name=cut", "optim.epochs=3")[0] == 0
    assert fastlg(*run, "run.name=long", "optim.epochs=3")[0] == 0
    assert_same_run(project / "runs" / "long", project / "runs" / "cut")
    status, out, err = fastlg(*run, "run.name=whole")
    assert status == 0 and "is complete" in out, err
    refused(fastlg(*run, "run.name=whole", "model.image_size=48"), "model.image_size 64 -> 48")


def test_a_comparison_gives_each_side_its_own_rate_and_the_rest_alike(project, fastlg):
    for split, count in (("train", 13), ("test", 3)):
        write_images(project / "own" / split, per_class=count, seed=count)
    compare = ("compare", "own_images", "data.source=own", *TINY, *SHORT, *OWN, "run.name=both")
    status, _, err = fastlg(*compare)
    assert status == 0, err
    runs = {part: load_config(str(project / "runs" / "both" / part / "config.yaml")) for part in ("unguided", "guided")}
    assert [runs[part].optim.lr for part in ("unguided", "guided")] == [4e-3, 8e-3]
    assert runs["guided"].augment == runs["unguided"].augment


def test_of_a_teacher_that_is_there_only_what_counts_is_told(project, image_folder, capfd):
    config = load_config("own_images", [f"data.source={image_folder}"])
    (project / "weights.pth").touch()
    size = "; teacher: image_size 32"
    for weights, told in ((".", ""), ("weights.pth", f"{size}; from"), (None, f"{size}, global_batch_size")):
        made = derived(config.replace({"teacher.weights": weights}))
        out = capfd.readouterr().out
        assert told in out and ("; teacher:" in out) is bool(told), out
        assert made.teacher.overrides["model.image_size"] == 32, "a run of one kind goes on with the other"


def test_images_that_changed_since_are_called_that_and_not_another_config(project, image_folder):
    config = load_config("own_images", [f"data.source={image_folder}"])
    made = derived(config, is_told=False)
    made.run_dir.mkdir(parents=True)
    (made.run_dir / "summary.json").write_text(json.dumps(dict.fromkeys(SHOWN, 1) | {"fingerprints": ["others"]}))
    for change in ({}, {"optim.epochs": 7}, {"teacher.overrides": {"optim.epochs": 7}}):
        save_config(made.replace(change), made.run_dir / "config.yaml")
        with pytest.raises(UserError, match=f"own_images was trained on other images than {image_folder} now holds"):
            derived(config)
    save_config(made.replace({"optim.weight_decay": 0.3}), made.run_dir / "config.yaml")
    assert derived(config) == made, "another config, which is told by the part that compares those"


def test_without_a_rule_to_follow_no_image_is_read(project):
    config = load_config("student.yaml", ["data.source=nowhere"])
    assert derived(config) is config
