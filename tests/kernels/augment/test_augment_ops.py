"""Each augmentation operation, at timm's own arguments, against timm on Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from augment_images import KINDS, images_of, to_pil
from PIL import Image
from timm.data import auto_augment

from fastlg_kernels import apply_op
from fastlg_kernels.augment.rand_augment import OP_NAMES

FILL = (124, 116, 104)
FACTORS = (0.0, 0.1, 0.19, 1.0, 1.63, 1.9)
VALUES = {
    "AutoContrast": (None,),
    "Equalize": (None,),
    "Invert": (None,),
    "Posterize": (1, 2, 4, 8),
    "PosterizeIncreasing": (1, 3, 4),
    "PosterizeOriginal": (4, 7, 8),
    "Solarize": (0, 1, 128, 255, 256),
    "SolarizeIncreasing": (0, 26, 51),
    "SolarizeAdd": (0, 60, 99, 110, 128),
    "Color": FACTORS,
    "ColorIncreasing": FACTORS,
    "Contrast": FACTORS,
    "ContrastIncreasing": FACTORS,
    "Brightness": FACTORS,
    "BrightnessIncreasing": FACTORS,
    "Sharpness": FACTORS,
    "SharpnessIncreasing": FACTORS,
    "Rotate": (0.0, 27.3, -27.3, 30.0, -0.4, 90.0, 180.0),
    "ShearX": (0.0, 0.27, -0.3, 0.011),
    "ShearY": (0.0, 0.27, -0.3, 0.011),
    "TranslateXRel": (0.0, 0.405, -0.45, 0.25, 0.003),
    "TranslateYRel": (0.0, 0.405, -0.45, 0.25, 0.003),
    "Desaturate": (0.5, 0.725, 0.95, 1.0),
    "GaussianBlur": (0.1, 0.575, 1.05, 1.81, 2.0, 0.0, 7.3),
}
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
ENHANCERS = ("Color", "Contrast", "Brightness", "Sharpness")


def timm_op(image: torch.Tensor, name: str, value: float | None, resample: str = "bicubic") -> torch.Tensor:
    arguments = () if value is None else (value,)
    options = {"fillcolor": FILL, "resample": Image.Resampling[resample.upper()]}
    return torch.from_numpy(np.array(auto_augment.NAME_TO_OP[name](to_pil(image), *arguments, **options)))


def differences(images, name, value, resample="bicubic") -> torch.Tensor:
    ours = apply_op(images, name, value, resample=resample, fill=FILL)
    assert ours.dtype == torch.uint8 and ours.shape == images.shape
    expected = torch.stack([timm_op(image, name, value, resample) for image in images])
    return (ours.int() - expected.int()).abs()


@pytest.fixture(params=KINDS)
def images(request) -> torch.Tensor:
    """Three images of an awkward, not square, size; real ones where they are at hand."""
    real = request.param in ("flowers", "cifar")
    return images_of(request.param, request.getfixturevalue("shared") if real else None, 45, 61)


def test_every_operation_of_timm_rand_augment_is_here_and_tested():
    ours = set(OP_NAMES)
    assert ours == set(VALUES)
    assert ours >= {*auto_augment._RAND_TRANSFORMS, *auto_augment._RAND_INCREASING_TRANSFORMS}
    assert ours >= {*auto_augment._RAND_3A, *auto_augment._RAND_WEIGHTED_3A, *auto_augment._RAND_WEIGHTED_0}


@pytest.mark.parametrize("name", [name for name in VALUES if name not in GEOMETRIC])
def test_pixel_operations_are_pillows(name, images):
    allowed = 1 if name.removesuffix("Increasing") in ENHANCERS else 0
    for value in VALUES[name]:
        assert differences(images, name, value).max() <= allowed, f"{name}({value})"


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_are_pillows_and_never_off_by_a_pixel(name, resample, images):
    for value in VALUES[name]:
        off = differences(images, name, value, resample)
        assert (off <= 2).float().mean() >= 0.999, f"{name}({value})"
        # A shift by one pixel changes most of a noisy or photographed image by far more.
        assert off.max() <= 2, f"{name}({value})"


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "TranslateYRel", "Equalize", "Sharpness"])
def test_operations_hold_at_the_size_students_see(name, shared):
    images = images_of("flowers", shared, 224, 224)
    for value in VALUES[name][1:3] or (None,):
        assert differences(images, name, value).max() <= 1


def test_each_image_takes_its_own_value_and_does_not_mind_its_neighbours():
    images = images_of("noise", None, 33, 47)
    for name, values in VALUES.items():
        if values[0] is None:
            continue
        each = torch.tensor([float(values[i % len(values)]) for i in (1, 2, 0)])
        together = apply_op(images, name, each, fill=FILL)
        for number in range(3):
            alone = apply_op(images[number : number + 1], name, each[number].item(), fill=FILL)
            assert torch.equal(together[number], alone[0]), name


def test_posterize_to_no_bits_is_black_where_pillow_refuses():
    images = images_of("noise", None, 9, 9)
    assert apply_op(images, "PosterizeIncreasing", 0).max() == 0
    assert apply_op(images, "PosterizeIncreasing", -3).max() == 0


def test_images_thinner_than_the_sharpness_kernel_come_back_unchanged():
    for height, width in ((2, 9), (9, 2), (1, 1)):
        images = images_of("noise", None, height, width)
        assert differences(images, "Sharpness", 1.9).max() == 0


def test_input_is_left_alone():
    images = images_of("noise", None, 20, 20)
    before = images.clone()
    for name, values in VALUES.items():
        apply_op(images, name, values[-1])
        assert torch.equal(images, before), name


def test_mistakes_are_named():
    images = images_of("noise", None, 8, 8)
    with pytest.raises(ValueError, match="'Blur'.*AutoContrast"):
        apply_op(images, "Blur", 1.0)
    with pytest.raises(ValueError, match="Rotate needs a value"):
        apply_op(images, "Rotate")
    with pytest.raises(ValueError, match="Invert takes no value"):
        apply_op(images, "Invert", 0.5)
    with pytest.raises(ValueError, match=r"tensor \[3\], got shape \(2,\)"):
        apply_op(images, "Rotate", torch.zeros(2))
    with pytest.raises(ValueError, match="resample must be"):
        apply_op(images, "Rotate", 3.0, resample="nearest")
    with pytest.raises(ValueError, match="fill must be"):
        apply_op(images, "Rotate", 3.0, fill=(0, 0, 256))
    with pytest.raises(TypeError, match="str"):
        apply_op(images, "Rotate", "much")
