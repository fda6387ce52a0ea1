"""The finished views are timm's train transform step by step, and the teacher sees the student's view."""

from __future__ import annotations

import pytest
import torch
from augment_images import images_of
from torch.nn import functional as F

from fastlg_kernels import draw_views, normalise, random_erasing, sample_seeds, teacher_view, train_views
from fastlg_kernels.augment import rand_augment, views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IDS = torch.arange(9)
SEEDS, ERASE_SEEDS = sample_seeds(4, 1, IDS, "rand_augment"), sample_seeds(4, 1, IDS, "erase")
FLIP = IDS % 2 == 0


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return images_of("smooth", None, 35, 35).repeat(3, 1, 1, 1)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_views_are_flip_rand_augment_normalise_and_erase_in_timms_order(images, resample):
    before = images.clone()
    views, teacher = train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, flip=FLIP, erase=0.5, resample=resample)
    expected = torch.where(FLIP[:, None, None, None], images.flip(2), images)
    # timm fills with the mean colour, rounded.
    expected = normalise(rand_augment(expected, SEEDS, resample=resample, fill=(124, 116, 104)), MEAN, STD)
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


@pytest.mark.parametrize("spec", ["rand-m9-mstd0.5-inc1", "rand-n1-t3a", "rand-n3-tweights", None])
@pytest.mark.parametrize("erase", [0.0, 0.5, 1.0])
def test_rows_of_a_larger_draw_give_the_views_of_the_samples_own_seeds(images, monkeypatch, spec, erase):
    monkeypatch.setattr(views, "_DRAWN_AT_ONCE", 7)  # parts and a rest
    ids = torch.arange(30)
    drawn = draw_views(
        sample_seeds(4, 1, ids, "rand_augment"), sample_seeds(4, 1, ids, "erase"), 35, spec=spec, erase=erase
    )
    expected = train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, flip=FLIP, spec=spec, erase=erase, teacher_size=7)
    order = torch.tensor([8, 0, 3, 3, 5])
    for index in (IDS, order, order[:0]):
        ours = train_views(
            images[index], None, None, MEAN, STD, flip=FLIP[index], draw=drawn.rows(index), teacher_size=7
        )
        assert all(torch.equal(one, whole[index]) for one, whole in zip(ours, expected, strict=True))


def test_a_draw_of_a_rectangular_image_is_for_that_image_alone(images):
    wide = images[:, :20].contiguous()
    drawn = draw_views(SEEDS, ERASE_SEEDS, (20, 35), erase=1.0)
    ours = train_views(wide, None, None, MEAN, STD, draw=drawn)[0]
    assert torch.equal(ours, train_views(wide, SEEDS, ERASE_SEEDS, MEAN, STD, erase=1.0)[0])
    with pytest.raises(ValueError, match=r"draw is for 9 images of \(20, 35\) pixels, got 9 of \(35, 35\)"):
        train_views(images, None, None, MEAN, STD, draw=drawn)
    with pytest.raises(ValueError, match="draw is for 9 images"):
        train_views(wide[:4], None, None, MEAN, STD, draw=drawn)


def test_without_augmentation_the_images_are_only_normalised(images):
    views, _ = train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, spec=None, erase=0.0)
    assert torch.equal(views, normalise(images, MEAN, STD))


def test_mistakes_are_named(images):
    with pytest.raises(ValueError, match="erase must be a probability in 0..1, got 2"):
        train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, erase=2)
    with pytest.raises(ValueError, match="size must be a positive number of pixels, got 0"):
        teacher_view(torch.zeros(1, 3, 14, 14), 0)
    with pytest.raises(ValueError, match="teacher_size must be a positive number of pixels or None, got 0"):
        train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, teacher_size=0)
    with pytest.raises(ValueError, match=r"seeds must have shape \(9,\)"):
        train_views(images, SEEDS, ERASE_SEEDS[:4], MEAN, STD)
    with pytest.raises(TypeError, match="floating-point type, got torch.int32"):
        train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, dtype=torch.int32)
    with pytest.raises(ValueError, match="unknown section 'q1'"):
        train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, spec="rand-q1")
    with pytest.raises(ValueError, match="give seeds or draw, not both"):
        train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, draw=draw_views(SEEDS, ERASE_SEEDS, 35))
    with pytest.raises(ValueError, match="resample must be 'bicubic' or 'bilinear', got 'nearest'"):
        train_views(images, SEEDS, ERASE_SEEDS, MEAN, STD, resample="nearest")
    with pytest.raises(ValueError, match="size must be a positive number of pixels"):
        draw_views(SEEDS, ERASE_SEEDS, 0)
    with pytest.raises(TypeError, match="seeds must be an int64 tensor"):
        draw_views(SEEDS, None, 35)
