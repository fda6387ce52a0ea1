"""add_mlp in plain torch and inside the rest of PyTorch: float64, dtypes, autocast, compile, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mlp_truth import check, draw, ours, truth
from torch.utils.flop_counter import FlopCounterMode

from fastlg_kernels import add_mlp
from fastlg_kernels.mlp import op, tiles

SHAPE, HIDDEN = (3, 5, 24), 40
BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(("dtype", "limit"), [(FP64, 1e-13), (FP32, 3e-6), (BF16, 2e-2)])
def test_every_dtype_agrees_with_float64(dtype, limit):
    for keeps, joins in ((True, True), (False, True), (True, False), (False, False)):
        check(draw(SHAPE, HIDDEN, dtype, keeps=keeps, joins=joins), limit)
    check(draw((2, 3, 2, 7), 9, dtype), limit)


def test_under_autocast_products_are_half_precision_and_gradients_of_the_weights_are_not_rounded():
    inputs = draw(SHAPE, HIDDEN, FP32)
    with torch.autocast("cpu", BF16):
        found = ours(inputs)
    for a, b in zip(found, truth(inputs), strict=True):
        assert a.dtype == FP32 and (a.double() - b).norm() <= 2e-2 * b.norm()
    gains = found[3:5]  # sums of the norm's gradients
    assert all(not torch.equal(grad, grad.to(BF16).float()) for grad in gains)
    assert [value.dtype for value in ours(draw(SHAPE, HIDDEN, BF16, stream=FP32))][:2] == [FP32, FP32]
    explicit = ours(inputs, dtype=BF16)
    assert all(torch.equal(a, b) for a, b in zip(explicit, found, strict=True))


def test_opcheck():
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    for keeps, joins in ((True, True), (False, True), (True, False)):
        inputs = draw(SHAPE, HIDDEN, keeps=keeps, joins=joins)
        arguments = (*inputs[:4], *inputs.parameters, 1e-6, FP32)
        torch.library.opcheck(op.add_mlp_forward, (*arguments, "auto"), test_utils=utilities)
        kept = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in (inputs.upstream, *arguments))
        for with_params in (True, False):
            torch.library.opcheck(op.add_mlp_backward, (*kept, with_params, "auto"), test_utils=utilities)
    torch.library.opcheck(op.add_mlp_forward, (*arguments, "auto"), test_utils="test_aot_dispatch_dynamic")


def test_compiles_to_one_graph_forward_and_backward():
    def step(x, branch, gain, shift, fc1, bias1, fc2, bias2, keep):
        with torch.autocast("cpu", BF16):
            out = add_mlp(x, branch, (gain, shift), (fc1, bias1), (fc2, bias2), keep=keep)
        return out.square().sum()

    compiled, inputs = torch.compile(step, fullgraph=True, backend="aot_eager"), draw(SHAPE, HIDDEN)
    results = []
    for function in (compiled, step):
        loss = function(*inputs.leaves(), inputs.keep)
        results.append([loss, *torch.autograd.grad(loss, inputs.leaves())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_backward_keeps_what_it_was_given_and_nothing_else():
    inputs, kept = draw(SHAPE, HIDDEN), {}
    pairs = [inputs.parameters[k : k + 2] for k in (0, 2, 4)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        add_mlp(inputs.x, inputs.branch, *pairs, keep=inputs.keep)
    assert set(kept) <= {t.data_ptr() for t in (*inputs[:4], *inputs.parameters)}


def test_flops_are_two_products_forward_and_seven_backward():
    inputs = draw(SHAPE, HIDDEN)
    with FlopCounterMode(display=False) as counted:
        ours(inputs)
    assert counted.get_total_flops() == 9 * 2 * 15 * 24 * HIDDEN


def test_a_second_derivative_is_refused():
    inputs = draw(SHAPE, HIDDEN, FP64)
    pairs = [inputs.parameters[k : k + 2] for k in (0, 2, 4)]
    grads = torch.autograd.grad(add_mlp(inputs.x, None, *pairs).sum(), inputs.x, create_graph=True)
    with pytest.raises(RuntimeError, match="add_mlp has no second derivative"):
        grads[0].sum().backward()


def test_channels_are_two_powers_of_two_or_are_refused():
    assert {c: tiles.parts(c) for c in (192, 128, 64, 96, 48, 32, 80, 16, 100, 200)} == {
        192: (128, 64), 128: (64, 64), 64: (32, 32), 96: (64, 32), 48: (32, 16), 32: (16, 16), 80: (64, 16),
        16: None, 100: None, 200: None,
    }  # fmt: skip
    for sizes, words in (((384, 1536), "384 channels are more than 192"), ((100, 64), "100 channels are no sum"),
                         ((64, 100), "100 hidden channels are no multiple of 32"), ((192, 768), "")):  # fmt: skip
        assert tiles.obstacle(*sizes).startswith(words) and bool(tiles.obstacle(*sizes)) == bool(words)


def test_what_does_not_fit_is_refused_by_name():
    inputs = draw(SHAPE, HIDDEN)
    x, branch = inputs.x.detach(), inputs.branch.detach()
    norm, fc1, fc2 = ([t.detach() for t in inputs.parameters[k : k + 2]] for k in (0, 2, 4))
    for arguments, options, kind, words in (
        ((x, branch[:2], norm, fc1, fc2), {}, ValueError, r"branch has shape \(2, 5, 24\) beside x"),
        ((x, branch, norm, fc1[::-1], fc2), {}, ValueError, r"fc1's weight has shape \(40,\); pass \[hidden, C\]"),
        ((x, branch, norm, fc1, fc1), {}, ValueError, r"fc2's weight has shape \(40, 24\).*must be \(24, 40\)"),
        ((x, branch, norm, fc1, fc2), {"keep_mlp": torch.ones(5)}, ValueError, r"keep_mlp has shape \(5,\)"),
        ((x[:0], None, norm, fc1, fc2), {}, ValueError, "at least one element"),
        ((x.int(), None, norm, fc1, fc2), {}, TypeError, "x is torch.int32"),
        ((x, None, norm[0], fc1, fc2), {}, TypeError, "norm is a Tensor; pass its weight and its bias"),
        ((x, None, norm, (fc1[0], None), fc2), {}, TypeError, "fc1's bias is a NoneType"),
        ((x, None, norm, fc1, fc2), {"dtype": torch.int8}, TypeError, "dtype is torch.int8"),
        ((x, None, norm, fc1, fc2), {"impl": "cuda"}, ValueError, "impl is 'cuda'"),
        ((x, None, norm, fc1, fc2), {"impl": "triton"}, RuntimeError, "MLP kernels: "),
    ):
        with pytest.raises(kind, match=words):
            add_mlp(*arguments, **options)


def test_it_is_what_torch_makes_of_its_parts():
    inputs = draw(SHAPE, HIDDEN, FP64, keeps=False)
    gain, shift, *layers = (leaf.detach() for leaf in inputs.parameters)
    x = inputs.x.detach()
    mlp = F.linear(F.gelu(F.linear(F.layer_norm(x, (24,), gain, shift, 1e-6), *layers[:2])), *layers[2:])
    torch.testing.assert_close(add_mlp(x, None, (gain, shift), layers[:2], layers[2:]), x + mlp)
