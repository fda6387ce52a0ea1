"""On a CUDA device: the kernels give the CPU's pixels, without synchronising, also from a captured graph."""

from __future__ import annotations

import pytest
import torch
from augment_images import images_of
from test_augment_ops import GEOMETRIC, VALUES
from test_augment_resize import random_boxes

from fastlg_kernels import apply_op, draw_views, random_erasing, resize_crops, sample_seeds, train_views
from fastlg_kernels.augment import rand_augment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def made(count: int, height: int, width: int) -> torch.Tensor:
    kinds = torch.cat([images_of(kind, None, height, width) for kind in ("smooth", "noise", "steps")])
    return kinds.repeat(count // 9 + 1, 1, 1, 1)[:count]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("height, width, size", [(32, 32, 224), (57, 40, 31), (300, 211, 17), (500, 375, 224)])
def test_resized_crops_equal_the_cpus_bit_for_bit(height, width, size, interpolation):
    images, boxes = made(27, height, width), random_boxes(27, height, width)
    flip = torch.arange(27) % 2 == 0
    expected = resize_crops(images, boxes, size, interpolation=interpolation, flip=flip)
    for place in (boxes, boxes.cuda()):
        ours = resize_crops(images.cuda(), place, size, interpolation=interpolation, flip=flip.cuda())
        assert torch.equal(ours.cpu(), expected)


@pytest.mark.parametrize("name", VALUES)
def test_operations_equal_the_cpus(name):
    for height, width in ((224, 224), (45, 61)):
        images = made(9, height, width)
        for value in VALUES[name]:
            for resample in ("bicubic", "bilinear") if name in GEOMETRIC else ("bicubic",):
                ours = apply_op(images.cuda(), name, value, resample=resample).cpu()
                off = (ours.int() - apply_op(images, name, value, resample=resample).int()).abs()
                assert off.max() <= (1 if name in GEOMETRIC else 0), f"{name}({value})"
                assert (off > 0).float().mean() < 1e-3


def test_a_training_batch_equals_the_cpus_and_does_not_synchronise():
    images, ids = made(128, 224, 224), torch.arange(128)
    seeds, erase_seeds = sample_seeds(0, 3, ids, "rand_augment"), sample_seeds(0, 3, ids, "erase")
    flip = ids % 2 == 0
    expected, expected_teacher = train_views(images, seeds, erase_seeds, MEAN, STD, flip=flip, teacher_size=32)
    inputs = [part.cuda() for part in (images, seeds, erase_seeds)]
    options = {"flip": flip.cuda(), "teacher_size": 32}
    train_views(*inputs, MEAN, STD, **options)
    ids = ids.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        views, teacher = train_views(*inputs, MEAN, STD, **options)
        draw = draw_views(*inputs[1:], 224).rows(ids)
        kept, kept_teacher = train_views(inputs[0], None, None, MEAN, STD, draw=draw, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ((views.cpu() - expected).abs() > 2e-3).float().mean() < 1e-4
    assert torch.equal(teacher, views[..., 3::7, 3::7])
    assert torch.equal(kept, views) and torch.equal(kept_teacher, teacher)
    assert ((teacher.cpu() - expected_teacher).abs() > 2e-3).float().mean() < 1e-4


def test_a_captured_graph_follows_its_inputs():
    images, ids = made(16, 224, 224).cuda(), torch.arange(16, device="cuda")
    run = lambda: train_views(images, sample_seeds(0, 0, ids, "a"), sample_seeds(0, 0, ids, "b"), MEAN, STD)[0]  # noqa: E731
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        views = run()
    ids += 100
    graph.replay()
    assert torch.equal(views, run())


def test_layers_and_erasing_equal_the_cpus():
    images, seeds = made(64, 96, 80), sample_seeds(0, 0, torch.arange(64), "layers")
    spec = "rand-m9-n4-p0.7-mstd0.5-inc1"
    off = (
        rand_augment(images.cuda(), seeds.cuda(), spec=spec).cpu().int() - rand_augment(images, seeds, spec=spec).int()
    )
    assert (off.abs() > 1).float().mean() < 1e-3
    for mode in ("pixel", "rand", "const"):
        floats = torch.full((64, 3, 96, 80), 9.0)
        ours = random_erasing(floats.cuda(), seeds.cuda(), probability=0.9, mode=mode, count=3).cpu()
        assert torch.allclose(ours, random_erasing(floats, seeds, probability=0.9, mode=mode, count=3), atol=2e-5)
