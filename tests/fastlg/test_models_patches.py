"""A patch embedding as a matrix product is the convolution, in value and gradients, whatever sticks out at the edge."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastlg.models.patches import PatchConv2d, use_patch_products


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
    use_patch_products(model)
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
    use_patch_products(model)
    assert [type(module) is PatchConv2d for module in model] == [True, False, False, False, True]
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], value) for name, value in before.items())
