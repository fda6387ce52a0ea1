"""Some steps of fastlg_kernels.AdamW beside torch.optim.AdamW in float64, on the same gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlg_kernels import AdamW

SHAPES = ((7, 11), (3000,), (1,), (2, 3, 5, 2))
GROUPS = (
    {"weight_decay": 0.3, "lr": 2e-2},
    {"weight_decay": 0.0, "betas": (0.8, 0.95), "eps": 1e-4, "maximize": True},
)


def parameters(dtype: torch.dtype, device="cpu") -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).to(dtype).to(device) for shape in SHAPES]
    values[3] = values[3].to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(value) for value in values]


def groups(values: list[Tensor]) -> list[dict]:
    """Two with decay, two without, as norms and biases are."""
    return [{"params": values[k::2], **options} for k, options in enumerate(GROUPS)]


def gradients(step: int, like: list[Tensor]) -> list[Tensor]:
    """Far from 0 in the mean, of very different sizes, rounded to the dtype; strides differ from the parameters'."""
    generator = torch.Generator().manual_seed(step)
    drawn = [(torch.randn(shape, generator=generator) + 0.3) * 10.0 ** (k - 2) for k, shape in enumerate(SHAPES)]
    return [value.to(p.dtype).to(p.device) for value, p in zip(drawn, like, strict=True)]


def run(values: list[Tensor], optimizer, steps: range, grads_of: list[Tensor]) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            rate = group["initial"] * (1 - step / 100)
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        for value, grad in zip(values, gradients(step, grads_of), strict=True):
            value.grad = grad.to(value.dtype)
        optimizer.step()


def beside_torch(dtype: torch.dtype, steps: int, *, tensor_lr=False, device="cpu", **options):
    """Parameters, optimizer, and torch's parameters in float64 after so many steps with falling rates."""
    ours = parameters(dtype, device)
    truth = [torch.nn.Parameter(value.detach().double().clone()) for value in ours]
    optimizer = AdamW(groups(ours), lr=1e-2, **options)
    theirs = torch.optim.AdamW(groups(truth), lr=1e-2)
    for one in (optimizer, theirs):
        for group in one.param_groups:
            group["initial"] = group["lr"]
    if tensor_lr:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], device=device)
    run(ours, optimizer, range(steps), ours)
    run(truth, theirs, range(steps), ours)
    return ours, optimizer, truth


def assert_close(found: list[Tensor], truth: list[Tensor], limit: float) -> None:
    for a, b in zip(found, truth, strict=True):
        assert (a.double() - b).norm() <= limit * b.norm(), (a.double() - b).norm() / b.norm()
