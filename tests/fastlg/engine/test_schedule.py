"""The learning rate of every epoch is the reference's, and timm's."""

from __future__ import annotations

import json

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from fastlg.engine.schedule import guidance_share, image_size, learning_rate

VIT = {"lr": 5e-4, "min_lr": 5e-6, "warmup_epochs": 20, "warmup_factor": 1e-3}
CNN = {"lr": 0.1, "min_lr": 0.0, "warmup_epochs": 0, "warmup_factor": 1e-3}


@pytest.mark.parametrize(
    ("case", "recipe", "epochs"),
    [
        ("vit_300_warm20", VIT, 300),
        ("vit_100_warm20", VIT, 100),
        ("sgd_300_resnet", CNN, 300),
        ("sgd_100_resnet", CNN, 100),
    ],
)
def test_every_epoch_has_the_reference_learning_rate(golden, case, recipe, epochs):
    expected = json.loads((golden / "schedule.json").read_text())["lr_schedules"][case]["lr_per_epoch"]
    ours = [learning_rate(epoch, epochs=epochs, **recipe) for epoch in range(epochs)]
    assert ours == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("recipe", "epochs"), [(VIT, 23), (VIT, 7), (CNN, 5)])
def test_schedule_equals_timms_cosine_scheduler(recipe, epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe["lr"])
    timm_schedule = CosineLRScheduler(
        optimizer,
        t_initial=epochs,
        lr_min=recipe["min_lr"],
        warmup_t=recipe["warmup_epochs"],
        warmup_lr_init=recipe["warmup_factor"] * recipe["lr"],
        warmup_prefix=False,
    )
    for epoch in range(epochs):
        timm_schedule.step(epoch)
        assert learning_rate(epoch, epochs=epochs, **recipe) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-12
        )


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"schedule": "linear"}, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"schedule": "linear", "flat": 0.6}, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "flat": 0.85}, [1.0] * 9 + [2 / 3]),
        ({"flat": 0.8}, [1.0] * 9 + [0.5]),
        ({"schedule": "cosine", "flat": 0.4}, [1.0] * 5 + [0.9330127, 0.75, 0.5, 0.25, 0.0669873]),
    ],
)
def test_what_is_left_of_the_rate_in_every_epoch_of_a_flat_or_linear_schedule(options, wanted):
    recipe = {"lr": 3e-3, "min_lr": 1e-3, "warmup_epochs": 0, "warmup_factor": 1e-3, "epochs": 10}
    rates = [learning_rate(epoch, **recipe, **options) for epoch in range(11)]
    assert rates == pytest.approx([1e-3 + 2e-3 * share for share in (*wanted, 0.0)], rel=1e-7)


def test_a_warm_up_covers_the_beginning_of_any_schedule():
    recipe = {"lr": 1.0, "min_lr": 0.0, "warmup_epochs": 2, "warmup_factor": 0.5, "epochs": 4}
    assert [learning_rate(e, **recipe, schedule="linear") for e in range(4)] == [0.5, 0.75, 0.5, 0.25]
    assert [learning_rate(e, **recipe, schedule="linear", flat=0.75) for e in range(4)] == [0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("schedule", "until", "wanted"),
    [
        ("constant", 1.0, [1.0] * 5),
        ("constant", 0.5, [1.0, 1.0, 1.0, 0.0, 0.0]),  # an epoch that begins before the end is guided as a whole
        ("constant", 0.4, [1.0, 1.0, 0.0, 0.0, 0.0]),
        ("linear", 1.0, [1.0, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 0.5, [1.0, 0.6, 0.2, 0.0, 0.0]),
        ("cosine", 0.8, [1.0, 0.8535534, 0.5, 0.1464466, 0.0]),
    ],
)
def test_what_is_left_of_guidance_in_every_epoch(schedule, until, wanted):
    shares = [guidance_share(epoch, schedule=schedule, until=until, epochs=5) for epoch in range(5)]
    assert shares == pytest.approx(wanted, abs=1e-7)


def test_the_size_of_every_epoch_is_that_of_the_last_entry_which_began():
    steps = [(0.0, 96), (0.4, 160), (0.7, 224)]
    sizes = [image_size(epoch, resolution=steps, epochs=10, full=224) for epoch in range(10)]
    assert sizes == [96] * 4 + [160] * 3 + [224] * 3
    assert [image_size(epoch, resolution=steps, epochs=3, full=224) for epoch in range(3)] == [96, 96, 160]
    assert image_size(5, resolution=[], epochs=10, full=48) == 48
