"""The augmentation's GPU path under Triton's interpreter, against the plain torch path.

Run by test_augment_triton.py in a process of its own, with TRITON_INTERPRET=1. The public functions are told that their
images lie on a GPU, so that everything from the call to the pixels is what a GPU runs, launches included.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
import triton
import triton.language as tl
from augment_images import images_of
from test_augment_ops import GEOMETRIC, VALUES
from test_augment_resize import random_boxes

from fastlg_kernels import (
    RaggedImages,
    apply_op,
    draw_views,
    normalise,
    random_erasing,
    resize_crops,
    sample_seeds,
    train_views,
)
from fastlg_kernels.augment import api as augment
from fastlg_kernels.augment import rand_augment, views
from fastlg_kernels.augment.plain.augment import draw_erasing
from fastlg_kernels.augment.triton import resize as resize_triton
from fastlg_kernels.augment.triton.circle import sine_and_cosine, sine_and_cosine_of_share

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@contextmanager
def on_gpu():
    """Public calls take the Triton path, and fresh memory is full of rubbish, as it is on a GPU."""
    empty = torch.empty

    def rubbish(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(float("nan") if made.is_floating_point() else 113)

    with pytest.MonkeyPatch.context() as patch:
        for module in (augment, views):
            patch.setattr(module, "takes_triton", lambda _: True)
        patch.setattr(torch, "empty", rubbish)
        yield


def both(function, *args, **kwargs):
    """The same call on the Triton path and on the torch path; tensors that are changed in place are copied."""
    with on_gpu():
        ours = function(*(a.clone() if isinstance(a, torch.Tensor) else a for a in args), **kwargs)
    return ours, function(*args, **kwargs)


def made(height: int, width: int) -> torch.Tensor:
    """Four small images: smooth, a ramp, a hard-edged board, and one of flat and poor channels."""
    return torch.cat((images_of("smooth", None, height, width)[:1], images_of("steps", None, height, width)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("height, width, size", [(18, 18, 25), (43, 15, 11)])
def test_resized_crops_are_equal_bit_for_bit(height, width, size, interpolation):
    images, boxes = images_of("noise", None, height, width), random_boxes(3, height, width)
    flip = torch.tensor([True, False, True])
    ours, theirs = both(resize_crops, images, boxes, size, interpolation=interpolation, flip=flip)
    assert torch.equal(ours, theirs)
    # Another memory layout, read in place.
    turned = images.transpose(1, 2)
    ours, theirs = both(resize_crops, turned, boxes[:, [1, 0, 3, 2]], size, interpolation=interpolation)
    assert torch.equal(ours, theirs)


def test_ragged_images_are_cut_from_their_own_places():
    images = [images_of("noise", None, h, w)[0] for h, w in ((9, 13), (5, 40), (30, 8))]
    ends = torch.tensor([0] + [image.numel() for image in images]).cumsum(0)
    sizes = torch.tensor([image.shape[:2] for image in images])
    order = torch.tensor([2, 0, 2, 1])
    ragged = RaggedImages(torch.cat([image.reshape(-1) for image in images]), ends[:-1][order], sizes[order])
    boxes = torch.tensor([[3, 1, 27, 7], [2, 3, 7, 10], [4, 0, 1, 1], [0, 0, 5, 40]])
    ours, theirs = both(resize_crops, ragged, boxes, 11)
    assert torch.equal(ours, theirs)


def test_coefficients_are_equal_to_the_last_bit_over_many_lengths():
    from fastlg_kernels.augment.plain.resize import resize_coefficients

    lengths = torch.tensor([1, 3, 31, 56, 100, 225, 448])
    for interpolation in ("bicubic", "bilinear"):
        start, coefficients = resize_coefficients(lengths, 56, interpolation)
        taps = coefficients.shape[-1]
        ours = resize_triton.make_coefficients(lengths.to(torch.int32), 56, taps, interpolation)
        assert torch.equal(ours[0].long(), start) and torch.equal(ours[1].long(), coefficients)


@pytest.mark.parametrize("name", sorted({name.removesuffix("Increasing").removesuffix("Original") for name in VALUES}))
def test_every_operation_is_equal(name):
    # One block for most, two for one of each kind: a block is 512 pixels.
    images = made(23, 29)[:2] if name in ("Rotate", "Sharpness", "Equalize") else made(18, 27)[:3]
    for resample in ("bicubic", "bilinear") if name in GEOMETRIC else ("bicubic",):
        values = [v for v in VALUES[name] if v not in (0.0, 1.0)][:4]
        each = None if values[0] is None else torch.tensor([float(values[i % len(values)]) for i in range(len(images))])
        ours, theirs = both(apply_op, images, name, each, resample=resample)
        off = (ours.int() - theirs.int()).abs()
        # Positions are added up in another order: where one falls on a whole number, the cut may go either way.
        assert off.max() <= (1 if name in GEOMETRIC else 0) and (off > 0).float().mean() < 1e-3


def test_layers_follow_one_another_through_both_scratch_buffers():
    images, seeds = made(15, 31).repeat(3, 1, 1, 1), sample_seeds(1, 2, torch.arange(12), "layers")
    ours, theirs = both(rand_augment, images, seeds, spec="rand-m9-n3-p0.7-mstd0.5-inc1", fill=(1, 2, 3))
    assert ((ours.int() - theirs.int()).abs() > 1).float().mean() < 1e-3


def test_blurred_and_desaturated_samples_reach_every_target():
    """Blurs read mirrored input, scratch of either kind, and end in scratch, bytes and views."""
    images, seeds = made(13, 13).repeat(2, 1, 1, 1), sample_seeds(1, 2, torch.arange(8), "blurs")
    ours, theirs = both(rand_augment, images, seeds, spec="rand-m7-n3-p0.8-mstd3-t3a")
    assert torch.equal(ours, theirs)
    flip, options = torch.arange(8) % 2 == 0, {"spec": "rand-m7-n1-p1-mstd3-t3a", "erase": 0.0}
    ours, theirs = both(train_views, images, seeds, seeds, MEAN, STD, flip=flip, **options)
    assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_finished_views_are_those_of_the_single_steps(dtype):
    images, ids = made(21, 21).repeat(2, 1, 1, 1), torch.arange(8)
    flip = ids % 3 == 0
    seeds, erase_seeds = sample_seeds(0, 1, ids, "rand_augment"), sample_seeds(0, 1, ids, "erase")
    resample = "bilinear" if dtype == torch.float16 else "bicubic"
    options = {"flip": flip, "erase": 0.6, "teacher_size": 3, "dtype": dtype, "resample": resample}
    ours, theirs = both(train_views, images, seeds, erase_seeds, MEAN, STD, **options)
    # One grey level is 0.018 after normalising; noise differs by the last bits of log and cos.
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype and ((one - other).abs() > 2e-3).float().mean() < 1e-3
    assert torch.equal(ours[1], ours[0][..., 3::7, 3::7])
    every = torch.arange(20)
    draws = draw_views(*(sample_seeds(0, 1, every, name) for name in ("rand_augment", "erase")), 21, erase=0.6)
    del options["erase"]
    with on_gpu():
        kept = train_views(images, None, None, MEAN, STD, draw=draws.rows(ids), **options)
    assert torch.equal(kept[0], ours[0]) and torch.equal(kept[1], ours[1])
    erased = draw_erasing(erase_seeds, 21, 21, 0.6, (0.02, 1 / 3), (0.3, 1 / 0.3), 1)[:, 0, 2] > 0
    assert 0 < erased.sum() < 8
    plain, expected = both(train_views, images, seeds, erase_seeds, MEAN, STD, spec=None, erase=0.0, flip=flip)
    assert torch.equal(plain[0], expected[0]) and plain[1] is None
    even, expected = both(train_views, images, seeds, erase_seeds, MEAN, STD, spec=None, erase=0.0, teacher_size=10)
    assert torch.allclose(even[1], expected[1], atol=1e-6)


def test_normalising_is_equal_to_the_bit():
    flip = torch.tensor([False, True, True, False])
    ours, theirs = both(normalise, made(21, 27), MEAN, STD, flip=flip)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_erased_rectangles_hold_the_same_noise(mode):
    seeds = sample_seeds(0, 0, torch.arange(6), mode)
    images = torch.full((6, 3, 26, 38), 9.0)
    ours, theirs = both(random_erasing, images, seeds, probability=0.9, mode=mode, count=3)
    assert torch.allclose(ours, theirs, atol=2e-5) and (ours == 9.0).any() and (ours != 9.0).any()
    strided = images.fill_(9.0).transpose(2, 3)
    with on_gpu():
        assert random_erasing(strided, seeds, probability=1.0, mode="const") is strided
    assert torch.equal(strided, random_erasing(torch.full((6, 3, 38, 26), 9.0), seeds, probability=1.0, mode="const"))


@triton.jit
def on_the_circle(given_ptr, sine_ptr, cosine_ptr, SHARES: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    given = tl.load(given_ptr + place)
    sine, cosine = sine_and_cosine_of_share(given) if SHARES else sine_and_cosine(given)
    tl.store(sine_ptr + place, sine)
    tl.store(cosine_ptr + place, cosine)


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1.2e-7), (torch.float64, 4.5e-16)])
def test_sines_and_cosines_within_a_turn_are_right_to_the_last_bits(dtype, error):
    corners = torch.arange(0, 33)[:, None] * 2**27 + torch.tensor([-2, -1, 0, 1, 2])  # every eighth of a quarter turn
    shares = torch.cat((corners.flatten(), torch.randint(0, 2**32, (3931,))))
    shares = shares.clamp(0, 2**32 - 1)
    exact = shares.to(torch.float64) * (2 * torch.pi / 2**32)
    given = shares if dtype == torch.float32 else torch.where(shares % 2 == 0, exact, -exact)
    sine, cosine = torch.empty(len(shares), dtype=dtype), torch.empty(len(shares), dtype=dtype)
    on_the_circle[(1,)](given, sine, cosine, dtype == torch.float32, len(shares))
    truth = exact if dtype == torch.float32 else given
    assert len(shares) == 4096 and torch.isfinite(sine).all()
    assert (sine - truth.sin()).abs().max() <= error and (cosine - truth.cos()).abs().max() <= error


def test_one_pixel_and_no_image_are_images_too():
    images, seeds = torch.full((2, 1, 1, 3), 200, dtype=torch.uint8), sample_seeds(0, 0, torch.arange(2), "tiny")
    ours, theirs = both(rand_augment, images, seeds)
    assert torch.equal(ours, theirs)
    ours, theirs = both(resize_crops, images, torch.tensor([[0, 0, 1, 1]] * 2), 1)
    assert torch.equal(ours, theirs)
    with on_gpu():
        assert rand_augment(images[:0], seeds[:0]).shape == (0, 1, 1, 3)
        assert resize_crops(images[:0], torch.empty(0, 4, dtype=torch.int64), 4).shape == (0, 4, 4, 3)
        assert train_views(images[:0], seeds[:0], seeds[:0], MEAN, STD)[0].shape == (0, 3, 1, 1)
        assert random_erasing(torch.empty(0, 3, 4, 4), seeds[:0]).shape == (0, 3, 4, 4)
