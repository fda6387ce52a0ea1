"""Convolutions made for tensor cores are the convolutions that they stand for, in value and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastlg.models.convolutions import ImageConv2d, PatchConv2d, use_own_convolutions


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel, size", [((4, 4), (12, 20)), ((3, 5), (11, 23)), ((7, 7), (7, 7))])
def test_the_product_is_the_convolution(kernel, size, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 10, kernel, kernel, bias=bias).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    inputs = [images, *conv.parameters()]
    expected = conv(images)
    upstream = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, inputs, upstream)
    model = nn.Sequential(conv)
    use_own_convolutions(model)
    ours = model[0].product(images)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, upstream), expected_grads)


def test_only_convolutions_over_whole_patches_are_changed_and_no_name_is():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 16, 16),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.Conv2d(8, 8, 1, 1),
        nn.Conv2d(8, 8, 2, 2, groups=8),
        nn.Conv2d(8, 8, 2, 2),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_own_convolutions(model)
    assert [type(module) is PatchConv2d for module in model] == [True, False, False, False, True]
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(("kernel", "side"), [(9, 8), (7, 2), (3, 8)])
def test_a_convolution_wider_than_its_map_has_gradients_in_half_precision(kernel, side):
    """As lambda layers have them: torch's own are no numbers on a CPU."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 6, (kernel, kernel, 1), padding=(kernel // 2, kernel // 2, 0)))
    maps = torch.randn(2, 1, side, side, 12, requires_grad=True)
    inputs = [maps, *model.parameters()]
    expected = torch.autograd.grad(model(maps).square().mean(), inputs)
    use_own_convolutions(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(maps.to(torch.bfloat16))
    for ours, truth in zip(torch.autograd.grad(found.square().mean(), inputs), expected, strict=True):
        assert (ours - truth).norm() <= 0.02 * truth.norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_zero_channels_change_nothing(channels, bias):
    torch.manual_seed(0)
    conv = ImageConv2d(channels, 5, 3, 2, 1, bias=bias).double()
    images = torch.randn(2, channels, 9, 7, dtype=torch.float64, requires_grad=True)
    inputs = [images, *conv.parameters()]
    expected = nn.functional.conv2d(images, conv.weight, conv.bias, 2, 1)
    upstream = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, inputs, upstream)
    for ours in (conv(images), conv.padded(images)):
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(torch.autograd.grad(ours, inputs, upstream), expected_grads)
