"""Whether AdamW's updates are fastlg_kernels', one launch for all parameters, where these were seen to be torch's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlg.config import OptimConfig
from fastlg.errors import first_line
from fastlg.ranks.say import say
from fastlg_kernels import AdamW

STEPS, APART = 3, 1e-4  # relative to the length of all that the steps changed
SIZES = ((40, 60), (5000,), (7,))


def takes_one_launch(optim: OptimConfig, device: torch.device, dtype: torch.dtype, kind: str) -> bool:
    """Of runs whose ``engine.fuse`` is on. Says so where the device is asked and found to stray.

    DeepSpeed knows torch's AdamW, and fp16's scaled gradients would wait for the host before every step of another.
    """
    if optim.name != "adamw" or kind != "plain" or dtype == torch.float16:
        return False
    obstacle = stray(device) if device.type == "cuda" else ""
    if obstacle:
        say(f"fuse     AdamW is torch's: {obstacle}")
    return not obstacle


def stray(device: torch.device) -> str:
    """What is wrong with steps on ``device``; "" where they are those of torch in float64."""
    generator = torch.Generator().manual_seed(0)
    starts, *grads = ([torch.randn(size, generator=generator) for size in SIZES] for _ in range(STEPS + 1))
    try:
        truth = _change(torch.optim.AdamW, starts, grads, torch.device("cpu"), torch.float64)
        found = _change(AdamW, starts, grads, device, torch.float32)
    except Exception as error:  # a kernel that does not compile or start; the run goes on without
        return f"a launch fails here: {first_line(error)}"
    apart = (found - truth).norm() / truth.norm()
    return "" if apart <= APART else f"one launch strays by {apart:.1%} here"


def _change(kind: type, starts: list, grads: list, device: torch.device, dtype: torch.dtype) -> Tensor:
    """By what the steps change the weights, all in a row; with weight decay and without."""
    weights = [nn.Parameter(start.to(device, dtype, copy=True)) for start in starts]
    groups = [{"params": weights[:2], "weight_decay": 0.1}, {"params": weights[2:], "weight_decay": 0.0}]
    optimizer = kind(groups, lr=1e-2)
    for of_step in grads:
        for weight, grad in zip(weights, of_step, strict=True):
            weight.grad = grad.to(device, dtype)
        optimizer.step()
    ends = (weight.detach().to("cpu", torch.float64) for weight in weights)
    return torch.cat([(end - start).flatten() for end, start in zip(ends, starts, strict=True)])
