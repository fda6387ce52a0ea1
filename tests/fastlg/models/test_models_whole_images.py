"""Every pixel of an image is seen: a size that would leave out its border is refused with the nearest that do not."""

from __future__ import annotations

import re

import pytest
import timm
import torch

from fastlg.config import ModelConfig
from fastlg.errors import UserError
from fastlg.models import Student
from fastlg.models.build import CNNS

COLUMN = {"embed_dim": 24, "depth": 1, "num_heads": 3}
ARGUMENTS = {
    "deit_tiny_patch16_224": COLUMN | {"patch_size": 8},
    "deit_tiny_distilled_patch16_224": COLUMN,
    "vit_small_patch14_reg4_dinov2": COLUMN,
    "convit_tiny": {"embed_dim": 6, "depth": 2, "num_heads": 4, "local_up_to_layer": 1, "patch_size": 12},
    "vit_base_mci_224": {"depth": 1},
    "pit_ti_224": {"base_dims": [8, 8, 8], "depth": [1, 1, 1], "heads": [1, 2, 4]},
    "pvt_v2_b0": {"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]},
    "pvt_v2_b2_li": {"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]},
}
CASES = [  # name, size in px, the nearest that fit or None for one that does
    ("deit_tiny_patch16_224", 48, None),
    ("deit_tiny_patch16_224", 50, (48, 56)),
    ("deit_tiny_patch16_224", 55, (48, 56)),
    ("deit_tiny_distilled_patch16_224", 100, (96, 112)),
    ("deit_tiny_distilled_patch16_224", 31, (16, 32)),
    ("vit_small_patch14_reg4_dinov2", 56, None),
    ("vit_small_patch14_reg4_dinov2", 64, (56, 70)),
    ("convit_tiny", 36, None),
    ("convit_tiny", 32, (24, 36)),
    ("vit_base_mci_224", 32, None),
    ("vit_base_mci_224", 40, (32, 48)),
    ("pit_ti_224", 56, None),
    ("pit_ti_224", 57, (56, 64)),
    ("pit_ti_224", 63, (56, 64)),
    ("pvt_v2_b0", 64, None),
    ("pvt_v2_b0", 61, None),  # overlapping patches of 4, the last half outside
    ("pvt_v2_b0", 66, (64, 93)),  # a grid of 17, whose keys are squares of 8
    ("pvt_v2_b2_li", 45, None),  # keys by pooling
    ("pvt_v2_b2_li", 66, None),
]


def plain(name: str, size: int):
    sized = {} if name.startswith("pvt") else {"img_size": size}
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **ARGUMENTS[name], **sized).eval()


def sees_last_row(model, size: int) -> bool:
    """By the gradient of timm's own patches with respect to the image."""
    image = torch.randn(1, 3, size, size, requires_grad=True)
    model.patch_embed(image).square().sum().backward()
    return bool((image.grad[0, :, -1] != 0).any())


@pytest.mark.parametrize(("name", "size", "near"), CASES)
def test_a_size_is_taken_exactly_where_timms_model_sees_the_last_row(name, size, near):
    if near is None:
        Student(name, num_classes=3, image_size=size, model_args=ARGUMENTS[name])
    else:
        with pytest.raises(UserError, match="border") as caught:
            Student(name, num_classes=3, image_size=size, model_args=ARGUMENTS[name])
        line = str(caught.value)
        assert re.findall(r"image_size=(\d+) or (\d+)", line) == [tuple(map(str, near))] and f" {size} px" in line
        assert ("model.args.patch_size" in line) == ("patch_size" in ARGUMENTS[name])
        for other in near:
            Student(name, num_classes=3, image_size=other, model_args=ARGUMENTS[name])
    if not name.startswith("pvt"):
        assert sees_last_row(plain(name, size), size) == (near is None)


@pytest.mark.parametrize("size", [61, 64, 66, 68])
def test_the_keys_of_pvt_come_from_every_token_of_the_sizes_that_are_taken(size):
    model = plain("pvt_v2_b0", size)
    rests = []
    for stage in model.stages[:3]:
        stage.blocks[0].attn.sr.register_forward_pre_hook(
            lambda conv, given: rests.append(given[0].shape[-1] % conv.stride[0])
        )
    model(torch.randn(1, 3, size, size))
    try:
        Student("pvt_v2_b0", num_classes=3, image_size=size, model_args=ARGUMENTS["pvt_v2_b0"])
    except UserError:
        assert max(rests) > 0
    else:
        assert rests == [0, 0, 0]


@pytest.mark.parametrize("size", [16, 31, 32, 33, 45])
def test_a_teacher_sees_every_pixel_at_any_size(size):
    assert all(ModelConfig(name=name).is_cnn for name in CNNS)
    torch.manual_seed(0)
    model = CNNS["resnet20"](3).eval()
    image = torch.randn(1, 3, size, size, requires_grad=True)
    sum(stage.square().sum() for stage in model(image)[1]).backward()
    assert bool((image.grad.abs().sum((0, 1)) > 0).all())


def test_patches_of_a_cnns_maps_that_do_not_divide_them_are_one_line_with_sizes():
    with pytest.raises(UserError, match=r"vit_tiny_r_s16_p8_224.*model\.image_size=192 or 224"):
        Student("vit_tiny_r_s16_p8_224", num_classes=3, image_size=200, model_args={"depth": 1})
    Student("vit_tiny_r_s16_p8_224", num_classes=3, image_size=192, model_args={"depth": 1})
    with pytest.raises(UserError, match=r"model\.args\.dynamic_img_pad cannot be set"):
        Student("deit_tiny_patch16_224", num_classes=3, image_size=50, model_args={"dynamic_img_pad": True})
