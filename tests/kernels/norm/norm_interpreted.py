"""The layer norm kernels under Triton's interpreter, in float32, scratch filled with NaN.

Run by test_interpreted.py in a process of its own.
"""

from __future__ import annotations

import pytest
import torch
from norm_truth import check, draw

from fastlg_kernels import add_layer_norm
from fastlg_kernels.norm import launch, op

SHAPES = [(3, 197, 192), (4, 5, 7, 40), (2, 3, 1000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_agrees_with_float64(shape):
    options = ((True, True),) if shape[1] == 197 else ((True, True), (False, True), (True, False))
    for keeps, with_total in options:
        check(draw(shape, keeps=keeps), 2e-6, with_total, impl="triton")


def test_one_channel_is_its_own_mean():
    inputs = draw((5, 1))
    total, normed = add_layer_norm(*inputs.leaves(), keep=inputs.keep, impl="triton")
    assert torch.equal(normed, inputs.bias.expand(5, 1))
    normed.sum().backward()
    assert inputs.x.grad.eq(0).all() and inputs.bias.grad.item() == 5


def test_the_same_input_gives_the_same_bits_however_many_programs_share_the_sums(monkeypatch):
    inputs = draw((2, 50, 24))
    first, second = (check(inputs, 2e-6, impl="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    monkeypatch.setattr(launch, "device_family", lambda _: ("interpreter", 100))  # more programs than tiles
    check(inputs, 2e-6, impl="triton")


def test_a_branch_that_is_dropped_is_not_read():
    inputs = draw((3, 4, 20))
    with torch.no_grad():
        inputs.branch[0] = float("nan")
    total, normed = add_layer_norm(*inputs.leaves(), keep=inputs.keep, impl="triton")
    assert torch.equal(total[0], inputs.x[0]) and normed.isfinite().all()
    (total.sum() + normed.square().sum()).backward()
    assert inputs.branch.grad[0].eq(0).all() and inputs.branch.grad.isfinite().all()


def test_frozen_parts_are_left_out():
    inputs = draw((2, 9, 20), keeps=False)
    for leaf in (inputs.x, inputs.weight, inputs.bias):
        leaf.requires_grad_(False)
    total, normed = add_layer_norm(*inputs.leaves(), impl="triton")
    (total.sum() + normed.square().sum()).backward()
    found, inputs.branch.grad = inputs.branch.grad, None
    total, normed = add_layer_norm(*inputs.leaves(), impl="torch")
    (total.sum() + normed.square().sum()).backward()
    torch.testing.assert_close(found, inputs.branch.grad)
    assert inputs.x.grad is None and inputs.weight.grad is None


def test_opcheck():
    inputs = draw((2, 9, 20))
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (*inputs.leaves(), inputs.keep, 1e-6, torch.float32, "triton")
    torch.library.opcheck(op.add_norm_forward, arguments, test_utils=utilities)
    with torch.no_grad():
        total, normed, stats = op.add_norm_forward(*arguments)
    backward = (normed, normed, total, stats, inputs.weight.detach(), inputs.keep, torch.float32, True, "triton")
    torch.library.opcheck(op.add_norm_backward, backward, test_utils=utilities)
