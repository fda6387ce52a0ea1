"""A student of several image sizes is timm's own with dynamic_img_size at each, and says which it cannot take."""

from __future__ import annotations

import pytest
import timm
import torch

from fastlg.errors import UserError
from fastlg.models import Student

TINY = {
    "deit_tiny_patch16_224": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "vit_small_patch14_reg4_dinov2": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "vit_base_patch16_rpn_224": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "global_pool": "avg"},
}


def student(name: str, size: int = 48, **more) -> Student:
    torch.manual_seed(0)
    made = Student(name, num_classes=5, image_size=size, model_args=TINY.get(name), init="timm", blocks=[0, 1], **more)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


@pytest.mark.parametrize("name", [name for name in TINY if timm.is_model(name)])
@pytest.mark.parametrize("size", [16, 40, 48])
def test_a_smaller_image_gives_timms_logits_and_gradients(name, size):
    ours = student(name)
    names = list(ours.bare.state_dict())
    truth = timm.create_model(name, num_classes=5, img_size=48, dynamic_img_size=True, **TINY[name]).eval()
    truth.load_state_dict(ours.bare.state_dict())
    for module, own in zip(truth.modules(), ours.bare.modules(), strict=True):
        if hasattr(own, "eps"):
            module.eps = own.eps
    ours.take_size(size)
    images = torch.randn(3, 3, size, size)
    logits, tokens = ours(images)
    side = size // 8
    assert ours.grids == [(side, side)] * 2 and tokens[0].shape[1] == side * side + ours.bare.num_prefix_tokens
    wanted = truth(images)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
    for out, model in ((logits, ours.bare), (wanted, truth)):
        out.square().sum().backward()
        assert model.pos_embed.grad.abs().sum() > 0
    for own, other in zip(ours.bare.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-4)
    assert list(ours.bare.state_dict()) == names


def test_the_full_size_computes_what_it_did_whatever_sizes_came_before():
    ours, images = student("deit_tiny_patch16_224"), torch.randn(2, 3, 48, 48)
    before = ours(images)[0]
    for size in (16, 32, 48):
        ours.take_size(size)
    assert torch.equal(ours(images)[0], before) and ours.grids == [(6, 6)] * 2
    ours.take_size(16)
    assert torch.equal(ours(images)[0], before), "an evaluation between epochs of another size"


def test_compiled_and_under_autocast_it_learns_at_every_size():
    ours = student("deit_tiny_patch16_224")
    run = torch.compile(ours, backend="aot_eager", dynamic=False)
    for size in (16, 48):
        ours.take_size(size)
        images = torch.randn(2, 3, size, size)
        torch.testing.assert_close(run(images)[0], ours(images)[0], rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = ours(images)[0]
        torch.testing.assert_close(half.float(), ours(images)[0], rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("name", "size", "wanted"),
    [
        ("convit_tiny", 224, "one size; use a vit_"),
        ("deit_tiny_distilled_patch16_224", 224, "one size; use a vit_"),
        ("pvt_v2_b0", 224, "one size; use a vit_"),
        ("deit_tiny_patch16_224", 48, "patches of 8 x 8 px leave out a border of 20 px"),
    ],
)
def test_a_size_that_cannot_be_taken_is_one_line(name, size, wanted):
    with pytest.raises(UserError, match=wanted):
        student(name, size).take_size(20)
