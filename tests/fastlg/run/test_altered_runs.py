"""eval, export and analyze of a run whose files do not belong together: one line, nothing written."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from refusals import refused

from fastlg.errors import brief

ONE = ("train", "student.yaml", "teacher=null", "optim.epochs=1")


def drop_key(state):
    state["unit"].pop(
        "student.bare.head.bias" if "student.bare.head.bias" in state["unit"] else next(iter(state["unit"]))
    )


def another_type(state):
    state["unit"][next(iter(state["unit"]))] = "text"


def not_a_number(state):
    next(iter(state["unit"].values())).fill_(float("nan"))


def no_names(state):
    del state["class_names"]


def other_shape(state):
    key = next(iter(state["unit"]))
    state["unit"][key] = torch.zeros(2, 2)


@pytest.fixture
def run(project, fastlg):
    assert fastlg(*ONE)[0] == 0
    return project / "runs" / "student"


def refused_by_all(fastlg, run, *words):
    for command in (("eval", run), ("export", run, "out"), ("analyze", run, "--views")):
        refused(fastlg(*command), *words)
    assert not (run / "views.png").exists() and not (run.parents[1] / "out").exists()


def test_altered_checkpoints_and_configs_are_refused_by_every_reader(run, fastlg):
    path = run / "checkpoints" / "last.pt"
    whole = path.read_bytes()
    for alter, word in (
        (drop_key, "nothing"),
        (another_type, "no tensor"),
        (not_a_number, "not finite"),
        (no_names, "class names"),
        (other_shape, "[2, 2]"),
    ):
        state = torch.load(path, weights_only=True)
        alter(state)
        torch.save(state, path)
        refused_by_all(fastlg, run, "last.pt", word)
        path.write_bytes(whole)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("depth: 3", "depth: 2"))
    refused_by_all(fastlg, run, "last.pt", "model.args")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"top1_last": "x"}', '{"top1_last": null}', "[" * 5000], ids=brief)
def test_an_altered_summary_is_written_anew_from_the_last_checkpoint(run, fastlg, text):
    before = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(text)
    status, out, err = fastlg(*ONE)
    assert status == 0 and "resumed" in out, err
    after = json.loads((run / "summary.json").read_text())
    assert after["top1_last"] == before["top1_last"] and after.keys() == before.keys()


def test_an_altered_teacher_says_how_it_is_made_again(project, fastlg):
    first = ("train", "student.yaml", "optim.epochs=1", "run.name=first")
    second = (*first[:-1], "run.name=second")
    assert fastlg(*first)[0] == 0
    (teacher,) = (project / "runs" / "teachers").iterdir()
    last = teacher / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    for damage in (lambda: None, last.unlink):
        damage()
        refused(fastlg(*second), "last.pt", f"delete runs/teachers/{teacher.name}", "trained again")
    refused(fastlg("eval", teacher.relative_to(project)), "no checkpoint", "--which best")
    shutil.rmtree(teacher)
    assert fastlg(*second)[0] == 0
    (project / "junk.pt").write_bytes(b"no tensors")
    refused(fastlg(*first[:-1], "run.name=third", "teacher.weights=junk.pt"), "junk.pt", "no checkpoint", "run folder")


def test_a_comparison_names_its_runs(run, fastlg, project):
    run.rename(project / "runs" / "unguided")
    (project / "runs" / "both").mkdir()
    (project / "runs" / "unguided").rename(project / "runs" / "both" / "unguided")
    refused_by_all(fastlg, project / "runs" / "both", "comparison", "both/unguided", "both/guided")
