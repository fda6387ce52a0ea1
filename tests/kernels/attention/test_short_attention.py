"""short_attention in plain torch and inside the rest of PyTorch: float64, autocast, compile, counts, refusals."""

from __future__ import annotations

import pytest
import torch
from attention_truth import check, draw, truth
from torch.utils.flop_counter import FlopCounterMode

from fastlg_kernels import short_attention
from fastlg_kernels.attention import op, plain

BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64
SHAPE = (3, 7, 2, 32)


@pytest.mark.parametrize(("dtype", "limit"), [(FP64, 1e-13), (FP32, 2e-6), (BF16, 1e-2)])
def test_every_dtype_agrees_with_float64(dtype, limit):
    for scale in (None, 0.4):
        check(*draw(*SHAPE, dtype), limit, scale)
    check(*draw(1, 1, 1, 64, dtype), limit)


def test_images_are_taken_a_few_at_a_time_where_their_scores_are_many(monkeypatch):
    monkeypatch.setattr(plain, "SCORE_BYTES", 2 * 2 * 7 * 7 * 8)  # of two images
    assert [part.start for part in plain._parts(draw(*SHAPE, FP64)[0])] == [0, 2]
    check(*draw(*SHAPE, FP64), 1e-13)


def test_it_is_what_torch_computes_on_the_unpacked_parts():
    qkv, _ = draw(2, 30, 3, 64)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(short_attention(qkv), expected)


def test_autocast_takes_its_dtype_and_the_gradient_keeps_the_layers():
    qkv, upstream = draw(*SHAPE)
    with torch.autocast("cpu", BF16):
        out = short_attention(qkv)
    (grad,) = torch.autograd.grad(out, qkv, upstream.to(BF16))
    correct, correct_grad = truth(qkv, upstream)
    assert out.dtype == BF16 and grad.dtype == FP32
    half = qkv.detach().to(BF16)
    with torch.autocast("cpu", BF16):
        assert torch.equal(short_attention(half), out)
    assert torch.equal(short_attention(half), out)  # autocast rounds nothing within
    assert (out.double() - correct).norm() < 1e-2 * correct.norm()
    assert (grad.double() - correct_grad).norm() < 2e-2 * correct_grad.norm()


def test_opcheck():
    qkv, upstream = draw(*SHAPE)
    torch.library.opcheck(op.attention_forward, (qkv, 0.2, "auto"))
    torch.library.opcheck(op.attention_backward, (upstream, qkv.detach(), 0.2, "auto"))
    strided = qkv.detach().permute(0, 3, 1, 2, 4).contiguous().permute(0, 2, 3, 1, 4).requires_grad_()
    torch.library.opcheck(op.attention_forward, (strided, 0.2, "auto"))


def test_compiles_to_one_graph_forward_and_backward():
    layer = torch.nn.Linear(64, 192)

    def step(tokens):
        with torch.autocast("cpu", BF16):
            return short_attention(layer(tokens).unflatten(-1, (3, 2, 32))).float().square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        tokens = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(seed))
        results = []
        for function in (compiled, step):
            loss = function(tokens)
            results.append([loss, *torch.autograd.grad(loss, [layer.weight, layer.bias])])
        for a, b in zip(*results, strict=True):  # compiled, bfloat16 is rounded in other places
            assert (a - b).norm() <= 1e-2 * b.norm()


def test_products_are_counted():
    qkv, upstream = draw(*SHAPE)
    with FlopCounterMode(display=False) as counter:
        short_attention(qkv).backward(upstream)
    assert counter.get_total_flops() == (2 + 5) * 2 * 3 * 2 * 7 * 7 * 32


def test_backward_keeps_nothing_but_what_was_given():
    qkv, _ = draw(*SHAPE)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        short_attention(qkv)
    assert [t.data_ptr() for t in kept] == [qkv.data_ptr()]


def test_a_second_derivative_is_refused():
    qkv, upstream = draw(*SHAPE)
    (grad,) = torch.autograd.grad(short_attention(qkv), qkv, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="short_attention has no second derivative"):
        grad.sum().backward()


def test_what_does_not_fit_is_refused_by_name():
    instead = "use torch.nn.functional.scaled_dot_product_attention"
    for qkv, options, kind, words in (
        (torch.zeros(1, 257, 3, 1, 32), {}, ValueError, f"257 tokens, more than 256; {instead}"),
        (torch.zeros(1, 9, 3, 2, 48), {}, ValueError, f"heads of 48 channels, which are neither 32 nor 64; {instead}"),
        (torch.zeros(1, 9, 2, 2, 32), {}, ValueError, r"shape \(1, 9, 2, 2, 32\); pass \[N, L, 3, H, D\]"),
        (torch.zeros(1, 9, 192), {}, ValueError, r"shape \(1, 9, 192\)"),
        (torch.zeros(0, 9, 3, 2, 32), {}, ValueError, "at least one element"),
        (torch.zeros(1, 9, 3, 2, 32).int(), {}, TypeError, "qkv is torch.int32"),
        ([1], {}, TypeError, "qkv is a list"),
        (torch.zeros(1, 9, 3, 2, 32), {"impl": "flash"}, ValueError, "impl is 'flash'"),
        (torch.zeros(1, 9, 3, 2, 32), {"impl": "triton"}, RuntimeError, "attention kernels.*TRITON_INTERPRET=1"),
    ):
        with pytest.raises(kind, match=words):
            short_attention(qkv, **options)
