"""Every guidance kernel and branch under Triton's interpreter, in float32, scratch filled with NaN.

Run by test_guidance_triton.py in a process of its own: TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from guidance_truth import GOLDEN_CASES, draw, golden_inputs, golden_token_grad, relative, truth
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlg_kernels import guidance_loss
from fastlg_kernels.devices import triton_obstacle
from fastlg_kernels.guidance import launch as guidance_triton
from fastlg_kernels.guidance import op as guidance_op
from fastlg_kernels.guidance import tiles as guidance_configs
from fastlg_kernels.guidance.triton_parts import rounded

FLAT = [((14, 14), 24, 10, (8, 8)), ((5, 4), 70, 20, (5, 4)), ((9, 11), 3, 1, (9, 2)), ((33, 2), 130, 70, (1, 1))]
WINDOWS = [
    ((14, 14), 24, 10, (32, 32)),
    ((14, 14), 70, 20, (16, 16)),
    ((1, 1), 1, 1, (40, 33)),
    ((5, 16), 9, 3, (33, 9)),
]
PACKED = [((7, 7), 24, 70, (8, 8)), ((7, 4), 9, 17, (8, 3)), ((1, 1), 3, 2, (2, 8))]
TILED = [((27, 19), 40, 3, (32, 32)), ((19, 33), 5, 2, (40, 15)), ((33, 19), 5, 2, (15, 40)), ((20, 3), 4, 2, (21, 3))]
SHAPES = {"flat": FLAT, "windows": WINDOWS, "packed": PACKED, "tiled": TILED}


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["safe", "fused"])
def family(request, monkeypatch):
    """The tuned tables: what a GPU would run on half-precision tokens, run here on float32."""
    if request.param != "safe":
        use_tuned_tables(monkeypatch)
    return request.param


def use_tuned_tables(monkeypatch):
    def choose(kernel, _, channels, dim, __, plain=False, **___):
        return guidance_configs.choose(kernel, "sm90", channels, dim, 2, plain=plain, side=1)

    monkeypatch.setattr(guidance_triton, "choose", choose)
    monkeypatch.setattr(guidance_triton, "is_plain", lambda *_: True)


def check(inputs, limit=1e-6, **options):
    reduction = options.get("reduction", "mean")
    expected, expected_grads = truth(inputs, reduction, upstream=-0.3)
    loss = guidance_loss(*inputs[:4], grids=inputs.grids, impl="triton", **options)
    assert loss.item() == pytest.approx(expected, rel=limit)
    grads = torch.autograd.grad(-0.3 * loss, inputs.leaves())
    for ours, correct in zip(grads, expected_grads, strict=True):
        assert (ours - correct).norm() <= limit * (correct.norm() + 1e-3)
    return loss.detach(), grads


@pytest.mark.parametrize("pairs", SHAPES)
def test_every_branch_agrees_with_float64(pairs, family):
    for batch, pair in zip((1, 5, 2, 2), SHAPES[pairs], strict=False):
        check(draw(batch, [pair], prefix=1))


@pytest.mark.parametrize("pairs", SHAPES)
def test_64_bit_offsets_within_a_tile(pairs, monkeypatch, overflow_is_an_error):
    monkeypatch.setattr(guidance_triton, "needs_64_bit", lambda *_: True)
    check(draw(2, SHAPES[pairs][1:2], prefix=1))


def test_shapes_take_the_kernels_they_are_meant_for():
    def plan(batch, channels, grid, teacher):
        student = torch.empty(batch, grid[0] * grid[1], channels, dtype=torch.bfloat16)
        weight = torch.empty(teacher[1], channels)
        return guidance_triton.plan_pair((student, torch.empty(teacher), weight, None, grid), "sm90")

    assert plan(9, 192, (14, 14), (9, 64, 8, 8)).kernel is guidance_triton.flat_kernel
    whole = plan(9, 192, (14, 14), (9, 16, 32, 32))
    assert whole.kernel is guidance_triton.window_kernel and whole.tiles == 9 and whole.constants["HALO_Y"] == 0
    assert plan(9, 512, (7, 7), (9, 64, 8, 8)).tiles == 3  # four samples to a window
    tiled = plan(9, 64, (27, 40), (9, 16, 32, 15))
    assert tiled.constants["HALO_Y"] == 1 and tiled.constants["HALO_X"] == 0 and tiled.tiles == 9 * 2 * 3


@pytest.mark.parametrize("case", [case for case in GOLDEN_CASES if case != "pvt_ti"])  # too slow here
def test_golden(golden, case):
    inputs, numbers = golden_inputs(golden, case, torch.float32)
    loss = guidance_loss(*inputs[:4], grids=inputs.grids, impl="triton")
    assert loss.item() == pytest.approx(float(numbers["linear_total_f64"]), rel=1e-6)
    grads = torch.autograd.grad(loss, inputs.leaves())
    pairs = len(inputs.students)
    for index in range(pairs):
        for kind, ours, expected, _ in golden_token_grad(numbers, index, "linear", grads[index]):
            assert relative(ours, expected) < 2e-6, (index, kind)
        for name, grad in (("gW", grads[pairs + index]), ("gb", grads[2 * pairs + index])):
            assert relative(grad, torch.as_tensor(numbers[f"p{index}_linear_{name}"])) < 1e-6, (index, name)


axes = st.integers(1, 24)


@settings(max_examples=8)
@given(axes, axes, axes, axes, st.integers(1, 70), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2), st.data())
def test_any_shape_agrees_with_float64(height, width, rows, columns, channels, dim, batch, prefix, data):
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans(), label="fused"):
            use_tuned_tables(patch)
        check(draw(batch, [((height, width), channels, dim, (rows, columns))], prefix=prefix), limit=2e-6)


STRIDED = {
    "contiguous map": lambda t: t.mT.unflatten(2, (5, 6)).contiguous(),
    "channels_last map": lambda t: t.mT.unflatten(2, (5, 6)),
    "strided map": lambda t: t.mT.unflatten(2, (5, 6)).repeat(1, 1, 2, 3)[:, :, ::2, 1:7],
    "transposed tokens": lambda t: t.mT.contiguous().mT,
    "every second sample and channel": lambda t: t.repeat_interleave(2, 0).repeat_interleave(2, 2)[::2, :, ::2],
    "broadcast batch": lambda t: t[:1].expand(t.shape[0], -1, -1),
}


@pytest.mark.parametrize("teacher", ["contiguous", "channels_last"])
@pytest.mark.parametrize("view", STRIDED)
def test_any_strides(view, teacher, family):
    for size in ((3, 3), (8, 7)):
        inputs = draw(3, [((5, 6), 5, 3, size)])
        inputs.students[0] = STRIDED[view](inputs.students[0].detach()).requires_grad_()
        if teacher == "channels_last":
            inputs.teachers[0] = inputs.teachers[0].to(memory_format=torch.channels_last)
        check(inputs)


LAYOUTS = {  # of tokens [2, 25, 6] or maps [2, 6, H, W]: which of their axes lies beyond 32 bits
    "sample": ("student", lambda far: (far, 6, 1)),
    "channel": ("student", lambda far: (25, 1, far)),
    "teacher sample": ("teacher", lambda far, h, w: (far, h * w, w, 1)),
    "teacher channel": ("teacher", lambda far, h, w: (h * w, far, w, 1)),
    "teacher row": ("teacher", lambda far, h, w: (6 * w, w, far, 1)),
}


@pytest.mark.parametrize("axis", LAYOUTS)
@pytest.mark.parametrize("size", [(3, 3), (8, 8)], ids=["flat", "window"])
def test_offsets_beyond_32_bits(size, axis, family, overflow_is_an_error):
    inputs = draw(2, [((5, 5), 6, 6, size)])
    which, strides = LAYOUTS[axis]
    values = inputs.students[0].detach() if which == "student" else inputs.teachers[0]
    steps = dict(zip(LAYOUTS, (1, 5, 1, 5, size[0] - 1), strict=True))[axis]
    far = 2**31 // steps + 64  # the last index times this passes 2^31
    try:
        storage = torch.empty(0).set_(torch.UntypedStorage(4 * (steps * far + 4096)))  # address space, hardly touched
    except RuntimeError:
        pytest.skip("no 8 GiB of address space")
    strided = storage.as_strided(values.shape, strides(far) if which == "student" else strides(far, *size))
    strided.copy_(values)
    if which == "student":
        check(inputs._replace(students=[strided.requires_grad_()]))
    else:
        check(inputs._replace(teachers=[strided]))


def test_several_pairs_mixed_kernels_both_reductions(family):
    pairs = [FLAT[0], WINDOWS[0], PACKED[0], TILED[3]]
    for reduction in ("mean", "sum_channels"):
        check(draw(2, pairs, prefix=2), reduction=reduction)


@pytest.mark.parametrize("rows", [1, 2])
def test_gradients_summed_by_fewer_programs_than_the_loss(rows, family, monkeypatch):
    inputs = draw(5, [FLAT[0], WINDOWS[0], PACKED[0]])
    width = sum(weight.numel() + bias.numel() for weight, bias in zip(inputs.weights, inputs.biases, strict=True))
    monkeypatch.setattr(guidance_triton, "PARTIAL_BYTES", 4 * width * rows)
    check(inputs)


def test_frozen_parts_are_left_out_and_get_no_gradient(family):
    inputs = draw(2, [FLAT[0], WINDOWS[1]])
    expected, expected_grads = truth(inputs)
    for frozen in ([0, 1], [2, 3, 4, 5], list(range(6))):
        leaves = [leaf.detach().requires_grad_(i not in frozen) for i, leaf in enumerate(inputs.leaves())]
        loss = guidance_loss(leaves[:2], inputs.teachers, leaves[2:4], leaves[4:], grids=inputs.grids, impl="triton")
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        if loss.requires_grad:
            loss.backward()
        for index, (leaf, correct) in enumerate(zip(leaves, expected_grads, strict=True)):
            assert leaf.grad is None if index in frozen else relative(leaf.grad, correct) < 1e-6


def test_the_same_input_gives_the_same_bits(family):
    inputs = draw(5, [FLAT[1], WINDOWS[3]], prefix=1)
    first, second = (check(inputs) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_residuals_are_stored_as_torchs_own_path_stores_them(family):
    inputs = draw(3, [FLAT[0], *WINDOWS[:3], PACKED[0], PACKED[2], *TILED], prefix=1)
    flat = [size for grid in inputs.grids for size in grid]
    ours, theirs = (
        guidance_op.guidance_forward(*inputs[:4], flat, False, True, False, impl, False)[1]
        for impl in ("triton", "torch")
    )
    assert all(relative(a, b) < 1e-6 for a, b in zip(ours, theirs, strict=True))


def test_opcheck():
    inputs = draw(2, [FLAT[1], PACKED[1]], prefix=1)
    flat = [size for grid in inputs.grids for size in grid]
    arguments = (*inputs[:4], flat, False, True, True, "triton", False)
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(guidance_op.guidance_forward, arguments, test_utils=utilities)
    with torch.no_grad():
        _, residuals, param_grads = guidance_op.guidance_forward(*arguments)
    layouts = [guidance_op.CHANNELS_LAST, *FLAT[1][0], guidance_op.TOKENS, 2 + 7 * 4, 0]
    weights = [weight.detach() for weight in inputs.weights]
    backward = (torch.tensor(-0.5), residuals, weights, param_grads, layouts, [0.01, 0.02], "triton", False)
    torch.library.opcheck(guidance_op.guidance_backward, backward, test_utils=utilities)


@triton.jit
def rounding_kernel(given_ptr, out_ptr, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out_ptr + place, rounded(tl.load(given_ptr + place), PRECISION))


def run_rounding(given: torch.Tensor, precision: str) -> torch.Tensor:
    out = torch.empty_like(given)
    rounding_kernel[(1,)](given, out, precision, len(given))
    return out


def nearest_of_ten_bits(values: torch.Tensor) -> torch.Tensor:
    """In float64, ties away from zero; below the normal numbers the steps stay as long as there."""
    exact = values.double()
    _, exponent = torch.frexp(exact)
    step = torch.ldexp(torch.ones_like(exact), exponent.clamp(min=-125) - 11)
    return ((exact.abs() / step + 0.5).floor() * step).copysign(exact).float()


def test_operands_of_tf32_products_are_rounded_to_nearest():
    bits = torch.randint(-(2**31), 2**31, (2048,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    ties = torch.cat([(bits & -0x2000) | low for low in (0, 0xFFF, 0x1000, 0x1001, 0x1FFF)])
    denormals = bits & -0x7F800001
    edges = torch.tensor(
        [0, 1, 0xFFF, 0x1000, 0x7FFFFF, 0x800000, 0x7F7FEFFF, 0x7F7FF000, 0x7F7FFFFF], dtype=torch.int32
    )
    given = torch.cat((bits, ties, denormals, edges, edges | -(2**31))).view(torch.float32)
    given = given[given.isfinite()]
    given = torch.nn.functional.pad(given, (0, 2**14 - len(given)))
    ours = run_rounding(given, "tf32")
    assert torch.equal(ours.view(torch.int32), nearest_of_ten_bits(given).view(torch.int32))
    assert torch.equal(run_rounding(given, "tf32x3"), given)
    half = torch.randn(64).half()
    assert torch.equal(run_rounding(half, "tf32"), half)


def test_rounding_leaves_infinity_and_every_nan_what_they_are():
    infinity, nans = 0x7F800000, [0x7F800001, 0x7F801000, 0x7FC00000, 0x7FFFEFFF, 0x7FFFF000, 0x7FFFFFFF]
    given = torch.tensor([infinity, *nans, 0], dtype=torch.int32)
    given = torch.cat((given, given | -(2**31)))
    assert torch.equal(run_rounding(given.view(torch.float32), "tf32").view(torch.int32), given)


def cutting_tensor_cores(monkeypatch):
    """Products as the hardware makes them: of TF32 operands, all but ten bits of every mantissa cut off."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    whole = InterpreterBuilder.create_dot

    def cut(handle):
        return TensorHandle((handle.data.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32), handle.dtype)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", lambda self, a, b, *rest: whole(self, cut(a), cut(b), *rest))


def test_gradients_are_not_too_small_on_tensor_cores_that_cut_operands(monkeypatch, family):
    """Up to five products one after another: cut operands would take 0.1 to 0.3 % off every gradient."""
    cutting_tensor_cores(monkeypatch)
    monkeypatch.setattr(guidance_op, "allows_tf32", lambda _: True)
    inputs = draw(3, [*FLAT[:2], WINDOWS[0], WINDOWS[3], PACKED[0], TILED[1], ((5, 5), 130, 70, (9, 9))], prefix=1)
    expected, expected_grads = truth(inputs)
    loss = guidance_loss(*inputs[:4], grids=inputs.grids, impl="triton")
    assert loss.item() == pytest.approx(expected, rel=5e-4)
    for ours, correct in zip(torch.autograd.grad(loss, inputs.leaves()), expected_grads, strict=True):
        share = (ours.double() * correct).sum() / correct.square().sum()
        assert relative(ours, correct) < 1e-3 and abs(share - 1) < 6e-4


def test_half_precision_is_refused_by_the_interpreter():
    inputs = draw(2, FLAT[:1], torch.bfloat16)
    with pytest.raises(RuntimeError, match="interpreter is right in float32 only"):
        guidance_loss(*inputs[:4], grids=inputs.grids, impl="triton")


def test_float64_is_refused_by_name():
    assert triton_obstacle(torch.device("cuda"), {torch.float32, torch.float64}) == "they know no float64"
    inputs = draw(2, FLAT[:1], torch.float64)
    with pytest.raises(RuntimeError, match="cannot run the guidance kernels: they know no float64; use impl='auto' or"):
        guidance_loss(*inputs[:4], grids=inputs.grids, impl="triton")
