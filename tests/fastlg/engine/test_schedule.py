"""The learning rate of every epoch is the reference's, and timm's."""

from __future__ import annotations

import json

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from fastlg.engine.schedule import learning_rate

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
