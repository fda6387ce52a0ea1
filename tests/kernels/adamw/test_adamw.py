"""fastlg_kernels.AdamW in plain torch: torch.optim.AdamW's numbers, masters, checkpoints, and what is refused."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from adamw_truth import assert_close, beside_torch, gradients, groups, parameters, run

from fastlg_kernels import AdamW
from fastlg_kernels.adamw import op

BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(("dtype", "limit"), [(FP64, 1e-13), (FP32, 2e-6)])
def test_fifty_steps_with_decay_groups_are_those_of_torch_in_float64(dtype, limit):
    for tensor_lr in (False, True):
        ours, optimizer, truth = beside_torch(dtype, 50, tensor_lr=tensor_lr and dtype == FP32)
        assert_close(ours, truth, limit)
    assert {float(state["step"]) for state in optimizer.state.values()} == {50.0}


def test_half_precision_parameters_are_copies_of_float32_masters():
    ours, optimizer, truth = beside_torch(BF16, 50)
    masters = [optimizer.state[p]["master"] for p in ours]
    assert {m.dtype for m in masters} == {FP32} == {optimizer.state[p]["exp_avg_sq"].dtype for p in ours}
    assert_close(masters, truth, 2e-6)
    assert all(torch.equal(p, master.to(BF16)) for p, master in zip(ours, masters, strict=True))


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_a_run_that_stops_and_goes_on_is_the_run_that_does_not(dtype):
    whole, _, _ = beside_torch(dtype, 12)
    ours, optimizer, _ = beside_torch(dtype, 5)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    values = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    other = AdamW(groups(values), lr=1e-2)
    other.load_state_dict(torch.load(io.BytesIO(saved.getvalue()), weights_only=True))
    run(values, other, range(5, 12), values)
    assert all(torch.equal(a, b) for a, b in zip(values, whole, strict=True))
    assert copy.deepcopy(other).state_dict()["param_groups"] == other.state_dict()["param_groups"]


def test_a_checkpoint_of_torchs_adamw_goes_on():
    whole, _, truth = beside_torch(FP32, 9)
    values = parameters(FP32)
    theirs = torch.optim.AdamW(groups(values), lr=1e-2)
    for group in theirs.param_groups:
        group["initial"] = group["lr"]
    run(values, theirs, range(4), values)
    ours = AdamW(groups(values), lr=1e-2)
    ours.load_state_dict(theirs.state_dict())
    run(values, ours, range(4, 9), values)
    assert_close(values, truth, 2e-6)


def test_a_step_takes_a_closure_and_parameters_without_gradients_stay():
    values = parameters(FP32)
    optimizer = AdamW(values[:2], lr=0.1)
    assert optimizer.step() is None and not optimizer.state
    optimizer.add_param_group({"params": values[2:], "weight_decay": 0.0})
    before = [value.detach().clone() for value in values]

    def closure():
        loss = values[1].square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert [torch.equal(a, b) for a, b in zip(values, before, strict=True)] == [True, False, True, True]


def test_opcheck():
    values = [p.detach() for p in parameters(FP32)[:2]]
    rates, steps = torch.tensor([[1e-3, 0.1, 0.9, 0.99, 1e-8, 1.0]], dtype=FP64), torch.ones((), dtype=FP64)
    for copies in ([], [value.to(BF16) for value in values]):
        moments = [[torch.zeros_like(value) for value in values] for _ in range(2)]
        arguments = (values, gradients(0, parameters(FP32))[:2], *moments, copies, [0, 0], rates, steps, None, None)
        torch.library.opcheck(op.adamw_step, arguments, test_utils=("test_schema", "test_faketensor"))


def test_what_is_wrong_is_refused_by_name():
    values = parameters(FP32)
    for options, kind, words in (
        ({"lr": -1.0}, ValueError, "lr is -1.0"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas is \(0.9, 1.0\)"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay is -0.1"),
        ({"eps": -1e-8}, ValueError, "eps is -1e-08"),
        ({"impl": "cuda"}, ValueError, "impl is 'cuda'"),
    ):
        with pytest.raises(kind, match=words):
            AdamW(values, **options)
    with pytest.raises(ValueError, match="parameters are on cpu, meta"):
        AdamW([values[0], torch.nn.Parameter(values[1].to("meta"))])
    with pytest.raises(ValueError, match="parameters are torch.complex64"):
        AdamW([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    optimizer = AdamW(values, impl="triton")
    values[0].grad = torch.zeros_like(values[0])
    with pytest.raises(RuntimeError, match="AdamW kernels: "):
        optimizer.step()
    values[0].grad = torch.zeros_like(values[0]).to_sparse()
    with pytest.raises(ValueError, match="a gradient is sparse"):
        optimizer.step()
