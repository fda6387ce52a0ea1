"""Whatever can be refused is refused before a teacher or another run is trained, and leaves what was there."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from refusals import refused

from fastlg.errors import UserError
from fastlg.run import run as run_module
from fastlg.run.lock import run_lock

CACHED = ("teacher.cache_augment=all",)


def foreign_folder(project):
    (project / "thesis").mkdir()
    (project / "thesis" / "years.txt").write_text("of work")


def foreign_compare(project):
    (project / "runs" / "student" / "thesis").mkdir(parents=True)


def a_file_named_checkpoints(project):
    (project / "runs" / "student").mkdir(parents=True)
    (project / "runs" / "student" / "checkpoints").write_text("")


def damaged_checkpoint(project, run="student"):
    (project / "runs" / run / "checkpoints").mkdir(parents=True)
    (project / "runs" / run / "checkpoints" / "last.pt").write_bytes(b"PK half")


def damaged_unguided(project):
    damaged_checkpoint(project, "student/unguided")


def other_guided(project):
    from fastlg.config import load_config, save_config

    folder = project / "runs" / "student" / "guided"
    folder.mkdir(parents=True)
    save_config(load_config("student.yaml", ["optim.lr=0.5"]), folder / "config.yaml")


def single_run(project):
    (project / "runs" / "student").mkdir(parents=True)
    (project / "runs" / "student" / "config.yaml").write_text(yaml.safe_dump({}))


def no_deepspeed_config(project):
    (project / "zero.json").write_text('{"optimizer": {}}')


@pytest.mark.parametrize(
    ("command", "arguments", "made", "words"),
    [
        ("train", ("teacher.mode=cache", *CACHED), None, ["teacher.mode", "fastlg cache"]),
        ("train", ("teacher.mode=auto", "teacher.cache=thesis", *CACHED), foreign_folder, ["thesis", "teacher.cache"]),
        ("train", ("teacher.mode=auto", "teacher.cache=student.yaml/c", *CACHED), None, ["student.yaml", "cache"]),
        ("train", ("teacher.mode=auto", "teacher.cache_form=compact", *CACHED), None, ["crop", "maps"]),
        ("train", ("--resume", "nowhere.pt"), None, ["nowhere.pt"]),
        ("train", (), damaged_checkpoint, ["last.pt", "run.name"]),
        ("train", (), a_file_named_checkpoints, ["checkpoints", "run.name"]),
        ("train", ("engine.kind=plain", "engine.zero_stage=1"), None, ["engine.zero_stage", "engine.kind"]),
        ("train", ("engine.deepspeed_config=no.json",), None, ["no.json"]),
        ("train", ("engine.deepspeed_config=zero.json",), no_deepspeed_config, ["zero.json", "optimizer"]),
        ("cache", ("teacher.mode=auto", "teacher.cache=thesis", *CACHED), foreign_folder, ["thesis", "teacher.cache"]),
        ("compare", (), single_run, ["runs/student", "single run", "run.name"]),
        ("compare", (), foreign_compare, ["runs/student", "thesis", "run.name"]),
        ("compare", (), other_guided, ["guided", "optim.lr", "run.name"]),
        ("compare", (), damaged_unguided, ["unguided", "last.pt"]),
        ("compare", ("teacher.weights=no/such/run",), None, ["no/such/run"]),
        ("compare", ("teacher.mode=cache", *CACHED), None, ["teacher.mode"]),
        ("train", (), other_guided, ["comparison", "run.name"]),
    ],
)
def test_nothing_is_trained_for_what_is_refused(project, fastlg, command, arguments, made, words):
    if made is not None:
        made(project)
    before = sorted(path for path in project.rglob("*") if "cache" not in path.parts)
    refused(fastlg(command, "student.yaml", *arguments), *words)
    assert sorted(path for path in project.rglob("*") if "cache" not in path.parts) == before


@pytest.mark.parametrize(
    "left",
    [
        ["config.yaml.partial"],
        ["run.lock", "config.yaml.partial", "metrics.jsonl"],
        [".nfs00000001", ".DS_Store", "._config.yaml", "Thumbs.db"],
        ["checkpoints/last.pt.partial", "tensorboard/events", "summary.json.partial", "curves.png"],
    ],
    ids=str,
)
def test_what_fastlg_left_of_a_run_makes_no_folder_foreign(project, fastlg, left):
    for name in left:
        (project / "runs" / "student" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "runs" / "student" / name).write_text("half a li")
    status, _, err = fastlg("train", "student.yaml", "teacher=null", "optim.epochs=1")
    assert status == 0, err
    assert fastlg("eval", "runs/student")[0] == 0
    assert fastlg("train", "student.yaml", "teacher=null", "optim.epochs=1")[0] == 0


def test_a_full_disk_at_the_first_config_is_one_line_and_the_next_command_trains(project, fastlg, monkeypatch):
    from fastlg.files import atomic as files

    moved = files.os.replace

    def full(source, target):
        if str(target).endswith("config.yaml"):
            raise OSError(errno.ENOSPC, "No space left on device")
        moved(source, target)

    one = ("train", "student.yaml", "teacher=null", "optim.epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        refused(fastlg(*one), "runs/student", "No space left")
    assert fastlg(*one)[0] == 0


def test_a_folder_deleted_in_the_middle_is_one_line_and_the_next_command_trains(project, fastlg, monkeypatch):
    one = ("train", "student.yaml", "teacher=null", "optim.epochs=1")
    after_step = run_module.Run.after_step

    def deleting(self, out):
        shutil.rmtree(self.folder, ignore_errors=True)
        after_step(self, out)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Run, "after_step", deleting)
        refused(fastlg(*one), "runs/student", "deleted", "anew", status=1)
    assert not (project / "runs" / "student").exists()
    assert fastlg(*one)[0] == 0


@pytest.mark.parametrize("place", ["/proc/fastlg/run", "deleted"])
def test_a_run_where_no_folder_can_be_is_refused_at_once(tmp_path, monkeypatch, place):
    if place == "deleted":
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        place = "runs/student"
    with pytest.raises(UserError, match="cannot write to .*run.root"):
        run_lock(Path(place)).__enter__()


def test_a_comparison_is_not_continued_on_other_images(project, fastlg, image_folder):
    shutil.copytree(image_folder, "images")
    own = ("student.yaml", "optim.epochs=1", "data.source=images", "engine.device=cpu")
    status, _, err = fastlg("compare", *own)
    assert status == 0, err
    assert "overrides: optim.epochs=1 data.source=images engine.device=cpu" in Path(
        "runs/student/compare.md"
    ).read_text(encoding="utf-8")
    shutil.rmtree("runs/student/guided")  # as if it had been killed there
    first = next(Path("images/train").rglob("*.png"))
    Image.open(first).rotate(180).save(first.with_name("one_more.png"))
    refused(fastlg("compare", *own), "unguided", "trained on other images than", "choose another run.name")
    assert not Path("runs/student/guided").exists()
