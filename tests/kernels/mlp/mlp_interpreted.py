"""The MLP kernels under Triton's interpreter, in float32, scratch filled with NaN.

Run by test_interpreted.py in a process of its own.
"""

from __future__ import annotations

import pytest
import torch
from mlp_truth import check, draw, ours

from fastlg_kernels.mlp import launch, op


@pytest.mark.parametrize(("shape", "hidden"), [((2, 40, 192), 64), ((3, 4, 4, 48), 96), ((2, 3, 64), 32)], ids=str)
def test_every_shape_agrees_with_float64(shape, hidden):
    for keeps, joins in ((True, True),) if shape[-1] == 192 else ((False, True), (True, False)):
        check(draw(shape, hidden, keeps=keeps, joins=joins), 3e-6, impl="triton")


def test_the_same_input_gives_the_same_bits_however_many_programs_share_the_sums(monkeypatch):
    inputs = draw((2, 40, 32), 32)
    first, second = (check(inputs, 3e-6, impl="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    monkeypatch.setattr(launch, "device_family", lambda _: ("interpreter", 100))  # more programs than tiles
    check(inputs, 3e-6, impl="triton")


def test_what_is_dropped_is_not_read_and_a_dropped_sample_passes_unchanged():
    inputs = draw((3, 4, 32), 32)
    with torch.no_grad():
        inputs.branch[0] = float("nan")  # keep[0] is 0
    out, grad_x, grad_branch, *_ = ours(inputs, impl="triton")
    assert out.isfinite().all() and grad_branch.isfinite().all() and grad_branch[0].eq(0).all()
    assert inputs.keep_mlp[2] == 0
    torch.testing.assert_close(out[2], inputs.x.detach()[2] + inputs.keep[2] * inputs.branch.detach()[2])
    torch.testing.assert_close(grad_x[2], inputs.upstream[2])


def test_frozen_parameters_are_left_out():
    inputs = draw((2, 9, 32), 32, keeps=False)
    expected = ours(inputs, impl="torch")[:3]
    for leaf in inputs.parameters:
        leaf.requires_grad_(False)
    frozen = inputs._replace(parameters=tuple(leaf.detach() for leaf in inputs.parameters))
    leaves = [frozen.x, frozen.branch]
    arguments = (*frozen[:4], *frozen.parameters, 1e-3, torch.float32, "triton")
    grads = torch.autograd.grad(op.add_mlp_forward(*arguments), leaves, frozen.upstream)
    for a, b in zip(grads, expected[1:], strict=True):
        torch.testing.assert_close(a, b)


def test_opcheck():
    inputs = draw((2, 9, 32), 32)
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (*inputs[:4], *inputs.parameters, 1e-3, torch.float32)
    torch.library.opcheck(op.add_mlp_forward, (*arguments, "triton"), test_utils=utilities)
    for with_params in (True, False):
        backward = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in (inputs.upstream, *arguments))
        torch.library.opcheck(op.add_mlp_backward, (*backward, with_params, "triton"), test_utils=utilities)
