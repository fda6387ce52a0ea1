"""Boxes, flips and order: timm's distribution, pure functions of (seed, epoch, sample), shared out without loss."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from timm.data.transforms import RandomResizedCropAndInterpolation

from fastlg.data.loaders.plan import SamplePlan, draw_crops, draw_flips, epoch_order, rank_batches
from fastlg.errors import UserError

DRAWS = 20_000


def ours(height, width, count=DRAWS, seed=3, **options) -> np.ndarray:
    sizes = torch.tensor([[height, width]]).expand(count, 2)
    return draw_crops(seed, 0, torch.arange(count), sizes, **options).numpy()


def timms(height, width, count=DRAWS, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)) -> np.ndarray:
    random.seed(0)
    image = Image.new("L", (width, height))
    return np.array([RandomResizedCropAndInterpolation.get_params(image, scale, ratio) for _ in range(count)])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (375, 500), (256, 90)])
def test_boxes_have_timms_distribution(height, width):
    found, truth = ours(height, width), timms(height, width)
    for name, quantity in {
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: b[:, 3] / b[:, 2],
        "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3],
        "y": lambda b: b[:, 0],
        "x": lambda b: b[:, 1],
        "bottom": lambda b: b[:, 0] + b[:, 2],
        "right": lambda b: b[:, 1] + b[:, 3],
    }.items():
        a, b = quantity(found), quantity(truth)
        assert stats.ks_2samp(a, b, method="asymp").pvalue > 1e-3, name  # conservative where values repeat
        values, counts = np.unique(np.concatenate([a, b]), return_counts=True)
        edges = values[np.searchsorted(np.cumsum(counts), np.linspace(0, 2 * DRAWS, 41)[1:-1])]
        table = np.array([np.bincount(np.searchsorted(edges, v), minlength=40) for v in (a, b)])
        assert stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue > 1e-3, name


def test_box_position_is_independent_of_its_size():
    boxes = ours(500, 500)
    room = 500 - boxes[:, 2] + 1
    inside = room > 20
    place = (boxes[inside, 0] + 0.5) / room[inside]
    assert stats.kstest(place, "uniform").pvalue > 1e-3
    assert abs(stats.spearmanr(place, boxes[inside, 2]).statistic) < 0.03


def test_images_too_narrow_for_any_try_get_the_centre_crop():
    for height, width in ((4, 400), (400, 4), (1, 50), (1, 1), (2, 3)):
        count = 2000
        found, truth = ours(height, width, count), timms(height, width, count)
        truth = truth[(truth[:, 2:] > 0).all(1)]  # timm may return an empty box of a tiny image; torchvision never
        assert (found[:, 2:] > 0).all() and (found[:, :2] >= 0).all()
        assert (found[:, 0] + found[:, 2] <= height).all() and (found[:, 1] + found[:, 3] <= width).all()
        if height * width == 1600:
            assert (found == found[0]).all() and np.array_equal(found[0], truth[0])


def test_scale_and_ratio_are_honoured():
    boxes = ours(300, 300, scale=(0.5, 0.6), ratio=(1.0, 1.0))
    assert (boxes[:, 2] == boxes[:, 3]).all()
    assert boxes[:, 2].min() == round(math.sqrt(0.5) * 300) and boxes[:, 2].max() == round(math.sqrt(0.6) * 300)
    whole = ours(30, 40, count=5, scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3))
    assert (whole == [0, 0, 30, 40]).all()


def test_a_sample_keeps_its_box_and_flip_in_any_batch():
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    sizes = torch.stack([5 + ids % 97, 3 + ids % 61], dim=1)
    boxes, flips = draw_crops(7, 3, ids, sizes), draw_flips(7, 3, ids)
    for group in (slice(0, 1), slice(3, 500), slice(999, 1000)):
        assert torch.equal(draw_crops(7, 3, ids[group], sizes[group]), boxes[group])
        assert torch.equal(draw_flips(7, 3, ids[group]), flips[group])
    for seed, epoch in ((8, 3), (7, 4)):
        assert not torch.equal(draw_crops(seed, epoch, ids, sizes), boxes)
        assert not torch.equal(draw_flips(seed, epoch, ids), flips)
    assert boxes.dtype == torch.int64 and flips.dtype == torch.bool


def test_flips_come_at_their_probability_and_apart_from_the_boxes():
    ids = torch.arange(DRAWS)
    for probability in (0.0, 0.3, 0.5, 1.0):
        count = int(draw_flips(1, 2, ids, probability).sum())
        assert stats.binomtest(count, DRAWS, probability).pvalue > 1e-3
    flips = draw_flips(3, 0, ids).numpy()
    areas = ours(500, 500)[:, 2:].prod(1)
    assert stats.ks_2samp(areas[flips], areas[~flips]).pvalue > 1e-3


def test_alternating_flips_show_each_image_both_ways_in_any_two_epochs_and_half_of_them_at_a_time():
    ids = torch.arange(DRAWS)
    first = draw_flips(1, 0, ids, "alternating")
    assert stats.binomtest(int(first.sum()), DRAWS, 0.5).pvalue > 1e-3
    for epoch in range(1, 6):
        flips = draw_flips(1, epoch, ids, "alternating")
        assert torch.equal(flips, first if epoch % 2 == 0 else ~first) and flips.dtype == torch.bool
    some = torch.tensor([7, 3, 900])
    assert torch.equal(draw_flips(1, 3, some, "alternating"), ~first[some]), "whatever the batch"
    other = draw_flips(2, 0, ids, "alternating")
    assert stats.binomtest(int((other ^ first).sum()), DRAWS, 0.5).pvalue > 1e-3, "another seed, another half"


@pytest.mark.parametrize("count", [0, 1, 2, 7, 4099])
def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own(count):
    order = epoch_order(5, 2, count)
    assert torch.equal(order.sort().values, torch.arange(count)) and torch.equal(order, epoch_order(5, 2, count))
    if count > 7:
        for other in (epoch_order(5, 3, count), epoch_order(6, 2, count)):
            assert abs(stats.spearmanr(order, other).statistic) < 0.06
        assert abs(stats.spearmanr(order, np.arange(count)).statistic) < 0.06


def test_every_order_of_four_is_equally_likely():
    codes = [int((epoch_order(9, epoch, 4) * torch.tensor([64, 16, 4, 1])).sum()) for epoch in range(4800)]
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 1e-3


@given(
    count=st.integers(1, 400),
    batch=st.integers(1, 70),
    world=st.integers(1, 6),
    train=st.booleans(),
    drop_last=st.booleans(),
)
@settings(max_examples=300)
def test_processes_share_an_epoch_without_repeat_or_loss(count, batch, world, train, drop_last):
    shares = [
        rank_batches(count, batch, train=train, drop_last=drop_last, rank=r, world_size=world) for r in range(world)
    ]
    taken = sorted(i for share in shares for s in share for i in range(s.start, s.stop))
    assert len(taken) == len(set(taken)) and all(s.stop > s.start for share in shares for s in share)
    steps = [len(share) for share in shares]
    if not train:
        assert taken == list(range(count)) and max(steps) - min(steps) <= 1
        return
    assert len(set(steps)) == 1
    if count >= world:
        assert steps[0] >= 1
    lost = count - len(taken)
    assert lost < (batch * world if drop_last else world) and taken == list(range(len(taken)))


@given(count=st.integers(8, 300), batch=st.integers(1, 8), world=st.sampled_from([2, 4]))
@settings(max_examples=100)
def test_the_samples_of_a_step_do_not_depend_on_the_number_of_processes(count, batch, world):
    alone = rank_batches(count, batch * world, train=True)
    shares = [rank_batches(count, batch, train=True, rank=r, world_size=world) for r in range(world)]
    for step, whole in enumerate(alone):
        together = [i for share in shares for i in range(share[step].start, share[step].stop)]
        assert together == list(range(whole.start, whole.stop))


def test_the_reference_takes_390_steps_of_128_on_cifar100():
    assert len(rank_batches(50_000, 128, train=True)) == 390
    assert len(rank_batches(50_000, 128, train=True, drop_last=False)) == 391
    assert len(rank_batches(10_000, 200, train=False)) == 50


def test_a_plan_draws_the_same_in_blocks_as_batch_by_batch():
    sizes = torch.stack([20 + torch.arange(300) % 7, 30 - torch.arange(300) % 5], dim=1)
    for train in (True, False):
        plan = SamplePlan(size=8, batch_size=7, train=train, seed=4)
        order, slices = plan.order(300, 2), plan.slices(300)
        drawn = list(plan.batches(sizes, 2))
        assert len(drawn) == len(slices) == (42 if train else 43)
        for batch, s in zip(drawn, slices, strict=True):
            for a, b in zip(batch, plan.draw(order[s], sizes, 2), strict=True):
                assert torch.equal(a, b)
        for a, b in zip(drawn[17:], plan.batches(sizes, 2, start_batch=17), strict=True):
            assert torch.equal(a.sample_ids, b.sample_ids) and torch.equal(a.boxes, b.boxes)
        fractions = drawn[0].fractions(sizes)
        own = sizes[drawn[0].sample_ids]
        truth = drawn[0].boxes.numpy() / np.tile(own.numpy(), 2)
        np.testing.assert_allclose(fractions, truth, rtol=1e-7)


def test_plans_that_cannot_be_followed_are_refused():
    for wrong in ({"size": 0}, {"batch_size": 0}, {"rank": 2, "world_size": 2}, {"interpolation": "lanczos"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SamplePlan(**{"size": 8, "batch_size": 4, "train": True, **wrong})
    with pytest.raises(UserError, match="3 images cannot be shared by 4 processes"):
        SamplePlan(size=8, batch_size=4, train=True, world_size=4).slices(3)
