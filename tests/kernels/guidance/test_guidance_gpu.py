"""The guidance kernels on a GPU: every dtype against float64, streams, graphs, determinism, big batches, compile."""

from __future__ import annotations

import pytest
import torch
from guidance_truth import GOLDEN_CASES, draw, golden_inputs, on_device, relative, truth

from fastlg_kernels import GuidanceLoss, guidance_loss

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
    pytest.skip("needs a CUDA GPU of compute capability 8.0", allow_module_level=True)

CUDA = torch.device("cuda")
DEIT = [((14, 14), 192, 16, (32, 32)), ((14, 14), 192, 32, (16, 16)), ((14, 14), 192, 64, (8, 8))]
PVT = [
    ((56, 56), 64, 16, (32, 32)),
    ((28, 28), 128, 32, (16, 16)),
    ((14, 14), 320, 64, (8, 8)),
    ((7, 7), 512, 64, (8, 8)),
]
ODD = [((13, 9), 23, 19, (7, 15)), ((7, 15), 40, 24, (13, 9)), ((27, 19), 33, 5, (32, 32)), ((1, 1), 1, 1, (40, 33))]
WIDE = [((5, 5), 1536, 70, (3, 3)), ((5, 5), 1100, 130, (9, 9))]
CASES = {"deit": DEIT, "pvt": PVT, "odd": ODD, "wide": WIDE}
# loss and gradients, relative; half precision rounds tokens' gradients and residuals once
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 5e-6),
    torch.float16: (1e-3, 2e-3),
    torch.bfloat16: (3e-3, 1e-2),
}


def run(inputs, upstream=1.0, **options):
    loss = guidance_loss(*inputs[:4], grids=inputs.grids, **options)
    grads = torch.autograd.grad(loss * upstream, inputs.leaves())
    return loss.detach(), grads


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_dtype_agrees_with_float64(dtype, case, channels_last):
    inputs = draw(5, CASES[case], dtype, prefix=1, device=CUDA)
    for group in (inputs.weights, inputs.biases):  # projections stay float32 beside half-precision tokens
        group[:] = [t.detach().to(max(dtype, torch.float32, key=lambda d: d.itemsize)).requires_grad_() for t in group]
    if channels_last:
        inputs.teachers[:] = [t.to(memory_format=torch.channels_last) for t in inputs.teachers]
    expected, expected_grads = truth(inputs, upstream=1024.0)
    loss, grads = run(inputs, 1024.0, impl="torch" if dtype == torch.float64 else "triton")
    loss_limit, grad_limit = TOLERANCE[dtype]
    assert loss.item() == pytest.approx(expected, rel=loss_limit)
    for leaf, ours, correct in zip(inputs.leaves(), grads, expected_grads, strict=True):
        assert ours.dtype == leaf.dtype and relative(ours, correct) < grad_limit


@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden(golden, case, impl):
    inputs, numbers = golden_inputs(golden, case, torch.float32)
    loss, _ = run(on_device(inputs, CUDA), impl=impl)
    assert loss.item() == pytest.approx(float(numbers["linear_total_f64"]), rel=2e-6)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float16), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("maps", ["contiguous", "channels_last"])
def test_maps_and_mixed_dtypes(maps, dtypes):
    inputs = draw(4, PVT, dtypes[0], device=CUDA, teacher_dtype=dtypes[1])
    students = [t.detach().mT.unflatten(2, grid) for t, grid in zip(inputs.students, inputs.grids, strict=True)]
    if maps == "contiguous":
        students = [t.contiguous() for t in students]
    inputs.students[:] = [t.requires_grad_() for t in students]
    expected, expected_grads = truth(inputs)
    loss, grads = run(inputs, impl="triton")
    loss_limit, grad_limit = TOLERANCE[dtypes[0]]
    assert loss.item() == pytest.approx(expected, rel=loss_limit)
    assert max(relative(a, b) for a, b in zip(grads, expected_grads, strict=True)) < grad_limit


@pytest.mark.parametrize("case", CASES)
def test_tf32_where_the_caller_allows_it(case):
    inputs = draw(5, CASES[case], prefix=1, device=CUDA)
    expected, expected_grads = truth(inputs, upstream=-3.0)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        loss, grads = run(inputs, -3.0, impl="triton")
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    # ten bits of every operand, in up to five products one after another
    assert loss.item() == pytest.approx(expected, rel=5e-3)
    assert max(relative(a, b) for a, b in zip(grads, expected_grads, strict=True)) < 1e-2


@pytest.mark.parametrize(
    ("grid", "teacher", "mean"),
    [((1, 1), (32, 32), 64.0), ((1, 1), (40, 33), 50.0), ((7, 7), (224, 224), 70.0), ((7, 7), (56, 56), 20.0)],
)
def test_float16_residuals_of_large_cells_stay_finite(grid, teacher, mean):
    inputs = draw(2, [(grid, 5, 3, teacher), (grid, 192, 16, teacher)], torch.float16, device=CUDA)
    inputs.teachers[:] = [maps + mean for maps in inputs.teachers]
    expected, expected_grads = truth(inputs, upstream=64.0)
    loss, grads = run(inputs, 64.0, impl="triton")
    assert loss.item() == pytest.approx(expected, rel=1e-3)
    assert max(relative(a, b) for a, b in zip(grads, expected_grads, strict=True)) < 2e-3


def test_no_map_of_the_larger_grid_is_kept():
    """14 x 14 tokens under maps of 112 x 112: the student's map at that size would take 64 times its own memory."""
    inputs = draw(16, [((14, 14), 64, 64, (112, 112))], torch.bfloat16, device=CUDA)
    run(inputs, impl="triton")
    upsampled = inputs.teachers[0].numel() * inputs.teachers[0].element_size()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(inputs, impl="triton")
    assert torch.cuda.max_memory_allocated() - before < upsampled / 2


def test_partial_sums_of_large_projections_fit_few_programs():
    pairs = [((14, 14), 384, 1024, (14, 14)), ((14, 14), 384, 2048, (7, 7)), DEIT[0]]
    inputs = draw(16, pairs, torch.bfloat16, prefix=1, device=CUDA)
    expected, expected_grads = truth(inputs)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss, grads = run(inputs, impl="triton")
    kept = sum(t.numel() * 4 for t in inputs.leaves()) + 2 * sum(t.nbytes for t in grads)
    assert torch.cuda.max_memory_allocated() - before < 80 * 2**20 + 2 * kept
    assert loss.item() == pytest.approx(expected, rel=3e-3)
    assert max(relative(a, b) for a, b in zip(grads, expected_grads, strict=True)) < 1e-2


def test_scratch_is_written_before_it_is_read():
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3, device=CUDA).isnan().all()
        for pairs in CASES.values():
            loss, grads = run(draw(3, pairs, torch.bfloat16, prefix=1, device=CUDA))
            assert loss.isfinite() and all(grad.isfinite().all() for grad in grads)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_twenty_runs_give_the_same_bits(dtype):
    for pairs in (DEIT, PVT, ODD):
        inputs = draw(33, pairs, dtype, prefix=1, device=CUDA)
        loss, grads = run(inputs)
        for _ in range(19):
            again, others = run(inputs)
            assert torch.equal(loss, again) and all(torch.equal(a, b) for a, b in zip(grads, others, strict=True))


def test_two_streams_do_not_disturb_each_other():
    batches = [draw(64, DEIT, torch.bfloat16, prefix=1, device=CUDA, seed=seed) for seed in (0, 1)]
    alone = [run(inputs) for inputs in batches]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in batches]
    for _ in range(10):
        together = []
        for inputs, stream in zip(batches, streams, strict=True):
            with torch.cuda.stream(stream):
                together.append(run(inputs))
        torch.cuda.synchronize()
        for (loss, grads), (again, others) in zip(alone, together, strict=True):
            assert torch.equal(loss, again) and all(torch.equal(a, b) for a, b in zip(grads, others, strict=True))


def test_a_captured_graph_replays_on_new_contents():
    inputs = draw(16, DEIT, torch.bfloat16, prefix=1, device=CUDA)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(inputs, 2.0)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, grads = run(inputs, 2.0)
    fresh = draw(16, DEIT, torch.bfloat16, prefix=1, device=CUDA, seed=7)
    with torch.no_grad():
        for old, new in zip(sum(inputs[:4], []), sum(fresh[:4], []), strict=True):
            old.copy_(new)
    graph.replay()
    expected, expected_grads = run(fresh, 2.0)
    assert torch.equal(loss, expected) and all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_steps_equal_eager_ones(mode):
    torch.manual_seed(0)
    module = GuidanceLoss([192] * 3, [16, 32, 64], grids=[(14, 14)] * 3).to(CUDA)
    embed = torch.nn.Linear(192, 192, device=CUDA)

    def step(tokens, teachers):
        with torch.autocast("cuda", torch.bfloat16):
            return module([embed(t) for t in tokens], teachers) * 2.5

    compiled = torch.compile(step, fullgraph=True, mode=mode)
    for seed in range(4):
        inputs = draw(8, DEIT, prefix=1, device=CUDA, seed=seed, teacher_dtype=torch.bfloat16)
        results = []
        for function in (compiled, step):
            module.zero_grad()
            embed.zero_grad()
            loss = function([t.detach() for t in inputs.students], inputs.teachers)
            loss.backward()
            results.append([loss.item(), *(p.grad.clone() for p in (embed.weight, *module.parameters()))])
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-3)
        assert max(relative(a, b) for a, b in zip(results[0][1:], results[1][1:], strict=True)) < 2e-2


def test_nothing_waits_for_the_device():
    inputs = draw(4, DEIT, torch.bfloat16, prefix=1, device=CUDA)
    run(inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_opcheck():
    from fastlg_kernels.guidance.op import guidance_backward, guidance_forward

    inputs = draw(2, ODD[:2], device=CUDA, prefix=1)
    flat = [size for grid in inputs.grids for size in grid]
    arguments = (*inputs[:4], flat, False, True, True, "triton", False)
    torch.library.opcheck(guidance_forward, arguments)
    with torch.no_grad():
        _, residuals, param_grads = guidance_forward(*arguments)
    weights = [weight.detach() for weight in inputs.weights]
    layouts = [0, 1 + 13 * 9, 0, 0, 1 + 7 * 15, 0]
    upstream = torch.tensor(-0.5, device=CUDA)
    backward = (upstream, residuals, weights, param_grads, layouts, [0.01, 0.02], "triton", False)
    torch.library.opcheck(guidance_backward, backward)


def test_a_batch_of_more_than_2_to_31_elements():
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    for grid, channels, dim, teacher_grid in (((14, 14), 192, 16, (32, 32)), ((14, 14), 192, 64, (8, 8))):
        batch = 2**31 // (196 * channels) + 3
        tail = draw(3, [(grid, channels, dim, teacher_grid)], torch.bfloat16, device=CUDA)
        student = torch.zeros(batch, 196, channels, dtype=torch.bfloat16, device=CUDA)
        teacher = torch.zeros(batch, dim, *teacher_grid, dtype=torch.bfloat16, device=CUDA)
        with torch.no_grad():
            student[-3:], teacher[-3:] = tail.students[0], tail.teachers[0]
        bias = torch.zeros(dim, dtype=torch.bfloat16, device=CUDA, requires_grad=True)
        big = tail._replace(students=[student.requires_grad_()], teachers=[teacher], biases=[bias])
        loss, grads = run(big, reduction="sum_channels")
        expected, expected_grads = truth(tail._replace(biases=[bias]), "sum_channels")
        assert loss.item() * batch / 3 == pytest.approx(expected, rel=3e-3)
        assert relative(grads[0][-3:] * (batch / 3), expected_grads[0]) < 1e-2 and not grads[0][:-3].any()
        assert relative(grads[1] * (batch / 3), expected_grads[1]) < 1e-2


def test_channel_major_features_of_more_than_2_to_31_elements():
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    channels, batch = 32, 2**31 // (196 * 32) + 3
    for dim, teacher in ((16, (32, 32)), (64, (8, 8))):
        tail = draw(3, [((14, 14), channels, dim, teacher)], torch.bfloat16, device=CUDA)
        student = torch.zeros(channels, batch, 196, dtype=torch.bfloat16, device=CUDA).permute(1, 2, 0)[-3:]
        with torch.no_grad():
            student.copy_(tail.students[0])
        far = tail._replace(students=[student.requires_grad_()])
        expected, expected_grads = truth(tail)
        loss, grads = run(far, impl="triton")
        assert loss.item() == pytest.approx(expected, rel=3e-3)
        assert max(relative(a, b) for a, b in zip(grads, expected_grads, strict=True)) < 1e-2
