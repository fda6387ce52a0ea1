"""A report of runs that are not as they should be: what is missing is told where it would stand, the rest stands."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import yaml
from html_tree import read
from matplotlib.figure import Figure
from refusals import refused

from fastlg.commands.report import charts
from fastlg.commands.report.compare_page import Pairing, _changed
from fastlg.commands.report.facts import Had, facts_of
from fastlg.commands.report.go import write_report
from fastlg.commands.report.sections import calibrated, classes
from fastlg.commands.testing.answers import Answers
from fastlg.config import load_config, save_config
from fastlg.train import train


@pytest.fixture
def sketched(monkeypatch):
    """Charts are built and not painted, which takes most of a report's time; test_report_page.py has them painted."""

    def built(draw, colours):
        assert draw(Figure).axes
        return b"", 8, 8

    monkeypatch.setattr(charts, "_drawn", built)


@pytest.fixture
def copied(here, sketched, tmp_path, monkeypatch):
    """A copy of both runs that a test may change."""
    shutil.copytree(here / "runs/both", tmp_path / "both", ignore=shutil.ignore_patterns("teachers", "report.html"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def notes(page, anchor) -> str:
    return " | ".join(node.text for node in page.by_id(anchor) if node.attributes.get("class") == "note")


def change(folder, **data) -> None:
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    tree["data"] |= data
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def test_a_run_before_its_first_checkpoint_has_curves_views_and_config(copied):
    run = copied / "both/guided"
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 2, "epoch": 0, "loss_cls": 1.5, "top1": null}\n{"ki')
    page = read(write_report(run))
    assert "not complete: 0 of 2 epochs" in notes(page, "curves") and page.by_id("curves").all("img")
    assert len(page.by_id("views").all("img")) == 24
    for anchor in ("attention", "classes", "calibration", "mistakes"):
        assert "holds no checkpoint" in notes(page, anchor) and not page.by_id(anchor).all("img")
    assert "optim:" in page.by_id("config").text and "0 of 2 epochs" in page.by_id("provenance").text


def test_images_that_have_moved_are_told_and_found_again_by_data_source(copied, here):
    run = copied / "both/guided"
    change(run, source=str(copied / "gone"))
    page = read(write_report(run))
    for anchor in ("views", "attention", "classes", "calibration", "mistakes", "provenance"):
        assert "gone: no such file or folder" in notes(page, anchor), anchor
    assert page.by_id("curves").all("img") and "complete" in page.by_id("provenance").text
    assert "Fingerprints of the images it was trained on" in page.by_id("provenance").text
    page = read(write_report(run, overrides={"data.source": str(here / "images")}))
    assert not any(notes(page, node.attributes["id"]) for node in page.all("section"))


def test_other_images_under_the_same_name_are_told(copied, image_folder, here):
    run = copied / "both/unguided"
    shutil.copytree(here / "images", copied / "fewer")
    next((copied / "fewer/train/red").iterdir()).unlink()
    change(run, source=str(copied / "fewer"))
    page = read(write_report(run, which="best"))
    assert "not the images that the run was trained on" in notes(page, "provenance")
    assert "This run has no teacher." in page.by_id("views").text and len(page.by_id("views").all("img")) == 18
    change(run, source=str(image_folder))
    assert "its images have changed since" in notes(read(write_report(run)), "classes")


def test_a_pair_that_is_not_whole_gives_no_verdict_but_what_there_is(copied):
    seeds = copied / "seeds"
    for part, seed in (("unguided", 0), ("guided", 0), ("unguided", 1)):
        shutil.copytree(copied / "both" / part, seeds / part / f"seed{seed}")
    page = read(write_report(seeds))
    assert "no verdict, for 1 of 2 pairs" in notes(page, "verdict") and "no guided seed1" in notes(page, "verdict")
    assert [row.content[0].text for row in page.by_id("verdict").all("tr")[1:]] == [
        "unguided seed0",
        "guided seed0",
        "unguided seed1",
    ]
    assert len(page.by_id("classes").all("picture")) == 2
    shutil.rmtree(seeds / "guided/seed0")
    page = read(write_report(seeds))
    assert "no whole pair of runs: there is no guided seed0 run" in notes(page, "classes")


def test_a_cnn_has_no_attention_and_mixed_images_say_what_is_in_them(here, sketched):
    own = ["augment.cutmix=1", "data.source=images", "run.name=mixed", "optim.epochs=1", "engine.device=cpu"]
    config = load_config("teacher.yaml", own)
    train(config)
    page = read(write_report(config.run_dir))
    assert "a CNN, which has no attention" in notes(page, "attention")
    mixed = [row.all("th")[0].text for row in page.by_id("views").all("tr")[1:]]
    assert any(" + " in text and text.count("%") == 2 for text in mixed), mixed


def test_of_a_thousand_classes_a_part_is_shown_and_says_so():
    generator = np.random.default_rng(2)
    labels = generator.permutation(np.arange(1000).repeat(3))
    predicted = np.where(generator.random(3000) < 0.5, labels, generator.integers(0, 1000, 3000))
    sure = generator.random(3000)
    answers = Answers(labels, predicted, sure, sure, labels * 0, sure, sure)
    page = read(classes(answers, [f"class {number}" for number in range(1000)]))
    rows = [len(table.all("tr")) - 1 for table in page.all("table")]
    assert rows == [12, 30] and "of 1,000 classes" in page.text and len(page.all("picture")) == 1
    assert "the 30 of 1,000 classes in which most is confused" in page.text
    assert len(str(page.all("img")[0].attributes["src"])) < 1 << 19
    assert "calibration error" in read(calibrated([("", answers)])).text


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
REFUSED = [
    (("both/guided", "optim.epochs=3"), "report cannot change optim.epochs"),
    (("both/guided", "data.source=gone"), "data.source=gone: no such file or folder"),
    pytest.param(("both/guided", "engine.device=cuda"), "engine.device is cuda", marks=needs_no_gpu),
    (("both/guided", "--out", "."), "--out . is a folder"),
    (("both/guided", "--out", "page.pdf"), "call it page.html"),
    (("both/guided", "--out", "no/where.html"), "cannot write no/where.html"),
    (("both/guided", "--which", "worst"), "--which is worst"),
    (("both/guided/checkpoints",), "inside of one; give both/guided"),
    (("nowhere",), "there is no run nowhere"),
    (("exported",), "exported is an exported model"),
    (("broken",), "broken/config.yaml"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED, ids=lambda value: " ".join(value)[:40])
def test_what_cannot_be_is_one_line_and_nothing_is_written(copied, fastlg, arguments, said):
    (copied / "exported").mkdir()
    (copied / "exported" / "model.safetensors").touch()
    (copied / "broken").mkdir()
    (copied / "broken" / "config.yaml").write_text("run: [")
    refused(fastlg("report", *arguments), said)
    assert not list(copied.rglob("*.html"))


def test_the_command_says_where_the_page_is_and_a_report_is_no_stranger(copied, fastlg):
    status, out, err = fastlg("report", "both/unguided", "--out", "mine.html")
    assert status == 0 and err == "" and "report   mine.html" in out
    assert read(copied / "mine.html").all("h1")[0].text == "Run unguided"
    config = load_config(str(copied / "both/unguided/config.yaml"))
    (copied / "left").mkdir()
    save_config(config, copied / "left" / "config.yaml")
    write_report(copied / "left")
    assert {path.name for path in (copied / "left").iterdir()} == {"config.yaml", "report.html"}
    assert fastlg("train", copied / "both/unguided/config.yaml", "run.root=.", "run.name=left", "--dry-run")[0] == 0


def test_images_that_guidance_mends_and_breaks_stand_apart_the_largest_change_first(here, reported):
    before, after = (facts_of(here / "runs/both" / part) for part in ("unguided", "guided"))
    labels = before.answers.value.labels
    other, sure, step = (labels + 1) % 3, np.full(33, 0.5), np.arange(33) / 100
    wrong, right = np.where(np.arange(33) < 8, other, labels), np.where(np.arange(33) >= 30, other, labels)
    before.answers = Had(Answers(labels, wrong, sure, sure, labels * 0, sure, sure))
    of_true = np.where(np.arange(33) < 8, sure + step, sure - step)
    after.answers = Had(Answers(labels, right, sure, of_true, labels * 0, sure, sure))
    page = read(_changed(Pairing("", before, after)))
    mended, broken = page.all("ul")
    assert [image.attributes["alt"].split(":")[0] for image in mended.all("img")] == [
        f"Test image {row}" for row in (7, 6, 5, 4, 3, 2)
    ]
    assert [image.attributes["alt"].split(":")[0] for image in broken.all("img")] == [
        f"Test image {row}" for row in (32, 31, 30)
    ]
    assert "8 of 33 test images; 6 are shown" in page.text and "3 of 33 test images." in page.text
    said = [node.text for node in mended.all("li")[0].all("b")]
    assert said == [reported.names[other[7]], reported.names[labels[7]], reported.names[labels[7]]]
