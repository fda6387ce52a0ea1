"""A run, config, checkpoint or source that is not there: the line says what was looked for and what there is."""

from __future__ import annotations

import shutil

import pytest
from refusals import refused

RUN = "data: {source: x}\nmodel: {name: deit_tiny_patch16_224}\n"
THERE = "runs there: runs/alpha, runs/cut"
NEAR = "did you mean runs/alpha?"

# what is given as RUN -> what the line says
RUNS = {
    "nosuch": ["there is no run nosuch", THERE],
    "alfa": ["there is no run alfa", NEAR],
    "runs/alpah": ["there is no run runs/alpah", NEAR],
    "no/such/place": ["there is no run no/such/place", THERE],
    "runs": ["runs is no run folder: it holds no config.yaml", THERE],
    "runs/swept": [
        "runs/swept is no run folder",
        "runs there: runs/swept/lr=1/seed0, runs/swept/lr=2/seed0, runs/alpha",
    ],
    ".": [". is no run folder", THERE],
    "own.yaml": ["own.yaml is no run folder: it is a file", THERE],
    "/dev/null": ["/dev/null is no run folder: it is a device", THERE],
    "runs/alpha/config.yaml": ["inside of one; give runs/alpha"],
    "runs/alpha/checkpoints/best.pt": ["inside of one; give runs/alpha"],
    "runs/both": ["holds a comparison", "runs/both/unguided or runs/both/guided"],
    "runs/cut": ["runs/cut holds no checkpoint checkpoints/last.pt", "train it on"],
    "runs/alpha": ["runs/alpha holds no checkpoint checkpoints/last.pt", "there is --which best"],
    "quickstart": ["there is no run quickstart", THERE],
    "x" * 300: ["name too long", THERE],
    "own.yaml/x": ["there is no run own.yaml/x", THERE],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with two runs, a comparison and a config."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTLG_CACHE", str(tmp_path / "cache"))
    for name in ("alpha", "cut", "both/guided", "both/unguided", "swept/lr=1/seed0", "swept/lr=2/seed0"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text(RUN)
    (tmp_path / "runs" / "alpha" / "checkpoints" / "best.pt").write_bytes(b"")
    (tmp_path / "own.yaml").write_text(RUN)
    return tmp_path


@pytest.mark.parametrize("command", [("eval",), ("export",), ("analyze", "--views")], ids=lambda command: command[0])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run[:30])
def test_a_run_that_is_not_there_is_named_with_those_that_are(place, fastlg, command, run):
    name, *options = command
    words = RUNS[run]
    if (name, run) == ("eval", "runs/both"):  # its two runs are compared, and these were cut short
        words = ["runs/both/guided holds no checkpoint checkpoints/last.pt"]
    refused(fastlg(name, run, *(["out"] if name == "export" else []), *options), *words)
    assert not (place / "out").exists()


def test_where_there_is_no_run_at_all_the_line_says_how_one_is_made(place, fastlg):
    shutil.rmtree(place / "runs")
    refused(fastlg("eval", "nosuch"), "there is no run nosuch; no runs here; fastlg train CONFIG makes one in runs/")


def test_of_many_runs_a_few_are_named(place, fastlg):
    for i in range(40):
        shutil.copytree(place / "runs" / "cut", place / "runs" / f"run{i:02}")
    refused(fastlg("eval", "zzz"), "runs there: runs/alpha, runs/cut, runs/run00, runs/run01, runs/run02 ...")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            "nosuch",
            [
                "neither a file nor a shipped config",
                "shipped configs: own_images, own_images_teacher, quickstart, ",
                "cifar100/unguided/ (8)",
                "files there: own.yaml",
            ],
        ),
        ("own", ["did you mean own.yaml?"]),
        ("onw.yaml", ["did you mean own.yaml?"]),
        ("cifar100/deit_tinny", ["did you mean cifar100/deit_tiny?"]),
        ("runs/alpha", ["is a folder; give the config of the run that it holds, runs/alpha/config.yaml"]),
        ("runs", ["is a folder; give a YAML file", "data.source=runs"]),
        ("no/such/place.yaml", ["neither a file nor a shipped config", "shipped configs: "]),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare", "cache"])
def test_a_config_that_is_not_there_is_named_with_those_that_are(place, fastlg, command, config, words):
    refused(fastlg(command, config), f"config '{config}'", *words)
    assert sorted(path.name for path in place.iterdir()) == ["own.yaml", "runs"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prepare", "nosuch", "out"), ["data.source=nosuch: no such file or folder", "has no nosuch"]),
        (("prepare", "rnus", "out"), ["data.source=rnus: no such file or folder", "did you mean", "/runs?"]),
        (("prepare", "torchvision:CIFAR11", "out"), ["torchvision:CIFAR11", "CIFAR10, CIFAR100"]),
        (("bench", "--compare"), ["requires an argument", "--help"]),
        (("eval",), ["Missing argument 'RUN'", "--help"]),
        (("eval", "runs/alpha", "--which", "lst"), ["--which is lst", "last or best"]),
        (("nosuch",), ["No such command 'nosuch'", "fastlg --help"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_whatever_else_is_not_there_is_named(place, fastlg, arguments, words):
    refused(fastlg(*arguments), *words)


def test_a_checkpoint_and_a_teacher_that_are_not_there_are_named_with_those_that_are(project, fastlg):
    one = ("train", "student.yaml", "teacher=null", "optim.epochs=1")
    assert fastlg(*one)[0] == 0
    two = (*one, "run.name=two", "--resume")
    refused(fastlg(*two, "nowhere.pt"), "there is no checkpoint nowhere.pt", "runs/NAME/checkpoints/last.pt")
    refused(fastlg(*two, "runs/student"), "runs/student", "is a run folder: give runs/student/checkpoints/last.pt")
    near = "runs/student/checkpoints/lost.pt"
    refused(fastlg(*two, near), f"there is no checkpoint {near}; there: runs/student/checkpoints/", "last.pt")
    weights = ("train", "student.yaml", "run.name=two", "--dry-run")
    refused(
        fastlg(*weights, "teacher.weights=nosuch"), "teacher.weights nosuch does not exist", "runs there: runs/student"
    )
    refused(fastlg(*weights, "teacher.weights=runs/studnet"), "did you mean runs/student?")
    refused(fastlg(*weights, "teacher.weights=runs"), "runs is no run folder", "runs/student")
