"""The guidance loss written the long way in float64, and random inputs for it: what every path is held to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

GOLDEN_CASES = ("deit_ti", "pvt_ti", "odd", "batch1", "equal")


class Inputs(NamedTuple):
    students: list
    teachers: list
    weights: list
    biases: list
    grids: list

    def leaves(self):
        return [*self.students, *self.weights, *(bias for bias in self.biases if bias is not None)]


def truth(inputs: Inputs, reduction: str = "mean", upstream: float = 1.0) -> tuple[float, list]:
    """Loss and gradients (students, weights, biases) by autograd through F.interpolate, everything in float64."""
    groups = [[None if t is None else t.detach().double().requires_grad_() for t in group] for group in inputs[:4]]
    students, teachers, weights, biases = groups
    total = 0.0
    for student, teacher, weight, bias, grid in zip(students, teachers, weights, biases, inputs.grids, strict=True):
        maps = student
        if student.dim() == 3:
            maps = student[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
        maps = torch.einsum("dc,nchw->ndhw", weight.flatten(1), maps)
        if bias is not None:
            maps = maps + bias[:, None, None]
        size = [max(a, b) for a, b in zip(maps.shape[2:], teacher.shape[2:], strict=True)]
        maps, target = (F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (maps, teacher.detach()))
        squares = (maps - target).square()
        total = total + (squares.mean() if reduction == "mean" else squares.sum(1).mean())
    leaves = Inputs(students, teachers, weights, biases, inputs.grids).leaves()
    grads = torch.autograd.grad(total * upstream, leaves)
    return total.item(), list(grads)


def draw(batch, pairs, dtype=torch.float32, prefix=0, seed=0, device="cpu", teacher_dtype=None) -> Inputs:
    """Gaussian inputs; ``pairs`` holds (grid, student channels, teacher channels, teacher grid). Tokens with prefix."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    inputs = Inputs([], [], [], [], [])
    for grid, channels, dim, teacher_grid in pairs:
        inputs.students.append(normal(batch, prefix + grid[0] * grid[1], channels).to(dtype))
        inputs.teachers.append(normal(batch, dim, *teacher_grid).to(teacher_dtype or dtype))
        inputs.weights.append(normal(dim, channels, scale=channels**-0.5).to(dtype))
        inputs.biases.append(normal(dim).to(dtype))
        inputs.grids.append(grid)
    return on_device(inputs, device)


def on_device(inputs: Inputs, device) -> Inputs:
    """The same inputs there, leaves requiring grad."""
    moved = [[None if t is None else t.to(device) for t in group] for group in inputs[:4]]
    for leaf in (*moved[0], *moved[2], *(b for b in moved[3] if b is not None)):
        leaf.requires_grad_()
    return Inputs(*moved, inputs.grids)


def golden_inputs(folder, case: str, dtype=torch.float64) -> tuple[Inputs, dict]:
    """Inputs of one golden file, and the file's numbers."""
    with np.load(folder / f"guidance_{case}.npz") as archive:
        numbers = dict(archive)
    inputs = Inputs([], [], [], [], [])
    for index in range(int(numbers["n_pairs"])):
        for group, name in zip(inputs, ("tokens", "teacher", "weight", "bias"), strict=False):
            group.append(torch.from_numpy(numbers[f"p{index}_{name}"].astype(np.float64)).to(dtype))
        inputs.grids.append(tuple(int(size) for size in numbers[f"p{index}_hw"]))
    return on_device(inputs, "cpu"), numbers


def golden_token_grad(numbers: dict, index: int, transform: str, grad: torch.Tensor) -> list[tuple]:
    """(name, ours, golden) for everything the file stores about the gradient of the tokens of one pair."""
    found = []
    for key, values in numbers.items():
        if not key.startswith(f"p{index}_{transform}_gtok") or key.endswith("relerr"):
            continue
        kind = key.removeprefix(f"p{index}_{transform}_gtok")
        ours = grad.detach().double()
        if "stride" in kind:
            ours = ours.reshape(-1)[:: int(kind.rpartition("stride")[2])]
        elif kind == "_token_l2":
            ours = ours.norm(dim=2)
        elif kind == "_channel_sum":
            ours = ours.sum(1)
        elif kind == "_l2":
            ours = ours.norm()
        found.append((kind, ours, torch.as_tensor(values), torch.as_tensor(values).dtype))
    return found


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """|ours - expected| / |expected| in float64; NaN counts as infinitely wrong."""
    expected = expected.detach().double().cpu()
    difference = (ours.detach().double().cpu() - expected).norm()
    error = (difference / expected.norm().clamp(min=1e-300)).item()
    return error if error == error else float("inf")
