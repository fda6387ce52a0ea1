"""guidance_loss on the torch path: the reference's numbers, a float64 truth, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from guidance_truth import GOLDEN_CASES, draw, golden_inputs, golden_token_grad, relative, truth
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlg_kernels import guidance_loss

DEIT = [((14, 14), 24, 16, (32, 32)), ((14, 14), 24, 32, (16, 16)), ((14, 14), 24, 8, (8, 8))]
ODD = [((5, 3), 7, 3, (2, 9)), ((1, 1), 5, 2, (4, 1)), ((6, 7), 3, 1, (6, 7)), ((9, 2), 1, 4, (1, 1))]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def losses_and_grads(inputs, upstream=1.0, **options):
    loss = guidance_loss(*inputs[:4], grids=inputs.grids, **options)
    (loss * upstream).backward()
    return loss.detach(), [leaf.grad for leaf in inputs.leaves()]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden_losses_and_gradients_are_the_references(golden, case, dtype):
    inputs, numbers = golden_inputs(golden, case, dtype)
    loss, grads = losses_and_grads(inputs, upstream=-2.5)
    assert loss.dtype == dtype
    assert abs(loss.double().item() / float(numbers["linear_total_f64"]) - 1) < TOLERANCE[dtype]
    pairs = len(inputs.students)
    for index in range(pairs):
        for kind, ours, expected, stored in golden_token_grad(numbers, index, "linear", grads[index] / -2.5):
            limit = max(TOLERANCE[dtype], 1e-7 if stored == torch.float32 else 0) * (5 if kind == "_channel_sum" else 1)
            assert relative(ours, expected) < limit, (index, kind)
        for name, grad in (("gW", grads[pairs + index]), ("gb", grads[2 * pairs + index])):
            expected = torch.as_tensor(numbers[f"p{index}_linear_{name}"])
            limit = max(TOLERANCE[dtype], 1e-7 if expected.dtype == torch.float32 else 0)
            assert relative(grad / -2.5, expected) < limit, (index, name)


def test_sum_channels_is_equation_5(golden):
    inputs, _ = golden_inputs(golden, "odd")
    pairs = json.loads((golden / "guidance_index.json").read_text())["odd"]
    ours = guidance_loss(*inputs[:4], grids=inputs.grids, reduction="sum_channels")
    assert ours.item() == pytest.approx(sum(pairs["eq5_per_pair_mean_over_batch_sum_over_channels"]), rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum_channels"])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("pairs", [DEIT, ODD], ids=["deit", "odd"])
def test_float64_truth(pairs, prefix, reduction):
    inputs = draw(3, pairs, torch.float64, prefix)
    expected, expected_grads = truth(inputs, reduction, upstream=0.3)
    loss, grads = losses_and_grads(inputs, 0.3, reduction=reduction)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for ours, correct in zip(grads, expected_grads, strict=True):
        assert relative(ours, correct) < 1e-12


axes = st.integers(1, 12)


@settings(max_examples=30)
@given(axes, axes, axes, axes, st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2))
def test_any_shape_agrees_with_the_truth(height, width, rows, columns, channels, dim, batch, prefix):
    inputs = draw(batch, [((height, width), channels, dim, (rows, columns))], torch.float64, prefix)
    expected, expected_grads = truth(inputs)
    loss, grads = losses_and_grads(inputs)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    for ours, correct in zip(grads, expected_grads, strict=True):
        assert (ours - correct).norm() <= 1e-10 * (correct.norm() + 1)


def test_half_precision_inputs_are_summed_in_float32_and_get_their_own_gradients():
    for dtype in (torch.float16, torch.bfloat16):
        inputs = draw(2, DEIT, dtype)
        expected, expected_grads = truth(inputs)
        loss, grads = losses_and_grads(inputs)
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=1e-5)
        for ours, correct in zip(grads[3:], expected_grads[3:], strict=True):
            assert ours.dtype == dtype and relative(ours, correct) < 2 * torch.finfo(dtype).eps
        if dtype == torch.bfloat16:
            assert max(relative(a, b) for a, b in zip(grads[:3], expected_grads[:3], strict=True)) < 0.01


def test_float16_token_gradients_survive_because_the_upstream_gradient_is_applied_in_float32():
    inputs = draw(64, [((4, 4), 8, 16, (32, 32))], torch.float16)
    scale = 2.0**16  # a gradient scaler's start: without it these gradients are below float16's range
    _, expected = truth(inputs, upstream=scale)
    _, grads = losses_and_grads(inputs, upstream=scale)
    assert relative(grads[0], expected[0]) < 1e-3


@pytest.mark.parametrize(
    "grids, mean", [(((1, 1), (32, 32)), 64.0), (((1, 1), (40, 33)), 50.0), (((7, 7), (224, 224)), 70.0)]
)
def test_float16_residuals_of_large_cells_do_not_overflow(grids, mean):
    inputs = draw(2, [(grids[0], 5, 3, grids[1])], torch.float16)
    inputs.teachers[0].add_(mean)
    _, expected = truth(inputs, upstream=1024.0)  # at most 48,000, a float16
    _, grads = losses_and_grads(inputs, upstream=1024.0)
    for ours, correct in zip(grads, expected, strict=True):
        assert relative(ours, correct) < 1e-3


def test_mixed_dtypes():
    inputs = draw(2, DEIT[:1], torch.float32, teacher_dtype=torch.bfloat16)
    inputs.weights[0] = inputs.weights[0].detach().double().requires_grad_()
    expected, expected_grads = truth(inputs)
    loss, grads = losses_and_grads(inputs)
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(expected, rel=1e-12)
    for leaf, ours, correct in zip(inputs.leaves(), grads, expected_grads, strict=True):
        assert ours.dtype == leaf.dtype and relative(ours, correct) < 1e-6


STRIDED = {
    "slice without the class token": lambda t: t[:, 1:],
    "every second sample": lambda t: t.repeat_interleave(2, 0)[::2][:, 1:],
    "transposed storage": lambda t: t[:, 1:].transpose(1, 2).contiguous().transpose(1, 2),
    "broadcast batch": lambda t: t[:1, 1:].expand(t.shape[0], -1, -1),
    "contiguous map": lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (4, 6)).contiguous(),
    "channels_last map": lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (4, 6)),
    "strided map": lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (4, 6)).repeat(1, 1, 2, 1)[:, :, ::2],
}


@pytest.mark.parametrize("view", STRIDED)
def test_students_are_read_through_any_strides(view):
    base = draw(2, [((4, 6), 5, 3, (8, 7))], torch.float64, prefix=1)
    student = STRIDED[view](base.students[0].detach()).requires_grad_()
    inputs = base._replace(students=[student])
    expected, expected_grads = truth(inputs)
    loss, grads = losses_and_grads(inputs)
    assert loss.item() == pytest.approx(expected, rel=1e-12) and relative(grads[0], expected_grads[0]) < 1e-12


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_in_half_precision_get_gradients_in_their_dtype_and_layout(layout):
    base = draw(2, [((4, 6), 5, 3, (8, 7))], torch.bfloat16)
    student = base.students[0].detach().mT.unflatten(2, (4, 6)).contiguous(memory_format=layout).requires_grad_()
    inputs = base._replace(students=[student])
    _, expected = truth(inputs)
    _, grads = losses_and_grads(inputs)
    assert grads[0].dtype == torch.bfloat16 and grads[0].is_contiguous(memory_format=layout)
    assert relative(grads[0], expected[0]) < 0.01


@pytest.mark.parametrize(
    "grids", [((7, 7), (8, 8)), ((1, 2), (2, 3)), ((8, 8), (8, 9)), ((8, 8), (7, 7)), ((14, 14), (7, 7))]
)
def test_both_ways_to_resize_agree_with_the_truth_in_float32(grids):
    inputs = draw(3, [(grids[0], 6, 5, grids[1])])  # one small matrix for both axes, or one axis after the other
    expected, expected_grads = truth(inputs)
    loss, grads = losses_and_grads(inputs)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert max(relative(*pair) for pair in zip(grads, expected_grads, strict=True)) < 1e-6


def test_strided_teachers():
    inputs = draw(2, [((4, 6), 5, 3, (8, 7))], torch.float64)
    strided = [inputs.teachers[0].to(memory_format=torch.channels_last)]
    expected, _ = truth(inputs)
    assert guidance_loss(inputs.students, strided, *inputs[2:4], grids=inputs.grids).item() == pytest.approx(expected)


def test_gradcheck():
    inputs = draw(2, [((3, 2), 3, 2, (4, 3)), ((2, 2), 2, 2, (1, 2))], torch.float64, prefix=1)

    def function(*leaves):
        return guidance_loss(leaves[:2], inputs.teachers, leaves[2:4], leaves[4:], grids=inputs.grids)

    assert torch.autograd.gradcheck(function, inputs.leaves())


def test_convolution_weights_and_missing_biases():
    inputs = draw(2, ODD[:2], torch.float64)
    weights = [weight.detach()[..., None, None].requires_grad_() for weight in inputs.weights]
    inputs = inputs._replace(weights=weights, biases=[None, inputs.biases[1]])
    expected, expected_grads = truth(inputs)
    loss, grads = losses_and_grads(inputs)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for ours, correct in zip(grads, expected_grads, strict=True):
        assert ours.shape == correct.shape and relative(ours, correct) < 1e-12


def test_single_tensors_and_no_grids():
    inputs = draw(2, [((4, 4), 5, 3, (8, 8))], torch.float64)
    student, teacher, weight, bias = (group[0] for group in inputs[:4])
    expected, _ = truth(inputs)
    assert guidance_loss(student, teacher, weight, bias).item() == pytest.approx(expected)
    assert guidance_loss(student, teacher, weight, bias, grids=(4, 4)).item() == pytest.approx(expected)


def test_only_what_requires_grad_gets_a_gradient():
    inputs = draw(2, DEIT[:2])
    for frozen in ([0, 1], [2, 3, 4, 5], [1, 3, 4]):
        leaves = [leaf.detach().requires_grad_(i not in frozen) for i, leaf in enumerate(inputs.leaves())]
        loss = guidance_loss(leaves[:2], inputs.teachers, leaves[2:4], leaves[4:], grids=inputs.grids)
        loss.backward()
        assert [leaf.grad is None for leaf in leaves] == [i in frozen for i in range(6)]
    with torch.no_grad():
        assert not guidance_loss(*inputs[:4], grids=inputs.grids).requires_grad


def test_a_perfect_match_is_zero_and_never_below():
    weight, bias = torch.eye(3).requires_grad_(), torch.zeros(3)
    student = torch.full((2, 25, 3), 0.7, requires_grad=True)
    for size in (5, 7, 3):
        loss = guidance_loss(student, torch.full((2, 3, size, size), 0.7), weight, bias)
        assert 0 <= loss.item() < 1e-6


def test_nan_is_not_hidden():
    inputs = draw(2, [((5, 5), 3, 2, (7, 7))])
    inputs.teachers[0][0, 0, 0, 0] = float("nan")
    assert guidance_loss(*inputs[:4], grids=inputs.grids).isnan()


def test_backward_twice_gives_the_same():
    inputs = draw(2, DEIT[:1], torch.float64)
    loss = guidance_loss(*inputs[:4], grids=inputs.grids)
    first = torch.autograd.grad(loss, inputs.leaves(), retain_graph=True)
    second = torch.autograd.grad(3 * loss, inputs.leaves(), retain_graph=True)
    for once, thrice in zip(first, second, strict=True):
        torch.testing.assert_close(3 * once, thrice)


def test_the_same_input_gives_the_same_bits():
    inputs = draw(8, DEIT, prefix=1)
    runs = []
    for _ in range(5):
        loss = guidance_loss(*inputs[:4], grids=inputs.grids)
        runs.append([loss.detach(), *torch.autograd.grad(loss, inputs.leaves())])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("frozen", ["nothing", "projection", "student"])
def test_second_derivatives_are_refused_whatever_is_frozen(frozen):
    inputs = draw(2, DEIT[:1], torch.float64)
    for leaf in {"nothing": [], "projection": [*inputs.weights, *inputs.biases], "student": inputs.students}[frozen]:
        leaf.requires_grad_(False)
    learning = [leaf for leaf in inputs.leaves() if leaf.requires_grad]
    loss = guidance_loss(*inputs[:4], grids=inputs.grids)
    grads = torch.autograd.grad(loss, learning, create_graph=True)
    penalty = sum(grad.square().sum() for grad in grads)  # with gradients as constants, this would train wrongly
    with pytest.raises(RuntimeError, match="no second derivative; detach"):
        (loss + penalty).backward()


def bad(**changes):
    """Arguments for a call that is wrong in exactly what is named."""
    student, teacher = torch.randn(2, 17, 4), torch.randn(2, 3, 8, 8)
    call = {"students": student, "teachers": teacher, "weights": torch.randn(3, 4), "biases": torch.randn(3)}
    return {**call, "grids": [(4, 4)], **changes}


REFUSED = {
    "empty batch": (bad(students=torch.randn(0, 17, 4)), ValueError, r"students\[0\] is empty.*\(0, 17, 4\)"),
    "learning teacher": (bad(teachers=torch.randn(2, 3, 8, 8, requires_grad=True)), ValueError, r"\.detach\(\)"),
    "no square grid": (bad(grids=None), ValueError, r"17 tokens.*grids.*\(4, 4\) skips 1"),
    "too few tokens": (bad(grids=[(4, 5)]), ValueError, r"20 tokens.*has 17"),
    "zero grid": (bad(grids=[(0, 5)]), ValueError, r"\(0, 5\).*at least 1"),
    "map with another grid": (bad(students=torch.randn(2, 4, 5, 5)), ValueError, r"\(4, 4\).*\(2, 4, 5, 5\)"),
    "weight shape": (bad(weights=torch.randn(4, 3)), ValueError, r"weights\[0\].*\(4, 3\).*\(3, 4\)"),
    "kernel size": (bad(weights=torch.randn(3, 4, 3, 3)), ValueError, r"\(3, 4, 3, 3\).*\(3, 4, 1, 1\)"),
    "bias shape": (bad(biases=torch.randn(4)), ValueError, r"biases\[0\].*\(4,\).*\(3,\)"),
    "batch sizes": (bad(teachers=torch.randn(3, 3, 8, 8)), ValueError, r"2 samples.*3"),
    "device": (bad(teachers=torch.randn(2, 3, 8, 8, device="meta")), ValueError, r"teachers\[0\] is on meta.*cpu"),
    "integer tokens": (bad(students=torch.ones(2, 17, 4, dtype=torch.int64)), TypeError, r"students\[0\].*int64"),
    "complex weight": (bad(weights=torch.ones(3, 4, dtype=torch.complex64)), TypeError, r"complex64.*float32"),
    "no tensor": (bad(students=[None]), TypeError, r"students\[0\] is a NoneType"),
    "no list": (bad(teachers=3), TypeError, r"teachers is a int.*sequence"),
    "maps with channels last": (
        bad(students=torch.randn(2, 5, 6, 4), grids=None),
        ValueError,
        r"\[N, H, W, C\].*permute\(0, 3, 1, 2\)",
    ),
    "a number as grids": (bad(grids=4), TypeError, r"grids is 4; give one \(H, W\) per student"),
    "half a grid": (bad(grids=[(4,)]), ValueError, r"grids\[0\] is \(4,\); give \(H, W\)"),
    "broken grid": (bad(grids=[(4.7, 4.2)]), ValueError, r"grids\[0\] is \(4\.7, 4\.2\).*whole"),
    "just below a square": (
        bad(students=torch.randn(2, 60, 4), grids=None),
        ValueError,
        r"60 tokens.*\(7, 7\) skips 11",
    ),
    "meta weights": (bad(weights=torch.randn(3, 4, device="meta")), ValueError, r"weights\[0\] is on meta.*cpu"),
    "flat teacher": (bad(teachers=torch.randn(2, 3, 8)), ValueError, r"teachers\[0\].*\(2, 3, 8\)"),
    "flat student": (bad(students=torch.randn(2, 17)), ValueError, r"students\[0\].*\(2, 17\)"),
    "count": (bad(biases=[None, None]), ValueError, r"1 students, 1 teachers, 1 weights, 2 biases"),
    "grid count": (bad(grids=[(4, 4), (2, 2), (1, 1)]), ValueError, r"3 grids for 1 students"),
    "no pairs": ({"students": [], "teachers": [], "weights": [], "biases": []}, ValueError, r"no pairs"),
    "reduction": (bad(reduction="sum"), ValueError, r"'sum'.*'mean', 'sum_channels'"),
    "impl": (bad(impl="cuda"), ValueError, r"'cuda'.*'auto', 'triton', 'torch'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_value_and_the_fix(case):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        guidance_loss(**call)


def test_any_iterable_of_tensors_and_one_grid_for_all_students():
    inputs = draw(2, [((4, 4), 5, 3, (8, 8)), ((4, 4), 6, 2, (4, 4))], prefix=1)
    expected, _ = truth(inputs)
    weights = torch.nn.ParameterList(inputs.weights)
    maps = dict(enumerate(inputs.teachers))
    loss = guidance_loss(tuple(inputs.students), maps.values(), weights, iter(inputs.biases), grids=(4, 4))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_meta_tensors_give_a_shape():
    with torch.device("meta"):
        loss = guidance_loss(torch.randn(2, 16, 4), torch.randn(2, 3, 8, 8), torch.randn(3, 4), torch.randn(3))
    assert loss.is_meta and loss.shape == () and loss.dtype == torch.float32
