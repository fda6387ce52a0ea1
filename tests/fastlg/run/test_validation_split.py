"""data.val: best.pt is chosen on a validation split, and the test split is seen once, at the end."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from made_images import write_images
from patience import HANG_S
from refusals import refused
from resuming import assert_same_run, cut_before_step, rows
from source_cases import images, write_parquet

from fastlg.config import load_config
from fastlg.data.stores import Stores, held_out_in, open_stores
from fastlg.run import run as run_module
from fastlg.run.checkpoint import load_checkpoint
from fastlg.teacher.recipe import teacher_config

SHORT = ("student.yaml", "teacher=null", "optim.epochs=5", "optim.warmup_epochs=0", "optim.global_batch_size=16")
VAL = ("data.val=0.2", "optim.lr=5e-3")


def summary_of(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


def images_of(store) -> set[bytes]:
    return {np.asarray(store.images(index)).tobytes() for index in range(len(store))}


def test_the_best_epoch_is_that_of_the_validation_split_and_test_images_are_seen_once(here, fastlg, monkeypatch):
    measured, original = [], run_module.measure

    def measure(predict, loader, *rest):
        measured.append(len(loader.store))
        return original(predict, loader, *rest)

    seen, evaluate = [], run_module.evaluate
    monkeypatch.setattr(run_module, "measure", measure)
    monkeypatch.setattr(
        run_module, "evaluate", lambda parts, loader=None: (seen.append(loader), evaluate(parts, loader))[1]
    )
    status, out, err = fastlg("train", *SHORT, *VAL, "run.name=val")
    assert status == 0, err
    assert [loader is None for loader in seen] == [True] * 5 + [False], "five times validation, then once test"
    folder = here / "runs" / "val"
    evaluations = [row for row in rows(folder) if row["kind"] == "eval"]
    assert [row["count"] for row in evaluations] == [15] * 5, "of the validation split"
    top1s = [row["top1"] for row in evaluations]
    best = load_checkpoint(folder / "checkpoints" / "best.pt")["position"]["epoch"]
    assert best == 1 + int(np.argmax(top1s)) and len(top1s) == 5
    summary = summary_of(folder)
    assert summary["best_chosen_on"] == "validation"
    assert (summary["val_top1_last"], summary["val_top1_best"]) == (top1s[-1], max(top1s))
    for which, name in (("last", "top1_last"), ("best", "top1_best")):
        status, line, err = fastlg("eval", folder, "--which", which)
        assert status == 0 and f"top-1 {summary[name]:.2f} %" in line and "over 33 images" in line, err
    assert "validation top-1" in out and "test top-1" not in out and "chosen on the validation split" in out
    assert "63 train, 15 validation, 33 test" in out
    assert measured == [33] * (best != 5), "the best epoch's weights are measured apart, unless they are the last ones"


def test_a_store_that_is_split_already_finds_the_teacher_and_the_card_tells_the_test_split_s_numbers(here, fastlg):
    own = ("optim.epochs=1", "optim.global_batch_size=39")
    assert fastlg("train", "student.yaml", *own, "data.val=0.2", "run.name=by_share")[0] == 0
    source = load_config("student.yaml").data.source
    assert fastlg("prepare", source, "split_store", "--val", "0.2")[0] == 0
    status, out, err = fastlg(
        "train", "student.yaml", *own, "data.source=split_store", "data.val=split", "run.name=by_split"
    )
    assert status == 0 and rows(here / "runs/by_share") == rows(here / "runs/by_split"), err
    assert fastlg("export", "runs/by_share", "card")[0] == 0
    card, summary = (here / "card/README.md").read_text(encoding="utf-8"), summary_of(here / "runs/by_share")
    assert f"top-1 {summary['top1_last']:.2f} %, top-5 {summary['top5_last']:.2f} % on the test split" in card
    assert "validation split" in card and "15 test images" not in card


def test_every_training_image_is_in_one_of_both_splits_and_the_test_split_is_as_it_was(here):
    whole = open_stores(load_config("student.yaml").data)
    cut = open_stores(load_config("student.yaml", ["data.val=0.2"]).data)
    assert whole.val is None and cut.test.fingerprint == whole.test.fingerprint
    train, val = images_of(cut.train), images_of(cut.val)
    assert not train & val and train | val == images_of(whole.train)
    counts = np.bincount(cut.val.labels)
    assert counts.tolist() == [round(0.2 * 26)] * 3 and len(cut.train) + len(cut.val) == len(whole.train)
    both = open_stores(load_config("student.yaml", ["data.val=0.2", "data.holdout=0.25"]).data)
    apart = [images_of(store) for store in both.splits]
    assert sum(map(len, apart)) == len(set().union(*apart)) == len(whole.train)


def test_the_teacher_is_trained_without_the_validation_images_too(here):
    names = set()
    for val in (0.0, 0.2, 0.3):
        config = load_config("student.yaml", [f"data.val={val}"])
        recipe = teacher_config(config, open_stores(config.data).fingerprints)
        assert recipe.data.val == val
        names.add(recipe.run.name)
    assert len(names) == 3, "a teacher that has seen them is another one"


def test_a_teacher_that_was_trained_on_what_is_held_out_is_told(here, fastlg):
    own = ("train", "student.yaml", "optim.epochs=1", "optim.global_batch_size=39")
    assert fastlg(*own, "data.val=0.2", "run.name=by_share")[0] == 0
    config = load_config("student.yaml", ["data.val=0.2"])
    cut, other = open_stores(config.data), open_stores(load_config("student.yaml", ["data.val=0.4"]).data)
    teacher = teacher_config(config, cut.fingerprints).run_dir
    seen = len(images_of(other.val) & images_of(cut.train))
    assert 0 < seen < len(other.val)
    line = f"trained on {seen} of {len(other.val)} validation images of this run, so that"
    for val, is_told in (("0.2", False), ("0.4", True), ("0", False)):
        named = (f"data.val={val}", f"teacher.weights={teacher}", "run.name=led", "--dry-run")
        status, out, err = fastlg(*own, *named)
        assert status == 0 and (line in out) is ("trained on" in out) is is_told, (val, out, err)
    for split in (cut.train, cut.val):  # of the same set under the whole one's split: no test image is in either
        whole = open_stores(load_config("student.yaml").data)
        assert held_out_in(whole, split.fingerprint, config.data) == {"test": 0}
    swapped = Stores(cut.val, cut.test, cut.path)
    assert held_out_in(swapped, cut.test.fingerprint, config.data) == {"test": len(cut.test)}
    assert held_out_in(other, "of no store", config.data) == {}


def test_a_validation_split_among_parquet_files_is_told_from_the_test_split(here):
    for index, split in enumerate(("train", "test", "validation")):
        cells = {
            "image": images(*range(10 * index, 10 * index + 6 - index)),
            "label": [i % 2 for i in range(6 - index)],
        }
        write_parquet(here / "table" / f"{split}-00000-of-00001.parquet", cells)
    for val, sizes in (("0", [6, 5]), ("split", [6, 5, 4])):
        stores = open_stores(load_config("student.yaml", ["data.source=table", f"data.val={val}"]).data)
        assert [len(store) for store in stores.splits] == sizes


def test_the_papers_way_is_the_default_and_says_so(here, fastlg):
    status, out, err = fastlg("train", *SHORT, "run.name=paper", "optim.epochs=1")
    assert status == 0 and "chosen on the test split, as in the paper" in out, err
    summary = summary_of(here / "runs" / "paper")
    assert summary["best_chosen_on"] == "test" and "val_top1_best" not in summary
    refused(fastlg("train", *SHORT, "run.name=paper", "optim.epochs=1", "data.val=0.2"), "another config", "data.val")
    refused(fastlg("eval", "runs/paper", "data.val=0.2"), "eval cannot change data.val")


def test_a_run_stopped_in_the_middle_and_one_on_two_ranks_end_as_the_whole_one(here, fastlg, monkeypatch):
    common = ("train", *SHORT, *VAL, "optim.epochs=3", "log.checkpoint_steps=1")
    assert fastlg(*common, "run.name=whole")[0] == 0
    with cut_before_step(monkeypatch, 7):  # in the third epoch
        assert fastlg(*common, "run.name=cut")[0] != 0
    status, out, err = fastlg(*common, "run.name=cut")
    assert status == 0 and "resumed" in out, err
    whole, cut = (here / "runs" / name for name in ("whole", "cut"))
    assert_same_run(whole, cut)
    told = ("top1_last", "top1_best", "top5_last", "val_top1_last", "val_top1_best", "best_chosen_on")
    assert [summary_of(whole)[key] for key in told] == [summary_of(cut)[key] for key in told]
    (cut / "summary.json").unlink()  # killed behind the last epoch: the test split is seen then
    assert fastlg(*common, "run.name=cut")[0] == 0
    assert [summary_of(whole)[key] for key in told] == [summary_of(cut)[key] for key in told]
    command = [sys.executable, "-m", "fastlg", *common, "run.name=two", "--gpus", "2", "engine.device=cpu"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert result.returncode == 0, result.stderr
    two = summary_of(here / "runs" / "two")
    assert two["ranks"] == 2 and two["best_chosen_on"] == "validation"
    assert two["val_top1_best"] == max(row["top1"] for row in rows(here / "runs" / "two") if row["kind"] == "eval")
    for which, name in (("last", "top1_last"), ("best", "top1_best")):
        assert f"top-1 {two[name]:.2f} %" in fastlg("eval", "runs/two", "--which", which)[1]


def test_a_validation_split_of_the_set_itself_is_used_where_it_is_asked_for(here, fastlg):
    for split, seed, count in (("train", 5, 10), ("test", 6, 3), ("validation", 7, 4)):
        write_images(here / "three" / split, per_class=count, seed=seed)
    apart = open_stores(load_config("student.yaml", ["data.source=three", "data.val=split"]).data)
    assert [len(store) for store in apart.splits] == [30, 9, 12]
    assert fastlg("prepare", "three", "store", "--val", "0.2")[0] == 0
    stored = ("data.source=store", "data.val=split")
    assert [len(store) for store in open_stores(load_config("student.yaml", stored).data).splits] == [24, 9, 6]
    refused(fastlg("train", *SHORT, "data.source=store", "data.val=0.1"), "data.val: store is a store", "drop")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.val=split", ["no validation split beside its test split", "data.val=0.1"]),
        ("data.val=1", ["data.val is 1", "less than 1", "split"]),
        ("data.val=-0.1", ["data.val is -0.1"]),
        ("data.val=half", ["data.val is 'half'"]),
    ],
)
def test_a_split_that_cannot_be_made_is_one_line(here, fastlg, override, words):
    refused(fastlg("train", *SHORT, "run.name=never", override), *words)
    assert not (here / "runs" / "never").exists()


def test_a_class_of_one_image_has_none_to_spare(here, fastlg):
    write_images(here / "few" / "train", per_class=1, seed=5)
    write_images(here / "few" / "test", per_class=1, seed=6)
    refused(fastlg("train", *SHORT, "data.source=few", "data.val=0.1"), "data.val=0.1", "single image")
