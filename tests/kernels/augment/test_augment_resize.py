"""Crops resized in a batch are Pillow's crops, bit for bit, whatever the form, size or company of the images."""

from __future__ import annotations

import numpy as np
import PIL
import pytest
import torch
from augment_images import images_of, real_images, to_pil
from PIL import Image

from fastlg_kernels import RaggedImages, resize_crops


def pillow_crop(image: Image.Image, box: list[int], size: int, interpolation: str) -> torch.Tensor:
    """Pillow 13's result; older ones resample the rows first also where the height shrinks most, and are led here."""
    y, x, h, w = box
    cut, kernel = image.crop((x, y, x + w, y + h)), Image.Resampling[interpolation.upper()]
    if int(PIL.__version__.split(".")[0]) < 13 and h > size and h - size > 2 * (w - size):
        cut = cut.resize((w, size), kernel)
    return torch.from_numpy(np.array(cut.resize((size, size), kernel)))


def random_boxes(count: int, height: int, width: int) -> torch.Tensor:
    generator = np.random.default_rng(3)
    h, w = generator.integers(1, height + 1, count), generator.integers(1, width + 1, count)
    y, x = generator.integers(0, height - h + 1), generator.integers(0, width - w + 1)
    return torch.from_numpy(np.stack((y, x, h, w), axis=1))


def assert_equals_pillow(images, boxes, size, interpolation):
    result = resize_crops(torch.stack(images), boxes, size, interpolation=interpolation)
    assert result.dtype == torch.uint8 and result.is_contiguous()
    for image, box, ours in zip(images, boxes.tolist(), result, strict=True):
        expected = pillow_crop(to_pil(image), box, size, interpolation)
        assert torch.equal(ours, expected), f"box {box}: {(ours != expected).sum()} values differ"


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("height, width, size", [(32, 32, 224), (32, 32, 32), (57, 40, 31), (300, 211, 17)])
def test_equals_pillow_bit_for_bit_up_and_down_with_antialias(height, width, size, interpolation):
    for kind in ("noise", "smooth", "steps"):
        images = list(images_of(kind, None, height, width)) * 5
        assert_equals_pillow(images, random_boxes(len(images), height, width), size, interpolation)


@pytest.mark.parametrize("kind", ["flowers", "cifar"])
def test_equals_pillow_on_real_images(kind, shared):
    images = [torch.from_numpy(np.array(image)) for image in real_images(shared, kind, 6)]
    for image in images:
        assert_equals_pillow([image], random_boxes(1, *image.shape[:2]), 224, "bicubic")
        assert_equals_pillow([image], torch.tensor([[0, 0, *image.shape[:2]]]), 32, "bilinear")


def test_images_of_mixed_sizes_back_to_back_are_each_cut_from_their_own_place():
    images = [images_of("noise", None, h, w)[0] for h, w in ((9, 13), (32, 32), (5, 40))]
    data = torch.cat([image.reshape(-1) for image in images])
    ends = torch.tensor([image.numel() for image in images]).cumsum(0)
    order = torch.tensor([2, 0, 2, 1])
    sizes = torch.tensor([image.shape[:2] for image in images])
    ragged = RaggedImages(data, (torch.cat((torch.zeros(1, dtype=torch.int64), ends[:-1])))[order], sizes[order])
    boxes = torch.tensor([[0, 1, 5, 39], [2, 3, 7, 10], [4, 0, 1, 1], [0, 0, 32, 32]])
    result = resize_crops(ragged, boxes, 24)
    for number, ours, box in zip(order.tolist(), result, boxes.tolist(), strict=True):
        assert torch.equal(ours, pillow_crop(to_pil(images[number]), box, 24, "bicubic"))


def test_a_sample_is_the_same_alone_and_in_any_batch():
    images, boxes = images_of("noise", None, 70, 90).repeat(9, 1, 1, 1), random_boxes(27, 70, 90)
    together = resize_crops(images, boxes, 56)
    for number in (0, 5, 26):
        alone = resize_crops(images[number : number + 1], boxes[number : number + 1], 56)
        assert torch.equal(alone[0], together[number])


def test_flip_mirrors_the_resized_crop():
    images, boxes = images_of("smooth", None, 20, 30), random_boxes(3, 20, 30)
    flip = torch.tensor([True, False, True])
    plain, flipped = resize_crops(images, boxes, 15), resize_crops(images, boxes, 15, flip=flip)
    for one, other, turned in zip(plain, flipped, flip.tolist(), strict=True):
        assert torch.equal(other, one.flip(1) if turned else one)


def test_an_empty_batch_gives_an_empty_batch():
    empty = torch.empty(0, 8, 8, 3, dtype=torch.uint8)
    assert resize_crops(empty, torch.empty(0, 4, dtype=torch.int64), 5).shape == (0, 5, 5, 3)


def test_mistakes_are_named():
    images = images_of("noise", None, 8, 10)
    box = torch.tensor([[0, 0, 8, 10]] * 3)
    with pytest.raises(ValueError, match=r"boxes\[1\] = \[1, 0, 8, 10\].*\[8, 10\]"):
        resize_crops(images, box + torch.tensor([[0] * 4, [1, 0, 0, 0], [0] * 4]), 4)
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        resize_crops(images, box[:2], 4)
    with pytest.raises(TypeError, match="float32"):
        resize_crops(images, box.float(), 4)
    with pytest.raises(TypeError, match="uint8"):
        resize_crops(images.float(), box, 4)
    with pytest.raises(ValueError, match="channels last"):
        resize_crops(images.permute(0, 3, 1, 2), box, 4)
    with pytest.raises(ValueError, match="'lanczos'"):
        resize_crops(images, box, 4, interpolation="lanczos")
    with pytest.raises(ValueError, match="got 0"):
        resize_crops(images, box, 0)
