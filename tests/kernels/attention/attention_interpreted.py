"""The attention kernels under Triton's interpreter, in float32, scratch filled with NaN.

Run by test_interpreted.py in a process of its own.
"""

from __future__ import annotations

import pytest
import torch
from attention_truth import check, draw

from fastlg_kernels.attention import op

SHAPES = [(1, 197, 1, 32), (1, 197, 1, 64), (2, 65, 3, 32), (2, 1, 2, 64), (1, 50, 1, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_agrees_with_float64(shape):
    check(*draw(*shape), 2e-6, impl="triton")


def test_any_strides_are_read_in_place_and_any_scale_is_applied():
    qkv, upstream = draw(2, 20, 2, 32)
    views = {
        "heads outside": qkv.detach().permute(0, 3, 1, 2, 4).contiguous().permute(0, 2, 3, 1, 4),
        "part of a wider layer": qkv.detach().flatten(2).repeat(1, 1, 2)[..., :192].unflatten(-1, (3, 2, 32)),
        "channels apart": qkv.detach().mT.contiguous().mT,
    }
    for view in views.values():
        assert not view.is_contiguous()
        check(view.requires_grad_(), upstream, 2e-6, scale=0.3, impl="triton")


def test_large_scores_neither_overflow_nor_vanish():
    qkv, upstream = draw(1, 33, 1, 32)
    check((qkv.detach() * 40).requires_grad_(), upstream, 1e-4, impl="triton")


def test_the_same_input_gives_the_same_bits():
    qkv, upstream = draw(2, 40, 2, 32)
    first, second = (check(qkv, upstream, 2e-6, impl="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_opcheck():
    qkv, upstream = draw(1, 20, 1, 32)
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op.attention_forward, (qkv, 0.1, "triton"), test_utils=utilities)
    torch.library.opcheck(op.attention_backward, (upstream, qkv.detach(), 0.1, "triton"), test_utils=utilities)
