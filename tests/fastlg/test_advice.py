"""A budget that is likely not meant is told in one line with the fix; a sound one in none."""

from __future__ import annotations

import pytest

from fastlg.assemble import advice
from fastlg.config import OptimConfig


@pytest.mark.parametrize(
    ("optim", "images", "steps", "words"),
    [
        ({"epochs": 5}, 1280, 10, ["warmup_epochs=20", "epochs=5"]),
        ({"epochs": 20}, 1280, 10, ["warmup_epochs=20", "epochs=20"]),
        ({"epochs": 21}, 1280, 10, []),
        ({}, 1407, 10, ["127 of 1407", "drop_last"]),
        ({"drop_last": False}, 1407, 11, []),
        ({}, 1300, 10, []),
        ({}, 1152, 9, ["9 steps", "global_batch_size"]),
        ({}, 100, 1, ["1 steps"]),
    ],
)
def test_advice_names_what_is_odd_and_the_key_that_mends_it(optim, images, steps, words):
    lines = advice(OptimConfig(**optim), images, steps)
    assert len(lines) == bool(words)
    assert all(word in lines[0] for word in words)


def test_advice_is_told_before_anything_is_trained(project, fastlg):
    status, out, err = fastlg("train", "student.yaml", "teacher=null", "optim.warmup_epochs=2", "--dry-run")
    assert status == 0, err
    assert "advice   optim.warmup_epochs=2 is not shorter than optim.epochs=2" in out, out
    status, out, _ = fastlg("train", "student.yaml", "teacher=null", "optim.warmup_epochs=1", "--dry-run")
    assert status == 0 and "warmup" not in out, out
