"""Muon for the matrices of a network and AdamW for the rest, as one optimizer.

Muon (K. Jordan et al. 2024) moves a matrix by its momentum, orthogonalised: all directions by about equal lengths. The
update is torch.optim.Muon's (torch 2.9 and later) with ``adjust_lr_fn="match_rms_adamw"`` (Moonshot 2025, section 2.2),
which lets one learning rate serve both parts. Torch's own walks over the matrices one by one and takes the learning
rate to the host; here equal shapes are orthogonalised together and nothing leaves the device, so that an update can be
captured as a CUDA graph.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic x -> a x + b x^3 + c x^5, per singular value
ITERATIONS = 5
EPS = 1e-7  # below this norm a matrix counts as zero
RMS = 0.2  # of AdamW's update, which Muon's is scaled to

# FLOPs of padding that cost less than the some twenty launches of one more stack; a CPU hardly feels a launch.
FREE_FLOPS = {"cuda": 4e9}


class Muon(torch.optim.Optimizer):
    """Steps the groups that say ``"muon": True`` by Muon with Nesterov momentum, the others by fused AdamW.

    Args:
        groups: as of any torch optimizer; weight decay is decoupled in both parts: weights shrink by lr * weight_decay.
            Parameters of a Muon group have 2 dimensions or more and count as [first, all others].
        lr: a float, or a tensor of no dimensions on the parameters' device, which is read there at every step.
        momentum: of Muon; the buffer is a running mean, as in torch.
        betas: of AdamW.
        capturable: AdamW counts its steps on the device, as a CUDA graph needs it.
        dtype: of the orthogonalisation; None takes ``orthogonal_dtype`` of the device.

    State by parameter: ``momentum_buffer`` in a Muon group, else AdamW's. Raises ValueError for a vector in a Muon
    group.
    """

    def __init__(
        self,
        groups: list[dict],
        lr: float | Tensor,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        capturable: bool = False,
        dtype: torch.dtype | None = None,
    ):
        self.options = {"betas": betas, "fused": True, "capturable": capturable}
        self.momentum, self.dtype = momentum, dtype
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "muon": False})
        self._share_the_rest()
        for parameter in self._matrices():
            if parameter.ndim < 2:
                raise ValueError(f"Muon steps matrices; a parameter of shape {tuple(parameter.shape)} is in its group")

    def _matrices(self) -> list[Tensor]:
        return [parameter for group in self.param_groups if group["muon"] for parameter in group["params"]]

    def _share_the_rest(self) -> None:
        """The AdamW of the other groups reads the same group and state dictionaries; loading a state replaces both."""
        rest = [group for group in self.param_groups if not group["muon"]]
        self.rest = torch.optim.AdamW(rest, lr=self.defaults["lr"], **self.options) if rest else None
        if self.rest is not None:
            self.rest.state = self.state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._share_the_rest()

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient; what ``closure`` returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._step_matrices(group)
        if self.rest is not None:
            self.rest.step()
        return loss

    def _step_matrices(self, group: dict) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not params:
            return
        grads = [parameter.grad for parameter in params]
        for parameter in params:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in params]
        torch._foreach_lerp_(buffers, grads, 1 - self.momentum)
        directions = torch._foreach_lerp(grads, buffers, self.momentum)
        lr, first = group["lr"], params[0]
        if not isinstance(lr, Tensor):
            lr = torch.full((), lr, dtype=first.dtype, device=first.device)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        dtype = self.dtype or orthogonal_dtype(first.device)
        torch._foreach_sub_(params, orthogonal_steps(directions, lr, dtype))


def orthogonal_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, as in torch, where the device multiplies it in hardware; else float32, which is up to 20 times as fast
    there."""
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = _cpu_capabilities()
        is_native = any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if is_native else torch.float32


@functools.cache
def _cpu_capabilities() -> dict[str, object]:
    return dict(getattr(torch.cpu, "get_capabilities", dict)())


def orthogonal_steps(directions: Sequence[Tensor], lr: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """What Muon subtracts from each parameter: 0.2 sqrt(max(rows, columns)) lr O, in the parameter's shape and dtype,
    with O the orthogonalised direction. ``lr``: no dimensions, on the device."""
    free = FREE_FLOPS.get(directions[0].device.type, 0.0)
    steps: list[Tensor] = list(directions)
    for stack in stacked(tuple(direction.shape for direction in directions), free):
        count = sum(len(members.indices) for members in stack.members)
        whole = directions[0].new_zeros((count, *stack.size), dtype=dtype)
        parts = whole.split([len(members.indices) for members in stack.members])
        for members, part in zip(stack.members, parts, strict=True):
            own = torch.stack([directions[index] for index in members.indices]).flatten(2)
            members.within(part).copy_(own)
        parts = orthogonalised(whole).split([len(part) for part in parts])
        for members, part in zip(stack.members, parts, strict=True):
            first = directions[members.indices[0]]
            out = first.new_empty((len(part), *members.size))  # of its own, for foreach is slow on strided tensors
            scale = lr.view(1) * (RMS * math.sqrt(max(members.size)))  # [1]: float32 also where the product is bf16's
            torch.mul(members.within(part), scale, out=out)
            for index, step in zip(members.indices, out.view(-1, *first.shape).unbind(), strict=True):
                steps[index] = step
    return steps


def orthogonalised(matrices: Tensor) -> Tensor:
    """Newton-Schulz in the dtype of ``matrices`` [B, m, n], m <= n: singular values come near 1 (0.7 to 1.2), singular
    vectors stay. Zeros that pad a matrix stay zeros and change nothing else."""
    a, b, c = COEFFICIENTS
    x = matrices / torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x


class Members(NamedTuple):
    """Parameters of one shape: ``size`` as matrices, ``indices`` in the list they came from."""

    size: tuple[int, int]
    indices: list[int]

    def within(self, part: Tensor) -> Tensor:
        """The view [k, *size] of a stack's [k, m, n] that holds them; tall matrices lie there transposed."""
        rows, columns = sorted(self.size)
        view = part[:, :rows, :columns]
        return view if self.size == (rows, columns) else view.mT


class Stack(NamedTuple):
    """Matrices orthogonalised together, padded to ``size`` [m, n], m <= n."""

    size: tuple[int, int]
    members: list[Members]


@functools.lru_cache(maxsize=16)
def stacked(shapes: tuple[tuple[int, ...], ...], free_flops: float) -> list[Stack]:
    """Which parameters are orthogonalised together: equal shapes, tall and wide ones alike, and smaller ones padded
    where that costs at most ``free_flops`` more."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, shape in enumerate(shapes):
        by_shape.setdefault(tuple(shape), []).append(index)
    stacks: list[Stack] = []
    ordered = sorted(by_shape.items(), key=lambda item: -flops_of(matrix_of(item[0])))
    for shape, indices in ordered:
        size = matrix_of(shape)
        own = flops_of(size)
        fitting = {
            len(indices) * (flops_of(stack.size) - own): stack
            for stack in reversed(stacks)
            if all(small <= large for small, large in zip(sorted(size), stack.size, strict=True))
        }
        extra = min(fitting, default=math.inf)
        if extra <= free_flops:
            fitting[extra].members.append(Members(size, indices))
        else:
            stacks.append(Stack(tuple(sorted(size)), [Members(size, indices)]))
    return stacks


def matrix_of(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a parameter of 2 dimensions or more."""
    return shape[0], math.prod(shape[1:])


def flops_of(size: tuple[int, int]) -> int:
    """Of the orthogonalisation of one matrix."""
    rows, columns = sorted(size)
    return ITERATIONS * (4 * rows * rows * columns + 2 * rows**3)
