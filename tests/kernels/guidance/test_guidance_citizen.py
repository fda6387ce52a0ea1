"""guidance_loss inside the rest of PyTorch: compile, operator checks, autocast, scaling, DDP, counters."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from guidance_truth import draw, relative, truth
from rank_processes import forking_context
from torch.utils.flop_counter import FlopCounterMode

from fastlg_kernels import GuidanceLoss, guidance_loss
from fastlg_kernels.guidance.op import guidance_backward, guidance_forward

PAIRS = [((4, 6), 5, 3, (8, 7)), ((6, 6), 4, 2, (3, 3))]


def operator_arguments(dtype=torch.float64, maps=False, with_residuals=True, with_weights=True):
    inputs = draw(2, PAIRS, dtype, prefix=0 if maps else 1)
    students = inputs.students
    if maps:  # one contiguous, one channels_last
        views = [t.detach().mT.unflatten(2, grid) for t, grid in zip(students, inputs.grids, strict=True)]
        students = [views[0].contiguous().requires_grad_(), views[1].requires_grad_()]
    flat = [size for grid in inputs.grids for size in grid]
    groups = (students, inputs.teachers, inputs.weights, inputs.biases)
    return (*groups, flat, False, with_residuals, with_weights, "auto", False)


@pytest.mark.parametrize("maps", [False, True])
def test_opcheck_forward(maps):
    torch.library.opcheck(guidance_forward, operator_arguments(maps=maps))


@pytest.mark.parametrize("flags", [(False, True), (True, False), (False, False)])
def test_opcheck_forward_with_parts_left_out(flags):
    arguments = operator_arguments(torch.float32, False, *flags)
    for group in (arguments[0], arguments[2], arguments[3]):
        for tensor in group:
            tensor.requires_grad_(False)
    torch.library.opcheck(guidance_forward, arguments)


@pytest.mark.parametrize("maps", [False, True])
def test_opcheck_backward(maps):
    arguments = operator_arguments(torch.float32, maps)
    with torch.no_grad():
        _, residuals, param_grads = guidance_forward(*arguments)
    layouts = [1, 4, 6, 2, 6, 6] if maps else [0, 25, 0, 0, 37, 0]
    weights = [weight.detach() for weight in arguments[2]]
    backward = (torch.tensor(0.5), residuals, weights, param_grads, layouts, [336, 144], "auto", False)
    torch.library.opcheck(guidance_backward, backward)
    torch.library.opcheck(guidance_backward, (backward[0], [], [], param_grads, [], [], "auto", False))


def test_gradients_are_dense_in_the_layout_of_the_student():
    arguments = operator_arguments(maps=True)
    loss = guidance_loss(*arguments[:4])
    loss.backward()
    contiguous, last = (student.grad for student in arguments[0])
    assert contiguous.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()


def test_compiles_to_one_graph_and_is_not_recompiled_for_new_batches():
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    def step(students, teachers, weights, biases):
        return 2 * guidance_loss(students, teachers, weights, biases, grids=[(4, 6), (6, 6)])

    compiled = torch.compile(step, fullgraph=True, backend=counting)
    for seed in range(3):
        inputs = draw(2, PAIRS, torch.float64, prefix=1, seed=seed)
        expected, expected_grads = truth(inputs, upstream=2.0)
        loss = compiled(*inputs[:4])
        loss.backward()
        assert loss.item() == pytest.approx(2 * expected, rel=1e-12)
        for leaf, correct in zip(inputs.leaves(), expected_grads, strict=True):
            assert relative(leaf.grad, correct) < 1e-12
    assert len(graphs) == 1


def test_compiles_forward_and_backward_through_aot_autograd():
    module = GuidanceLoss([5, 4], [3, 2], grids=[(4, 6), (6, 6)])
    embed = torch.nn.Linear(5, 5)
    compiled = torch.compile(lambda x, t, maps: module([embed(x), t], maps) * 3, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        inputs = draw(2, PAIRS, prefix=1, seed=seed)
        results = []
        for function in (compiled, lambda x, t, maps: module([embed(x), t], maps) * 3):
            module.zero_grad()
            embed.zero_grad()
            inputs.students[1].grad = None
            loss = function(inputs.students[0], inputs.students[1], inputs.teachers)
            loss.backward()
            leaves = [inputs.students[1], embed.weight, *module.parameters()]
            results.append([loss.detach(), *(leaf.grad.clone() for leaf in leaves)])
        for ours, eager in zip(*results, strict=True):
            torch.testing.assert_close(ours, eager)


def test_compiles_with_a_dynamic_batch():
    compiled = torch.compile(guidance_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 5, 3):
        inputs = draw(batch, [((5, 5), 5, 3, (8, 7))])
        loss = compiled(*inputs[:4])
        loss.backward()
        expected, grads = truth(inputs)
        assert loss.item() == pytest.approx(expected, rel=1e-5) and relative(inputs.students[0].grad, grads[0]) < 1e-5


def test_autocast_keeps_the_loss_in_float32_and_trains_float32_projections():
    module = GuidanceLoss([8], [4])
    embed = torch.nn.Linear(8, 8)
    tokens, teacher = torch.randn(2, 16, 8), torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = embed(tokens)
        assert out.dtype == torch.bfloat16
        loss = module(out, teacher)
    loss.backward()
    assert loss.dtype == torch.float32 and embed.weight.grad.dtype == torch.float32
    assert module.projections[0].weight.grad.dtype == torch.float32
    plain = module(embed(tokens), teacher)
    assert loss.item() == pytest.approx(plain.item(), rel=0.02)


def test_autocast_does_not_round_the_sums():
    inputs = draw(2, PAIRS, prefix=1)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = guidance_loss(*inputs[:4], grids=inputs.grids)
            results.append([loss, *torch.autograd.grad(loss, inputs.leaves())])
    assert all(torch.equal(plain, cast) for plain, cast in zip(*results, strict=True))


def test_accumulated_and_scaled_steps_equal_one_step_over_both_batches():
    module = GuidanceLoss([5], [3], grids=[(4, 6)]).double()
    first, second = (draw(2, PAIRS[:1], torch.float64, prefix=1, seed=seed) for seed in (0, 1))
    scale = 2.0**14
    for inputs in (first, second):
        (module(inputs.students[0], inputs.teachers[0]) / 2 * scale).backward()
    accumulated = [parameter.grad / scale for parameter in module.parameters()]
    module.zero_grad()
    both = [torch.cat([a, b]).detach() for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True)]
    module(both[0], both[1]).backward()
    for ours, parameter in zip(accumulated, module.parameters(), strict=True):
        assert relative(ours, parameter.grad) < 1e-12


def test_operators_are_counted():
    inputs = draw(3, PAIRS, prefix=1)
    with FlopCounterMode(display=False) as counter:
        guidance_loss(*inputs[:4], grids=inputs.grids).backward()
    one = 2 * 3 * (24 * 5 * 3 + 36 * 4 * 2)
    assert counter.get_total_flops() == 3 * one  # projection, weight gradient, token gradient


def test_triton_on_the_cpu_is_refused_with_the_reason():
    inputs = draw(2, PAIRS)
    with pytest.raises(RuntimeError, match="impl='triton'.*cpu tensors.*TRITON_INTERPRET=1.*'auto' or 'torch'"):
        guidance_loss(*inputs[:4], grids=inputs.grids, impl="triton")


def _ddp_worker(rank, rendezvous, out):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.manual_seed(0)
    module = torch.nn.parallel.DistributedDataParallel(GuidanceLoss([5], [3], grids=[(4, 6)]).double())
    inputs = draw(4, PAIRS[:1], torch.float64, prefix=1)
    half = slice(2 * rank, 2 * rank + 2)
    module(inputs.students[0][half], inputs.teachers[0][half]).backward()
    if rank == 0:
        torch.save([parameter.grad for parameter in module.parameters()], out)
    dist.destroy_process_group()


def test_two_ddp_processes_see_the_gradient_of_the_whole_batch(tmp_path):
    forking_context()
    files = str(tmp_path / "rendezvous"), str(tmp_path / "grads.pt")
    mp.start_processes(_ddp_worker, files, nprocs=2, start_method="forkserver")
    torch.manual_seed(0)
    module = GuidanceLoss([5], [3], grids=[(4, 6)]).double()
    inputs = draw(4, PAIRS[:1], torch.float64, prefix=1)
    module(inputs.students[0], inputs.teachers[0]).backward()
    for parameter, ours in zip(module.parameters(), torch.load(tmp_path / "grads.pt"), strict=True):
        assert relative(ours, parameter.grad) < 1e-12
