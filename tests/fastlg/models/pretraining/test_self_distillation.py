"""Loss and schedules of a run without labels against numbers of the authors' code, neighbours against plain loops."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fastlg.models.pretraining.loss import cosine, self_distillation, sharpened, teacher_temperature
from fastlg.models.pretraining.neighbours import NEIGHBOURS, TEMPERATURE, Neighbours


@pytest.fixture(scope="module")
def told(shared):
    numbers = np.load(shared / "systems" / "golden" / "init_ssl_view_loss.npz")
    return numbers, json.loads(str(numbers["config"]))


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_loss_and_gradient_are_those_of_the_authors_code(dtype, within, told):
    numbers, config = told
    views, images = config["views"], config["B"]

    def by_image(name, count):  # theirs lie view by view
        return torch.tensor(numbers[name], dtype=dtype).view(count, images, -1).transpose(0, 1)

    answers = by_image("student", views).clone().requires_grad_()
    bounds = config["warmup_temp"], config["temp"]
    temperature = teacher_temperature(bounds, config["warmup_temp_epochs"], config["epoch"])
    center = torch.tensor(numbers["center_before"][0], dtype=dtype)
    loss = self_distillation(answers, sharpened(by_image("teacher", 2), center, temperature), config["student_temp"])
    (3 * loss).backward()
    assert abs(loss.item() - numbers["loss"]) < within * numbers["loss"]
    found = answers.grad.transpose(0, 1).flatten(0, 1).numpy() / 3
    assert np.abs(found - numbers["grad_student"]).max() < within


def test_the_teachers_temperature_rises_as_in_the_authors_code(told):
    numbers, config = told
    bounds, rising = (config["warmup_temp"], config["temp"]), config["warmup_temp_epochs"]
    found = [teacher_temperature(bounds, rising, epoch) for epoch in range(config["epochs"])]
    assert np.allclose(found, numbers["temps"], rtol=0, atol=1e-15)
    assert teacher_temperature((0.1, 0.3), 1, 0) == 0.3


def test_a_cosine_goes_from_the_first_value_to_the_last():
    found = [cosine(0.04, 0.4, epoch, 4) for epoch in range(5)]
    wanted = [0.04, 0.22 - 0.18 * math.sqrt(0.5), 0.22, 0.22 + 0.18 * math.sqrt(0.5), 0.4]
    assert found == pytest.approx(wanted, abs=1e-15)


def test_neighbours_vote_for_their_classes_the_nearer_the_more():
    generator = torch.Generator().manual_seed(3)
    known, asked = (torch.randn(count, 6, generator=generator) for count in (57, 5))
    labels = torch.randint(0, 4, (57,), generator=generator)
    found = Neighbours(known, labels, 5).votes(asked).exp()
    for row, query in zip(found, asked.double(), strict=True):
        likeness = [float(query @ own / (query.norm() * own.norm())) for own in known.double()]
        nearest = sorted(range(57), key=lambda index: -likeness[index])[:NEIGHBOURS]
        votes = [0.0] * 5
        for index in nearest:
            votes[int(labels[index])] += math.exp(likeness[index] / TEMPERATURE)
        wanted = [vote / sum(votes) for vote in votes]
        assert row.tolist() == pytest.approx(wanted, abs=3e-6)
    few = Neighbours(known[:3], labels[:3], 5).votes(known[:3]).argmax(dim=1)
    assert few.tolist() == labels[:3].tolist()
