"""Bytes of a step as Inductor schedules it are counted right, and the pages repeat them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torch.utils._triton
from torch._subclasses import FakeTensorMode

ROOT = Path(__file__).resolve().parents[2]


def compiled_bytes(function, *shapes: tuple[int, ...]) -> tuple[int, list[set[str]]]:
    """Of a loss and the gradients of all it is given: (bytes, names of the operations of each kernel)."""
    from benchmarks.cases.kernels.compiled_bytes import scheduled

    with FakeTensorMode():
        kernels = scheduled(function, [torch.empty(shape, requires_grad=True) for shape in shapes])
    return sum(kernel.bytes for kernel in kernels), [{name for name, _ in kernel.operations} for kernel in kernels]


def test_what_a_compiler_fuses_is_read_and_written_once():
    pytest.importorskip("triton")
    assert torch.utils._triton.has_triton() is torch.cuda.is_available()  # which torch remembers
    size = 4 * 512 * 1024  # bytes of a tensor; sums and what they leave are thousands of times less
    moved, kernels = compiled_bytes(lambda x, y: (F.gelu(x) * y).sum(), (512, 1024), (512, 1024))
    assert moved == pytest.approx((2 + 2 + 2) * size, rel=0.01)  # x, y; x, y again and their gradients
    assert {"gelu", "mul", "sum"} <= set().union(*kernels)
    moved, kernels = compiled_bytes(lambda x, w: F.gelu(x @ w).sum(), (512, 1024), (1024, 1024))
    # x, w -> product; product -> sum; product -> its gradient; that and w -> x's; that and x -> w's
    assert moved == pytest.approx(
        (1 + 2 + 1) * size + size + 2 * size + (1 + 2 + 1) * size + (1 + 1 + 2) * size, rel=0.01
    )
    assert sum("mm" in names for names in kernels) == 3
    assert torch.utils._triton.has_triton() is torch.cuda.is_available()


def test_the_pages_repeat_the_table():
    text = (ROOT / "benchmarks" / "results" / "block-bytes.txt").read_text(encoding="utf-8")
    head, *rows = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if not line.startswith("#"))
    assert head == ["part", "timm, eager", "timm, compiled", "fused, eager", "fused, compiled"]
    parts = {name: [float(value) for value in values] for name, *values in rows}
    totals = parts.pop("all")
    for column, total in enumerate(totals):
        assert sum(values[column] for values in parts.values()) == pytest.approx(total, abs=0.06)
    written = {f"{total:.0f}" for total in totals}
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("kernels/README.md", "README.md"))
    assert set(re.findall(r"(\d+) MB", page)) >= written
    assert f"from {totals[1]:.0f} to {totals[3]:.0f} MB per image" in readme and totals[3] <= 75  # the target
