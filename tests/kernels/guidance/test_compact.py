"""compact_guidance: the loss from teacher maps pulled to the student's grid beforehand is the loss from the maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastlg_kernels.guidance.compact import CompactMap, compact_guidance, compact_map

#        student grid, student channels, prefix tokens, teacher [D, h, w]
PAIRS = [
    ((14, 14), 12, 1, (16, 32, 32)),
    ((5, 7), 9, 0, (8, 9, 3)),
    ((7, 7), 6, 2, (5, 3, 2)),
    ((3, 1), 4, 0, (2, 1, 8)),
]


def inputs(dtype, batch=3):
    generator = torch.Generator().manual_seed(1)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    students = [make(batch, prefix + math.prod(grid), c) for grid, c, prefix, _ in PAIRS]
    teachers = [make(batch, *shape) for *_, shape in PAIRS]
    weights = [make(shape[0], c) for _, c, _, shape in PAIRS]
    biases = [make(shape[0]) for *_, shape in PAIRS]
    return students, teachers, weights, biases, [grid for grid, *_ in PAIRS]


def written_out(students, teachers, weights, biases, grids, reduction):
    """Eqs. 3-5 as they are read, float64, through torch's own interpolation."""
    total = 0
    for student, teacher, weight, bias, grid in zip(students, teachers, weights, biases, grids, strict=True):
        tokens = student.double()[:, student.shape[1] - math.prod(grid) :]
        maps = (tokens @ weight.double().T + bias.double()).transpose(1, 2).unflatten(2, grid)
        size = [max(grid[k], teacher.shape[2 + k]) for k in (0, 1)]
        pair = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in (maps, teacher.double())]
        square = (pair[0] - pair[1]).square()
        total = total + (square.mean() if reduction == "mean" else square.sum(1).mean())
    return total


@pytest.mark.parametrize("reduction", ["mean", "sum_channels"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_value_and_gradients_are_those_of_the_written_out_loss(dtype, tolerance, reduction):
    students, teachers, weights, biases, grids = inputs(dtype)
    learned = [*students, *weights, *biases]
    for tensor in learned:
        tensor.requires_grad_(True)
    truth = written_out(students, teachers, weights, biases, grids, reduction)
    expected = torch.autograd.grad(3 * truth, learned)
    for compact in ((0, 1, 2, 3), (0, 2), (1,)):
        mixed = [compact_map(t, grids[i]) if i in compact else t for i, t in enumerate(teachers)]
        loss = compact_guidance(students, mixed, weights, biases, grids=grids, reduction=reduction)
        assert loss.dtype == dtype
        torch.testing.assert_close(loss.double(), truth, rtol=tolerance, atol=0)
        for ours, true in zip(torch.autograd.grad(3 * loss, learned), expected, strict=True):
            assert (ours.double() - true.double()).norm() <= tolerance * true.double().norm()


@pytest.mark.parametrize("case", ["deit_ti", "pvt_ti", "odd", "batch1", "equal"])
def test_the_references_losses(golden, case):
    data = np.load(golden / f"guidance_{case}.npz")
    pairs = len([name for name in data.files if name.endswith("_teacher")])
    sides = [[torch.from_numpy(data[f"p{i}_{n}"]).double() for i in range(pairs)] for n in ("tokens", "weight", "bias")]
    grids = [tuple(map(int, data[f"p{i}_hw"])) for i in range(pairs)]
    maps = [compact_map(torch.from_numpy(data[f"p{i}_teacher"]).double(), grids[i]) for i in range(pairs)]
    loss = compact_guidance(sides[0], maps, sides[1], sides[2], grids=grids)
    torch.testing.assert_close(loss.item(), float(data["linear_total_f64"]), rtol=1e-12, atol=0)


def test_autocast_does_not_reach_inside():
    students, teachers, weights, biases, grids = inputs(torch.float32)
    students = [student.bfloat16() for student in students]
    compact = [compact_map(t, grid) for t, grid in zip(teachers, grids, strict=True)]
    truth = written_out(students, teachers, weights, biases, grids, "mean")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = compact_guidance(students, compact, weights, biases, grids=grids)
    torch.testing.assert_close(ours.double(), truth, rtol=1e-6, atol=0)


def test_a_compact_map_of_another_grid_or_batch_is_refused():
    students, teachers, weights, biases, grids = inputs(torch.float32)
    wrong = compact_map(teachers[0], (7, 7))
    with pytest.raises(ValueError, match=r"\(3, 16, 7, 7\).*grid \(14, 14\)"):
        compact_guidance(students[:1], [wrong], weights[:1], biases[:1], grids=grids[:1])
    short = CompactMap(*(part[:2] for part in compact_map(teachers[0], (14, 14))[:2]), (32, 32))
    with pytest.raises(ValueError, match="3 samples"):
        compact_guidance(students[:1], [short], weights[:1], biases[:1], grids=grids[:1])
    with pytest.raises(ValueError, match="'max'"):
        compact_guidance(students, teachers, weights, biases, grids=grids, reduction="max")
