"""The main job through the command line: images in, teacher and guided student out, everything in the run folder."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from rank_processes import train_in_turn
from refusals import refused

SUMMARY_KEYS = {
    "top1_last",
    "top1_best",
    "top5_last",
    "images_per_s",
    "wall_s",
    "epochs",
    "seed",
    "device",
    "commit",
    "versions",
}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_train_finds_no_teacher_trains_one_and_leaves_the_run_folder(project, fastlg):
    status, out, err = fastlg("train", "student.yaml")
    assert status == 0, err
    run = project / "runs" / "student"
    summary = json.loads((run / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert {p.name for p in run.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "summary.json",
        "curves.png",
    }
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"last.pt", "best.pt"}
    evals = [row for row in rows(run) if row["kind"] == "eval"]
    assert [row["epoch"] for row in evals] == [1, 2] and evals[-1]["count"] == 33
    assert summary["top1_last"] == evals[-1]["top1"] and summary["top1_best"] == max(row["top1"] for row in evals)
    steps = [row["step"] for row in rows(run) if row["kind"] == "train"]
    assert steps == [2, 4, 6, 8]  # 78 images, batch 16, last partial batch dropped: 4 steps an epoch
    teachers = list((project / "runs" / "teachers").iterdir())
    assert len(teachers) == 1 and (teachers[0] / "summary.json").is_file()

    before = (teachers[0] / "summary.json").stat().st_mtime_ns
    status, out, err = fastlg("train", "student.yaml", "run.name=again", "optim.epochs=1")
    assert status == 0 and (teachers[0] / "summary.json").stat().st_mtime_ns == before, "the teacher was trained twice"
    assert len(list((project / "runs" / "teachers").iterdir())) == 1


def test_a_finished_run_is_not_trained_again(project, fastlg):
    arguments = ("train", "student.yaml", "teacher=null", "optim.epochs=1")
    assert fastlg(*arguments)[0] == 0
    before = (project / "runs" / "student" / "metrics.jsonl").read_text()
    status, out, _ = fastlg(*arguments)
    assert status == 0 and "is complete" in out
    assert (project / "runs" / "student" / "metrics.jsonl").read_text() == before


def test_a_finished_run_tells_that_its_images_are_others_now(project, fastlg, image_folder):
    """By names, sizes and times, without reading an image, and by the content of a store of what is there now."""
    from fastlg.config import load_config
    from fastlg.data.stores import open_stores, what_changed

    shutil.copytree(image_folder, project / "images")
    given = ("student.yaml", "data.source=images", "teacher=null", "optim.epochs=1")
    told = "warning  since it was trained"
    assert fastlg("train", *given)[0] == 0
    status, out, err = fastlg("train", *given)
    assert status == 0 and told not in out, err
    first = sorted((project / "images" / "train").rglob("*.png"))[0]
    first.rename(first.with_name("moved.png"))
    status, out, err = fastlg("train", *given)
    assert status == 0 and f"{told} the files of images have changed (names, sizes or times); another run.name" in out
    open_stores(load_config(given[0], given[1:]).data)
    first.with_name("moved.png").rename(first)
    open_stores(load_config(given[0], given[1:]).data)
    status, out, err = fastlg("train", *given)
    assert status == 0 and told not in out, "the same again"
    first.unlink()
    open_stores(load_config(given[0], given[1:]).data)
    status, out, err = fastlg("train", *given)
    assert status == 0 and f"{told} images holds other images now; another run.name" in out, err
    store = open_stores(load_config(given[0], given[1:]).data).path
    held = load_config(given[0], [f"data.source={store}", "data.val=0.2"]).data  # a store without that split
    assert what_changed(held, ["another"]) == f"{store} holds other images now"
    shutil.rmtree(project / "images")
    assert what_changed(load_config(given[0], given[1:]).data, ["another"]) == ""
    refused(fastlg("train", *given), "images")


def test_eval_and_export_give_what_training_measured(project, fastlg):
    import timm

    from fastlg.run.trained import load_trained

    assert fastlg("train", "student.yaml", "optim.epochs=1")[0] == 0
    run = project / "runs" / "student"
    top1 = json.loads((run / "summary.json").read_text())["top1_last"]
    status, out, _ = fastlg("eval", run)
    assert status == 0 and f"top-1 {top1:.2f} %" in out and "33 images" in out
    status, out, err = fastlg("export", run, project / "out")
    assert status == 0, err
    _, ours, names = load_trained(run, "last")
    theirs = timm.create_model(f"local-dir:{project / 'out'}", pretrained=True).eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images)[0], rtol=1e-6, atol=1e-6)
    status, _, err = fastlg("export", run, project / "out")
    assert status == 2 and str(project / "out") in err
    status, _, err = fastlg("eval", run, "--which", "worst")
    assert status == 2 and "worst" in err


def test_compare_trains_both_students_on_the_same_budget(project, fastlg):
    status, out, err = fastlg("compare", "student.yaml", "optim.epochs=1")
    assert status == 0, err
    folder = project / "runs" / "student"
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == ["teacher", "unguided", "guided"]
    for part in summary.values():
        assert part.keys() >= SUMMARY_KEYS
    assert summary["unguided"]["epochs"] == summary["guided"]["epochs"] == 1
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    first = [[r for r in rows(folder / name) if r["kind"] == "train"][0] for name in ("unguided", "guided")]
    # DeiT-style zero head or not: the very first losses see the same weights, images and labels
    assert first[0]["loss_guidance"] == 0 and first[1]["loss_guidance"] > 0
    for word in ("teacher", "unguided", "guided", "guidance:", "points"):
        assert word in out
    written = json.loads((folder / "compare.json").read_text())
    gain = summary["guided"]["top1_last"] - summary["unguided"]["top1_last"]
    assert written["evidence"]["differences"] == pytest.approx([gain]) and written["evidence"]["images"] == 33
    assert written["findings"][0] in out and written["findings"][0] in (folder / "compare.tex").read_text()
    refused = fastlg("export", folder, "out")
    assert refused[0] == 2 and "runs/student/unguided or" in refused[2] and "runs/student/guided" in refused[2]


def test_dry_run_takes_one_step_and_writes_no_run(project, fastlg):
    status, out, err = fastlg("train", "student.yaml", "--dry-run")
    assert status == 0 and "dry run" in out, err
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["guidance.logits=soft", "guidance.temperature=2.0"],
        ["guidance.logits=hard"],
        ["guidance.transform=attention"],
        ["guidance.transform=similarity"],
        ["guidance.reduction=sum_channels", "teacher.norm_stats=running"],
        ["engine.precision=bf16"],
        ["model.blocks=auto", "data.loader=torch"],
        ["optim.name=sgd", "optim.global_batch_size=500"],
        ["optim.name=muon", "teacher.overrides.optim.name=muon"],
    ],
    ids=lambda o: o[0],
)
def test_every_objective_trains_a_step(project, fastlg, overrides):
    status, out, err = fastlg("train", "student.yaml", "--dry-run", *overrides)
    assert status == 0 and "loss" in out, err


def test_mixing_reaches_the_loss(project, fastlg):
    """Same weights, images and draws: only the mix may change the first loss."""
    losses = []
    for name, overrides in (("plain", []), ("mixed", ["augment.mixup=0.8", "augment.cutmix=1.0"])):
        arguments = ("teacher=null", "model.init=timm", "optim.epochs=1", f"run.name={name}", *overrides)
        assert fastlg("train", "student.yaml", *arguments)[0] == 0
        losses.append(rows(project / "runs" / name)[0]["loss_cls"])
    assert losses[0] != losses[1]


def test_a_run_of_an_older_version_is_still_its_own(project, fastlg):
    """A config.yaml that lacks a field added since means that field's default."""
    import yaml

    arguments = ("train", "student.yaml", "teacher=null", "optim.epochs=1")
    assert fastlg(*arguments)[0] == 0
    saved = project / "runs" / "student" / "config.yaml"
    tree = yaml.safe_load(saved.read_text())
    del tree["augment"]["mix_probability"]
    saved.write_text(yaml.safe_dump(tree))
    status, out, err = fastlg(*arguments)
    assert status == 0 and "is complete" in out, err


CACHED = ("teacher.mode=auto", "teacher.cache=features", "augment.rand_augment=null", "augment.erase=0")


def test_a_run_of_relative_paths_goes_on_from_another_working_folder(project, fastlg, image_folder, monkeypatch):
    (project / "images").symlink_to(image_folder)
    given = ("data.source=images", "data.store=stores", "optim.epochs=1", *CACHED)
    train_in_turn([(list(given), 3 + 2)])  # of the teacher, of the student
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("FASTLG_CACHE", str(project / "other"))
    saved = project / "runs" / "student" / "config.yaml"
    status, out, err = fastlg("train", saved)
    assert status == 0 and "resumed" in out and "is complete" in out, (out, err)  # the student; its teacher
    assert fastlg("eval", saved.parent)[0] == 0 and fastlg("analyze", saved.parent, "--views")[0] == 0
    assert not list(elsewhere.iterdir()) and not (project / "other").exists()
    (teacher,) = (project / "runs" / "teachers").iterdir()
    recipe, root = f"teacher.recipe={project / 'teacher.yaml'}", f"run.root={project / 'runs'}"
    absolute = (f"data.source={image_folder}", "optim.epochs=1", recipe, root)
    status, out, err = fastlg("train", project / "student.yaml", *absolute, "run.name=absolute")
    assert status == 0 and f"finished {teacher} is complete" in out, (out, err)
    assert list((project / "runs" / "teachers").iterdir()) == [teacher], "one teacher, by whatever path its images"

    for name in ("runs", "student.yaml", "teacher.yaml"):
        (project / name).rename(elsewhere / name)
    status, out, err = fastlg("train", "student.yaml", "data.source=../images", *given[1:])
    assert status == 0 and "runs/student is complete" in out, "moved as a whole, it is still the same run"


def test_another_recipe_of_the_same_file_name_makes_another_run(project, fastlg):
    assert fastlg("train", "student.yaml", "optim.epochs=1")[0] == 0
    recipe = (project / "teacher.yaml").read_text()
    for folder, text in (("same", recipe), ("other", recipe.replace("lr: 0.05", "lr: 0.04"))):
        (project / folder).mkdir()
        (project / folder / "teacher.yaml").write_text(text)
    status, out, _ = fastlg("train", "student.yaml", "optim.epochs=1", "teacher.recipe=same/teacher.yaml")
    assert status == 0 and "is complete" in out
    status, _, err = fastlg("train", "student.yaml", "optim.epochs=1", "teacher.recipe=other/teacher.yaml")
    assert status == 2 and "teacher.recipe" in err and "other/teacher.yaml" in err


def test_nested_and_dotted_teacher_overrides_mean_the_same(project, fastlg):
    assert fastlg("train", "student.yaml", "optim.epochs=1", "teacher.overrides={optim: {lr: 0.01}}")[0] == 0
    status, out, err = fastlg(
        "train", "student.yaml", "run.name=b", "optim.epochs=1", "teacher.overrides.optim.lr=0.01"
    )
    assert status == 0 and len(list((project / "runs" / "teachers").iterdir())) == 1, out
