"""The fused parts of a block on a GPU: every dtype against float64, the same bits twice, replay as a CUDA graph."""

from __future__ import annotations

import adamw_truth
import attention_truth
import mlp_truth
import norm_truth
import pytest
import torch

from fastlg_kernels import AdamW, add_layer_norm, add_mlp, short_attention

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
    pytest.skip("needs a CUDA GPU of compute capability 8.0", allow_module_level=True)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
LIMITS = {FP32: 5e-6, FP16: 2e-3, BF16: 1e-2}


@pytest.mark.parametrize("shape", [(64, 197, 192), (3, 5, 191), (2, 9, 4096)], ids=str)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_norm_agrees_with_float64_and_repeats_itself(dtype, shape):
    inputs = norm_truth.draw(shape, dtype, device="cuda")
    first, second = (norm_truth.check(inputs, LIMITS[dtype], impl="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    if dtype == BF16:  # as under autocast: a float32 stream, a bfloat16 branch and norm
        mixed = norm_truth.draw(shape, FP32, branch_dtype=BF16, device="cuda")
        norm_truth.check(mixed, 1e-2, impl="triton", dtype=BF16)


@pytest.mark.parametrize(
    "shape", [(8, 197, 3, 64), (8, 197, 6, 32), (2, 256, 2, 64), (5, 50, 3, 64), (3, 1, 2, 32)], ids=str
)
@pytest.mark.parametrize("dtype", [FP16, BF16], ids=str)
def test_attention_agrees_with_float64_and_repeats_itself(dtype, shape):
    qkv, upstream = (t.detach().cuda() for t in attention_truth.draw(*shape, dtype))
    qkv.requires_grad_()
    first, second = (attention_truth.check(qkv, upstream, LIMITS[dtype], impl="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_attention_of_float32_runs_torch_and_says_why_triton_cannot():
    qkv, upstream = (t.detach().cuda() for t in attention_truth.draw(2, 20, 2, 32))
    attention_truth.check(qkv.requires_grad_(), upstream, 1e-5)
    with pytest.raises(RuntimeError, match="on a GPU they take float16 and bfloat16"):
        short_attention(qkv, impl="triton")


@pytest.mark.parametrize(
    ("shape", "hidden"), [((64, 197, 192), 768), ((3, 5, 192), 768), ((7, 50, 128), 512), ((2, 9, 48), 96)], ids=str
)
@pytest.mark.parametrize(("stream", "dtype"), [(FP32, BF16), (BF16, BF16), (FP16, FP16)], ids=str)
def test_mlp_agrees_with_float64_and_repeats_itself(stream, dtype, shape, hidden):
    for keeps, joins in ((True, True), (False, True), (True, False)):
        inputs = mlp_truth.draw(shape, hidden, dtype, stream=stream, keeps=keeps, joins=joins, device="cuda")
        first, second = (mlp_truth.check(inputs, 2 * LIMITS[dtype], impl="triton") for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_mlp_of_float32_runs_torch_and_says_why_triton_cannot():
    inputs = mlp_truth.draw((2, 9, 64), 64, device="cuda")
    mlp_truth.check(inputs, 1e-5)
    with pytest.raises(RuntimeError, match="on a GPU they multiply bfloat16 and float16"):
        mlp_truth.ours(inputs, impl="triton")


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_adamw_is_torchs_in_float64_and_its_copies_are_rounded_to_nearest(dtype):
    ours, optimizer, truth = adamw_truth.beside_torch(dtype, 50, tensor_lr=True, device="cuda", impl="triton")
    masters = ours if dtype == FP32 else [optimizer.state[p]["master"] for p in ours]
    adamw_truth.assert_close(masters, truth, 2e-6)
    assert all(torch.equal(p, master.to(dtype)) for p, master in zip(ours, masters, strict=True))


def test_adamw_is_captured_with_gradients_of_its_own_and_a_rate_that_changes():
    values, others = (adamw_truth.parameters(BF16, "cuda") for _ in range(2))
    rate = torch.tensor(0.1, device="cuda")
    captured, eager = AdamW(values, lr=rate), AdamW(others, lr=rate)

    def step(optimizer, parameters):
        optimizer.zero_grad()
        sum(p.float().square().sum() for p in parameters).backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(captured, values)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    captured.zero_grad()
    with torch.cuda.graph(graph):
        step(captured, values)
    step(eager, others)
    for lr in (0.1, 0.01):
        rate.fill_(lr)
        graph.replay()
        step(eager, others)
    assert all(torch.equal(a, b) for a, b in zip(values, others, strict=True))


def test_all_are_replayed_as_a_cuda_graph():
    x, branch = torch.randn(4, 50, 192, device="cuda"), torch.randn(4, 50, 192, device="cuda", dtype=BF16)
    weight, bias, keep = torch.rand(192, device="cuda"), torch.rand(192, device="cuda"), torch.ones(4, device="cuda")
    layer = torch.nn.Linear(192, 576, device="cuda", dtype=BF16)
    fc1, fc2 = (torch.nn.Linear(*sizes, device="cuda") for sizes in ((192, 768), (768, 192)))
    pairs = [(fc.weight, fc.bias) for fc in (fc1, fc2)]
    leaves = [x.requires_grad_(), branch.requires_grad_(), weight.requires_grad_(), *layer.parameters()]
    leaves += [*fc1.parameters(), *fc2.parameters()]

    def step():
        total, normed = add_layer_norm(x, branch, weight, bias, keep=keep, dtype=BF16)
        out = short_attention(layer(normed).unflatten(-1, (3, 3, 64)))
        total = add_mlp(total, out, (weight, bias), *pairs, keep=keep, keep_mlp=keep, dtype=BF16)
        return torch.autograd.grad((total.square().mean() + out.float().square().mean()), leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.normal_()
        keep[1] = 0
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))
