"""Folding changes no answer: norms go where they belong, activations stay, and what cannot be folded is left."""

from __future__ import annotations

import pytest
import torch
from any_students import any_student, noise
from torch import nn

from fastlg.config import AugmentConfig
from fastlg.models import resnet20
from fastlg.models.general.teaching import as_teacher
from fastlg.teacher.fold import with_folded_norms


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def settled(model: nn.Module, images) -> nn.Module:
    """Its statistics are those of noise, not 0 and 1."""
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def same(one, other) -> None:
    for a, b in zip((one[0], *one[1]), (other[0], *other[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet", "levit_128s", "test_byobnet"])
def test_a_folded_teacher_says_what_it_said(name):
    student = any_student(name)
    images = noise(student, 6)
    teacher = settled(as_teacher(student, AugmentConfig(), AugmentConfig()), images)
    folded = with_folded_norms(teacher)
    with torch.no_grad():
        same(folded(images), teacher(images))
    assert norms(folded) == 0 < norms(teacher)


def test_every_norm_of_a_cifar_resnet_is_folded():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    teacher = settled(resnet20(5), images)
    folded = with_folded_norms(teacher)
    with torch.no_grad():
        same(folded(images), teacher(images))
    assert norms(folded) == 0 and norms(teacher) == 21


class Reader(nn.Module):
    """Reads what its convolution gives before the norm, beside it; or has the norm first."""

    def __init__(self, reads: bool):
        super().__init__()
        self.conv, self.bn, self.reads = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4 if reads else 3), reads

    def forward(self, x):
        if not self.reads:
            return x.mean((2, 3)), (self.conv(self.bn(x)),)
        made = self.conv(x)
        return made.mean((2, 3)), (self.bn(made),)


@pytest.mark.parametrize("reads", [True, False])
def test_a_norm_that_is_not_all_that_follows_a_convolution_stays(reads):
    torch.manual_seed(0)
    images = 3 * torch.randn(4, 3, 32, 32) + 2
    teacher = settled(Reader(reads), images)
    folded = with_folded_norms(teacher)
    with torch.no_grad():
        same(folded(images), teacher(images))
    assert norms(folded) == 1
