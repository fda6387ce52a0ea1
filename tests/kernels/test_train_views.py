"""The finished views are timm's train transform step by step, and the teacher sees the student's view."""

from __future__ import annotations

import pytest
import torch
from augment_images import images_of
from torch.nn import functional as F

from fastlg_kernels import normalise, rand_augment, random_erasing, sample_seeds, train_views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IDS = torch.arange(9)
SEEDS, ERASE_SEEDS = sample_seeds(4, 1, IDS, "rand_augment"), sample_seeds(4, 1, IDS, "erase")
FLIP = IDS % 2 == 0


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return images_of("smooth", None, 35, 35).repeat(3, 1, 1, 1)


def test_views_are_flip_rand_augment_normalise_and_erase_in_timms_order(images):
    before = images.clone()
    views, teacher = train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, flip=FLIP, erase=0.5)
    expected = torch.where(FLIP[:, None, None, None], images.flip(2), images)
    # timm fills with the mean colour, rounded.
    expected = normalise(rand_augment(expected, SEEDS, fill=(124, 116, 104)), MEAN, STD)
    assert torch.equal(views, random_erasing(expected, ERASE_SEEDS, probability=0.5))
    assert teacher is None and torch.equal(images, before)


def test_the_teacher_sees_the_finished_view_as_the_reference_reduces_it(images):
    for size in (5, 7, 10, 35):
        views, teacher = train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, teacher_size=size)
        expected = F.interpolate(views, size=(size, size), mode="bilinear", align_corners=False)
        assert torch.allclose(teacher, expected, atol=1e-6)
    views, teacher = train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, teacher_size=5, dtype=torch.bfloat16)
    assert views.dtype == torch.bfloat16 and torch.equal(teacher, views[..., 3::7, 3::7])


def test_a_sample_has_the_same_views_alone_and_in_any_batch(images):
    views, teacher = train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, flip=FLIP, teacher_size=7)
    for number in (0, 4, 8):
        one = slice(number, number + 1)
        alone = train_views(images[one], SEEDS[one], ERASE_SEEDS[one], MEAN, STD, flip=FLIP[one], teacher_size=7)
        assert torch.equal(alone[0], views[one]) and torch.equal(alone[1], teacher[one])


def test_without_augmentation_the_images_are_only_normalised(images):
    views, _ = train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, spec=None, erase=0.0)
    assert torch.equal(views, normalise(images, MEAN, STD))


def test_mistakes_are_named(images):
    with pytest.raises(ValueError, match="erase must be a probability in 0..1, got 2"):
        train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, erase=2)
    with pytest.raises(ValueError, match="teacher_size must be a positive number of pixels or None, got 0"):
        train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, teacher_size=0)
    with pytest.raises(ValueError, match=r"seeds must have shape \(9,\)"):
        train_views(images, SEEDS, ERASE_SEEDS[:4], MEAN, STD)
    with pytest.raises(TypeError, match="floating-point type, got torch.int32"):
        train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, dtype=torch.int32)
    with pytest.raises(ValueError, match="unknown section 'q1'"):
        train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, spec="rand-q1")
