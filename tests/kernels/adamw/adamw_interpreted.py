"""The AdamW kernel under Triton's interpreter. Run by test_interpreted.py in a process of its own."""

from __future__ import annotations

import pytest
import torch
from adamw_truth import assert_close, beside_torch, parameters

from fastlg_kernels import AdamW


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_with_decay_groups_are_those_of_torch_in_float64(dtype):
    ours, optimizer, truth = beside_torch(dtype, 6, tensor_lr=True, impl="triton")
    if dtype == torch.float32:
        assert_close(ours, truth, 2e-6)
        return
    masters = [optimizer.state[p]["master"] for p in ours]
    assert_close(masters, truth, 2e-6)
    for copy, master in zip(ours, masters, strict=True):  # the interpreter cuts off what a GPU rounds to nearest
        torch.testing.assert_close(copy.float(), master, rtol=2**-7, atol=0)


def test_one_launch_takes_all_parameters_and_gradients_may_lie_elsewhere_in_every_step(monkeypatch):
    from fastlg_kernels.adamw import launch

    calls, step = [], launch.step
    monkeypatch.setattr(launch, "step", lambda *arguments: (calls.append(arguments), step(*arguments)))
    values = parameters(torch.float32)
    optimizer = AdamW(values, impl="triton")
    kept = []
    for _ in range(3):
        before = [value.detach().clone() for value in values]
        for value in values[1:]:
            value.grad = torch.ones_like(value)
            kept.append(value.grad)  # so that the next one gets other memory
        optimizer.step()
        assert torch.equal(values[0], before[0])  # it had no gradient
        assert all((a < b).all() for a, b in zip(values[1:], before[1:], strict=True))
    assert len(calls) == 3
