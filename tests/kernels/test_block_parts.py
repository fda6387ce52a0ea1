"""The bench of fused parts: its rivals do one job, and its rows hold what they move."""

from __future__ import annotations

import torch

from benchmarks.cases.kernels import block_parts
from benchmarks.harness import bench as harness
from benchmarks.harness.counting import Ceilings

CPU = torch.device("cpu")


def test_every_part_of_a_block_is_raced_by_rivals_that_compute_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(block_parts, "TOKENS", 5)
    for case in block_parts.CASES:
        inputs = block_parts.draw(case, 3, CPU)
        with torch.autocast("cpu", torch.bfloat16):
            found, wanted = (form(case, inputs) for form in (block_parts.ours, block_parts.eager))
        grads = [torch.autograd.grad(results, inputs.leaves, inputs.upstream) for results in (found, wanted)]
        for a, b in zip((*found, *grads[0]), (*wanted, *grads[1]), strict=True):
            assert a.dtype == b.dtype and (a.float() - b.float()).norm() <= 0.02 * b.float().norm(), case
    stamp, ceilings = harness.Stamp.of(CPU, "a test"), Ceilings(1e10, {"float32": 1e11, "bfloat16": 2e11})
    made = harness.Bench(CPU, quick=True, folder=tmp_path, ceilings=ceilings, stamp=stamp, profile=None)
    block_parts.rows(made)
    assert [(row.case, row.provider) for row in made.rows] == [
        (f"DeiT-Ti's {case}", provider) for case in block_parts.CASES for provider in ("ours", "eager", "copy")
    ]
    tokens = 2 * 5 * 192
    for row in made.rows[3:6]:  # attention: qkv, result; qkv, two gradients, of bfloat16
        assert row.bytes == (3 + 1 + 3 + 1 + 3) * tokens * 2 and row.bound_ms > 0 and row.ratio > 0
    assert made.rows[3].extra["moved_mib"] * 2**20 == made.rows[3].bytes < made.rows[4].extra["moved_mib"] * 2**20
