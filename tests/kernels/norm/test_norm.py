"""add_layer_norm in plain torch and inside the rest of PyTorch: float64, dtypes, autocast, compile, refusals."""

from __future__ import annotations

import pytest
import torch
from norm_truth import check, draw, ours, truth

from fastlg_kernels import add_layer_norm
from fastlg_kernels.norm import op

SHAPE = (3, 5, 24)
BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(("dtype", "limit"), [(FP64, 1e-13), (FP32, 2e-6), (BF16, 1e-2)])
def test_every_dtype_agrees_with_float64(dtype, limit):
    for keeps, with_total in ((True, True), (False, True), (True, False)):
        check(draw(SHAPE, dtype, keeps), limit, with_total)
    check(draw((2, 3, 2, 7), dtype), limit)


def test_the_stream_keeps_its_dtype_and_the_norm_takes_autocasts():
    inputs = draw(SHAPE, FP32, branch_dtype=BF16)
    (correct_total, correct), correct_grads = truth(inputs)
    for enabled in (False, True):
        with torch.autocast("cpu", BF16, enabled=enabled):
            (total, normed), grads = ours(inputs)
        assert (total.dtype, normed.dtype) == (FP32, BF16 if enabled else FP32)
        torch.testing.assert_close(total.double(), correct_total, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            normed.double(), correct, rtol=1e-2 if enabled else 1e-5, atol=1e-3 if enabled else 1e-5
        )
        assert [grad.dtype for grad in grads] == [FP32, BF16, FP32, FP32]
        for grad, correct_grad in zip(grads, correct_grads, strict=True):
            assert (grad.double() - correct_grad).norm() <= 1e-2 * correct_grad.norm()
    assert add_layer_norm(*inputs.leaves(), dtype=torch.float16)[1].dtype == torch.float16


def test_only_one_of_the_results_may_be_used():
    inputs = draw(SHAPE, FP64)
    total, normed = add_layer_norm(*inputs.leaves(), keep=inputs.keep)
    grad_x, grad_branch = torch.autograd.grad(total.sum(), inputs.leaves()[:2], retain_graph=True)
    assert grad_x.eq(1).all() and torch.equal(grad_branch, inputs.keep.double().view(3, 1, 1).expand(SHAPE))
    assert total.requires_grad and normed.requires_grad


def test_opcheck():
    for keeps in (True, False):
        inputs = draw(SHAPE, branch_dtype=BF16 if keeps else None, keeps=keeps)
        arguments = (*inputs.leaves(), inputs.keep, 1e-6, FP32, "auto")
        torch.library.opcheck(op.add_norm_forward, arguments)
        with torch.no_grad():
            total, normed, stats = op.add_norm_forward(*arguments)
        for with_params in (True, False):
            kept = (normed, normed, total, stats, inputs.weight.detach(), inputs.keep, inputs.branch.dtype, with_params)
            torch.library.opcheck(op.add_norm_backward, (*kept, "auto"))


def test_compiles_to_one_graph_forward_and_backward():
    def step(x, branch, weight, bias, keep):
        with torch.autocast("cpu", BF16):
            total, normed = add_layer_norm(x, branch, weight, bias, keep=keep)
        return (total * 0.5).sum() + normed.float().square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        inputs = draw(SHAPE, seed=seed)
        results = []
        for function in (compiled, step):
            loss = function(*inputs.leaves(), inputs.keep)
            results.append([loss, *torch.autograd.grad(loss, inputs.leaves())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_backward_keeps_the_stream_and_eight_bytes_per_token():
    inputs = draw(SHAPE, branch_dtype=BF16)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        total, _ = add_layer_norm(*inputs.leaves(), keep=inputs.keep)
    given = {t.data_ptr() for t in inputs[:5]}
    sizes = sorted(t.nbytes for place, t in kept.items() if place not in given)
    assert sizes == [8 * 3 * 5, total.nbytes]


def test_a_second_derivative_is_refused():
    inputs = draw(SHAPE, FP64)
    grads = torch.autograd.grad(add_layer_norm(*inputs.leaves())[1].sum(), inputs.leaves(), create_graph=True)
    with pytest.raises(RuntimeError, match="add_layer_norm has no second derivative"):
        grads[0].sum().backward()


def test_what_does_not_fit_is_refused_by_name():
    x, branch, weight, bias = (leaf.detach() for leaf in draw(SHAPE).leaves())
    for arguments, options, kind, words in (
        ((x, branch[:2], weight, bias), {}, ValueError, r"branch has shape \(2, 5, 24\) beside x"),
        ((x, branch, weight[1:], bias), {}, ValueError, r"weight has shape \(23,\)"),
        ((x, branch, weight, bias), {"keep": torch.ones(5)}, ValueError, r"keep has shape \(5,\).*must be \(3,\)"),
        ((x[:0], branch[:0], weight, bias), {}, ValueError, "at least one element"),
        ((x.int(), branch, weight, bias), {}, TypeError, "x is torch.int32"),
        ((x, None, weight, bias), {}, TypeError, "branch is a NoneType"),
        ((x, branch, weight, bias), {"dtype": torch.int8}, TypeError, "dtype is torch.int8"),
        ((x, branch, weight, bias.to("meta")), {}, ValueError, "bias is on meta and x on cpu"),
        ((x, branch, weight, bias), {"impl": "cuda"}, ValueError, "impl is 'cuda'"),
        ((x, branch, weight, bias), {"impl": "triton"}, RuntimeError, "layer norm kernels.*TRITON_INTERPRET=1"),
    ):
        with pytest.raises(kind, match=words):
            add_layer_norm(*arguments, **options)
    assert "5000 channels are more than 4096" in _obstacle_of_wide_rows()


def _obstacle_of_wide_rows() -> str:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError) as raised:
        patch.setattr("fastlg_kernels.devices.triton_obstacle", lambda *_: "")
        wide = torch.zeros(2, 5000)
        add_layer_norm(wide, wide, wide[0], wide[0], impl="triton")
    return str(raised.value)
