"""What is likely not meant is told in one line, and doing what the line says mends it; a sound run is told nothing."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastlg.config import OptimConfig, load_config
from fastlg.engine.protocol import share_batch
from fastlg.engine.schedule import schedule_of
from fastlg.models import resnet20
from fastlg.run.plan import budget_advice, class_advice, teacher_advice
from fastlg.run.trained import teachers as read_back


@pytest.mark.parametrize(
    ("optim", "images", "words"),
    [
        ({"epochs": 5}, 1280, ["warmup_epochs=20", "epochs=5", "set optim.warmup_epochs=0"]),
        ({"epochs": 20}, 1280, ["warmup_epochs=20", "epochs=20", "set optim.warmup_epochs=2"]),
        ({"epochs": 21}, 1280, []),
        ({"epochs": 2, "warmup_epochs": 1}, 1280, ["reaches 50 % of optim.lr", "set optim.warmup_epochs=0"]),
        ({"epochs": 60, "warmup_epochs": 5}, 1280, []),
        (
            {"epochs": 9, "warmup_epochs": 4, "schedule": "timm:multistep", "schedule_args": {"decay_milestones": [2]}},
            1280,
            ["reaches 75 % of optim.lr=0.0005", "set optim.warmup_epochs=0"],
        ),
        ({}, 1407, ["127 of 1407 images (9 %)", "set optim.drop_last=false or optim.global_batch_size=127"]),
        ({"drop_last": False}, 1407, []),
        ({}, 1300, []),
        ({}, 1152, ["9 steps", "set optim.global_batch_size=115"]),
        ({}, 100, ["1 step of", "set optim.global_batch_size=10"]),
        ({}, 11, ["1 step of", "set optim.global_batch_size=1"]),
        ({"global_batch_size": 3}, 9, ["3 steps", "more training images"]),
    ],
)
def test_advice_names_what_is_odd_and_the_key_that_mends_it(optim, images, words):
    optim = OptimConfig(**optim)
    lines = budget_advice(optim, images, steps(optim, images))
    assert len(lines) == bool(words), lines
    assert all(word in lines[0] for word in words), lines


def steps(optim: OptimConfig, images: int) -> int:
    whole = images // optim.global_batch_size
    return whole if optim.drop_last and whole else math.ceil(images / optim.global_batch_size)


@pytest.mark.parametrize(("ranks", "micro"), [(1, None), (4, None), (1, 8), (2, 4)])
def test_a_run_that_follows_any_one_of_the_fixes_is_not_told_again(ranks, micro):
    told = 0
    for images in (*range(40, 400, 7), 1407, 5000, 6149):
        for batch in (8, 16, 24, 64, 128, 512):
            optim = OptimConfig(global_batch_size=batch, epochs=3)
            unit = ranks * (micro if share_batch(batch, ranks, micro).accumulation > 1 else 1)
            for line in budget_advice(optim, images, steps(optim, images), unit):
                for key, value in re.findall(r"(?:set|or) optim\.(\w+)=(\w+)", line):
                    mended = OptimConfig(**{**optim.model_dump(), key: json.loads(value)})
                    share_batch(mended.global_batch_size, ranks, micro)  # raises where it cannot be shared
                    left = budget_advice(mended, images, steps(mended, images), unit)
                    assert not [own for own in left if subject(own) == subject(line)], (images, batch, line, left)
                    told += 1
    assert told > 500


def subject(line: str) -> str:
    return next(word for word in ("of optim.lr", "warm-up", "dropped", "an epoch has") if word in line)


@pytest.mark.parametrize("epochs", [2, 3, 5, 12, 40])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_rate_that_never_reaches_its_peak_is_told_once_and_mended(epochs, schedule):
    told = 0
    for warm in range(epochs):
        optim = OptimConfig(epochs=epochs, warmup_epochs=warm, schedule=schedule, lr=1.0)
        rates = [schedule_of(optim)(epoch) for epoch in range(epochs)]
        lines = [line for line in budget_advice(optim, 1280, 10) if "of optim.lr" in line]
        assert len(lines) == (max(rates) < 0.9), (epochs, warm)
        for line in lines:
            assert f"{100 * max(rates):.0f} %" in line
            shorter = int(re.search(r"set optim.warmup_epochs=(\d+)", line)[1])
            mended = OptimConfig(**{**optim.model_dump(), "warmup_epochs": shorter})
            assert budget_advice(mended, 1280, 10) == []
            told += 1
    assert told or epochs > 12


def test_classes_with_one_image_are_named():
    assert class_advice([5, 2, 9], ["a", "b", "c"]) == ""
    assert "1 class has one training image (b)" in class_advice([5, 1, 9], ["a", "b", "c"])
    many = class_advice([1] * 7 + [3], [f"k{number}\x1b" for number in range(8)])
    assert "7 classes have one training image (k0\\x1b, k1" in many and "k4\\x1b ...)" in many


@pytest.mark.parametrize(
    ("top1", "chance", "is_near"),
    [
        (1.2, 1.0, True),
        (1.6, 1.0, False),
        (12.0, 10.0, True),
        (20.0, 10.0, False),
        (36.0, 100 / 3, True),
        (48.0, 100 / 3, False),
        (52.0, 50.0, True),
        (70.0, 50.0, False),  # of two classes: far from chance, though below 1.5 times it
        (90.0, 90.0, True),  # what the commonest class alone makes
        (95.0, 90.0, False),
        (0.0, 50.0, True),
    ],
)
def test_a_teacher_near_chance_is_told_with_a_fix_that_has_an_effect(top1, chance, is_near):
    own, named = teacher_advice(top1, chance, 1), teacher_advice(top1, chance, None)
    assert bool(own) == bool(named) == is_near
    if is_near:
        assert "more than 1 epoch (teacher.overrides.optim.epochs=N)" in own and f"{top1:.2f} %" in own
        assert "overrides" not in named and "teacher.weights" in named, "a teacher that was named has no recipe here"


def advice_of(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("advice   the teacher's top-1")]


def test_a_run_with_an_untrained_teacher_says_so_and_one_with_a_good_teacher_does_not(project, fastlg):
    train = ("train", "student.yaml", "optim.epochs=1", "optim.global_batch_size=39")
    bad = ("teacher.overrides.optim.lr=1e-12", "teacher.overrides.optim.min_lr=0")
    status, out, err = fastlg(*train, "run.name=bad", *bad)
    lines = advice_of(out)
    summary = next((project / "runs" / "teachers").glob("*/summary.json"))
    top1 = json.loads(summary.read_text())["top1_last"]
    assert status == 0 and top1 < 40, err
    assert len(lines) == 1 and "near chance (33.33 %)" in lines[0] and f"{top1:.2f} %" in lines[0], out
    assert "teacher.overrides.optim.epochs" in lines[0]

    named = ("teacher.overrides.optim.epochs=1", f"teacher.weights={summary.parent}")
    status, out, _ = fastlg(*train, "run.name=named", *named, "--dry-run")
    assert status == 0 and len(advice_of(out)) == 1 and "leave that out" in advice_of(out)[0], out

    told = json.loads(summary.read_text())
    summary.write_text(json.dumps(told | {"top1_last": 80.0}))
    status, out, _ = fastlg(*train, "run.name=good", *named, "--dry-run")
    assert status == 0 and "top-1 80.00 %" in out and advice_of(out) == []


def test_chance_is_what_the_commonest_class_of_the_test_split_makes(project, monkeypatch):
    said = []
    trained = load_config("teacher.yaml")
    monkeypatch.setattr(read_back, "load_trained", lambda *_, **__: (trained, resnet20(2), ["a", "b"]))
    monkeypatch.setattr(read_back, "read_summary", lambda _: {"top1_last": 81.0})
    monkeypatch.setattr(read_back, "say", said.append)
    labels = torch.tensor([0] * 80 + [1] * 20).numpy().astype(np.int64)

    class Test(SimpleNamespace):
        def __len__(self):
            return len(self.labels)

    stores = SimpleNamespace(class_names=["a", "b"], test=Test(labels=labels))
    read_back.load_teacher(project, trained, stores)
    assert "near chance (80.00 %)" in said[-1]


def test_advice_is_told_before_anything_is_trained(project, fastlg):
    status, out, err = fastlg("train", "student.yaml", "teacher=null", "optim.warmup_epochs=2", "--dry-run")
    assert status == 0, err
    assert "advice   optim.warmup_epochs=2 is not shorter than optim.epochs=2" in out, out
    status, out, _ = fastlg("train", "student.yaml", "teacher=null", "optim.warmup_epochs=0", "--dry-run")
    assert status == 0 and "warmup" not in out, out


def test_advice_on_a_teachers_recipe_names_the_keys_that_reach_it(project, fastlg):
    batch = ("teacher.overrides.optim.global_batch_size=50", "teacher.overrides.optim.warmup_epochs=1")
    status, out, err = fastlg("train", "student.yaml", *batch, "optim.epochs=1", "optim.global_batch_size=39")
    lines = [line for line in out.splitlines() if line.startswith("advice   the teacher's recipe: ")]
    assert status == 0, err
    assert any("28 of 78 images (36 %)" in own and "teacher.overrides.optim.drop_last=false" in own for own in lines)
    assert any("set teacher.overrides.optim.warmup_epochs=0" in own for own in lines), out
