"""The guidance loss, forward and backward, against the reference formulation: time, memory, and distance to the bytes.

    python benchmarks/cases/kernels/guidance.py [--quick] [--batch 128 1024] [--case deit_ti ...] [--json PATH]

Providers, all on the same tokens and teacher maps:

    ours      guidance_loss
    eager     the reference's code: tokens to a map, 1x1 convolution, F.interpolate of both sides, mean squared error
              (autocast on a GPU)
    equations the paper's Eqs. 3-4 as they are written, in eager torch: resize first, then the convolution
    compiled  the same under torch.compile (GPU only)
    products  the matrix products both sides share, alone: projection, weight gradient, token gradient (CPU only)
    copy      a device copy of the bytes that have to move: tokens and teacher maps read, token gradients written

They take turns, so all see the same machine; a row holds medians over the turns, ``spread`` is the distance of the
quartiles over the median and ``ratio`` is that provider's time over ours. On a GPU every turn uses the next of several
input sets, together larger than the L2 cache, and the time is between events. The targets: 10 x eager, 3 x compiled,
copy ratio 0.65 on an H200 at batch 1024; 2.5 x eager on a CPU at batch 32. On a CPU eager over ``products`` bounds
that ratio: dense float32 products that no reordering makes smaller, with all else free. Run as a script, freed memory
stays with the process there: whether a fresh tensor costs page faults depends on what the process freed before, up to
half of either side's time, and with providers in turns that would be each other's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from functools import partial
from itertools import product as every
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # the root, not this folder, whose names could hide installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.bench import spread
from benchmarks.harness.counting import Work
from fastlg.files.provenance import commit, device_name, versions
from fastlg_kernels import guidance_loss

# case -> (student grid, C, D, teacher grid) per pair; the teacher is ResNet-56 at 32 x 32
CASES = {
    "deit_ti": [((14, 14), 192, 16, (32, 32)), ((14, 14), 192, 32, (16, 16)), ((14, 14), 192, 64, (8, 8))],
    "pvt_ti": [((56, 56), 64, 16, (32, 32)), ((28, 28), 128, 32, (16, 16)), ((7, 7), 512, 64, (8, 8))],
    "pvt_v2_b0": [((56, 56), 32, 16, (32, 32)), ((28, 28), 64, 32, (16, 16)), ((7, 7), 256, 64, (8, 8))],
}
PREFIX = {"deit_ti": 1}
L2_BYTES = 50 << 20
TOKENS = (torch.float32, torch.bfloat16)  # of the residual stream as it is, and as it could be


class Inputs(NamedTuple):
    students: list[Tensor]
    teachers: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]
    grids: list[tuple[int, int]]

    def clear(self) -> None:
        for tensor in (*self.students, *self.weights, *self.biases):
            tensor.grad = None

    def bytes(self) -> int:
        """That have to move: tokens in, token gradients out, teacher maps in."""
        tokens = sum(n.numel() * n.element_size() for n in self.students)
        return 2 * tokens + sum(n.numel() * n.element_size() for n in self.teachers)


def draw(case: str, batch: int, device: torch.device, seed: int, tokens_dtype: torch.dtype = torch.float32) -> Inputs:
    """Gaussian tokens [N, L, C]; maps that are bfloat16 on a GPU, as a teacher under autocast leaves them, and float32
    on a CPU; float32 projections. Training under autocast has float32 tokens: its residual stream is."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(seed)
    inputs = Inputs([], [], [], [], [])

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    for grid, channels, dim, teacher_grid in CASES[case]:
        tokens = normal(batch, PREFIX.get(case, 0) + grid[0] * grid[1], channels).to(tokens_dtype)
        inputs.students.append(tokens.requires_grad_())
        inputs.teachers.append(normal(batch, dim, *teacher_grid).to(dtype))
        inputs.weights.append((normal(dim, channels) * channels**-0.5).requires_grad_())
        inputs.biases.append(torch.zeros(dim, device=device, requires_grad=True))
        inputs.grids.append(grid)
    return inputs


def ours(inputs: Inputs) -> Tensor:
    with torch.autocast(inputs.students[0].device.type, torch.bfloat16, inputs.students[0].is_cuda):
        return guidance_loss(*inputs[:4], grids=inputs.grids)


def reference(inputs: Inputs, project_first: bool = True) -> Tensor:
    """The paper's code: project, resize both sides to the larger size, mean squared error. Its text resizes first."""
    total = 0.0
    with torch.autocast(inputs.students[0].device.type, torch.bfloat16, inputs.students[0].is_cuda):
        for tokens, teacher, weight, bias, grid in zip(*inputs, strict=True):
            prefix = tokens.shape[1] - grid[0] * grid[1]
            maps = tokens[:, prefix:].transpose(1, 2).reshape(len(tokens), -1, *grid)
            size = [max(a, b) for a, b in zip(grid, teacher.shape[2:], strict=True)]
            if project_first:
                maps = F.conv2d(maps, weight[:, :, None, None], bias)
            maps, teacher = (F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (maps, teacher))
            if not project_first:
                maps = F.conv2d(maps, weight[:, :, None, None], bias)
            total = total + F.mse_loss(maps, teacher)
    return total


def products(inputs: Inputs):
    """P = T W', P'T and P W of every pair, each over all tokens at once, into memory that is there: no loss, no resize.

    Weight and token gradients are products of the same sizes with another left factor.
    """
    pairs = [(t.detach().flatten(0, 1), w.detach()) for t, w in zip(inputs.students, inputs.weights, strict=True)]
    outs = [(t.new_empty(len(t), len(w)), torch.empty_like(w), torch.empty_like(t)) for t, w in pairs]

    def run(_: Inputs) -> None:
        for (tokens, weight), (projected, weight_grad, token_grad) in zip(pairs, outs, strict=True):
            torch.mm(tokens, weight.T, out=projected)
            torch.mm(projected.T, tokens, out=weight_grad)
            torch.mm(projected, weight, out=token_grad)

    return run


def providers(inputs: list[Inputs]) -> dict:
    """Name -> one forward and backward pass on an input set."""
    device = inputs[0].students[0].device

    def step(loss):
        def run(one: Inputs) -> None:
            one.clear()
            loss(one).backward()

        return run

    made = {"ours": step(ours), "eager": step(reference), "equations": step(partial(reference, project_first=False))}
    if device.type == "cuda":
        made["compiled"] = step(torch.compile(reference, fullgraph=True))
    else:
        made["products"] = products(inputs[0])
    half = inputs[0].bytes() // 2
    buffers = [torch.empty(2, half, dtype=torch.uint8, device=device).random_() for _ in inputs]
    index = {id(one): buffer for one, buffer in zip(inputs, buffers, strict=True)}
    made["copy"] = lambda one: index[id(one)][1].copy_(index[id(one)][0])
    return made


def timed(run, inputs: Inputs, device: torch.device) -> float:
    """Milliseconds of one call."""
    if device.type != "cuda":
        start = time.perf_counter()
        run(inputs)
        return 1e3 * (time.perf_counter() - start)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(20_000_000)  # 10 ms: the host runs ahead, so its launch time is not what is measured
    start.record()
    run(inputs)
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def peak_mib(run, inputs: Inputs, device: torch.device) -> float | None:
    """Memory above the inputs at the peak of one call; None on a CPU, where nothing counts it."""
    if device.type != "cuda":
        return None
    inputs.clear()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(inputs)
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def race(
    case: str, batch: int, device: torch.device, repeats: int, tokens_dtype: torch.dtype = torch.float32
) -> tuple[dict, dict, list[Inputs]]:
    """(name -> milliseconds of every turn, name -> what was run, the input sets)."""
    first = draw(case, batch, device, 0, tokens_dtype)
    sets = 1 if device.type != "cuda" else min(8, 2 + 2 * L2_BYTES // first.bytes())
    inputs = [first, *(draw(case, batch, device, seed, tokens_dtype) for seed in range(1, sets))]
    runs = providers(inputs)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 3):
        for name, run in runs.items():
            took = timed(run, inputs[turn % sets], device)
            if turn >= 3:
                times[name].append(took)
    return times, runs, inputs


def rows(bench) -> None:
    """For benchmarks/run.py: each provider against eager, distance to the bytes as share of the bound."""
    device = bench.device
    for case in ("deit_ti",) if bench.quick else CASES:
        for batch, dtype in every((128, 1024) if bench.gpu else (32,), TOKENS[: 1 + bench.gpu]):
            if not bench.fits(f"{case}, batch {batch}", 1.5):
                continue
            turns = 101 if bench.gpu else 5 if bench.quick else 15
            times, runs, (first, *_) = race(case, batch, device, turns, dtype)
            base = [took / 1e3 for took in times["eager"]]
            for name, taken in times.items():
                peak = None if name == "copy" else peak_mib(runs[name], first, device)
                seconds = [took / 1e3 for took in taken]
                own = {"base": base, "work": Work(first.bytes(), 0), "peak_mib": peak}
                tokens = f", {str(dtype).removeprefix('torch.')} tokens" if bench.gpu else ""
                bench.add(case + tokens, name, seconds, batch=batch, **own)


def measure(case: str, batch: int, device: torch.device, repeats: int, stamp: dict) -> list[dict]:
    times, runs, (first, *_) = race(case, batch, device, repeats)
    median = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, values in times.items():
        row = {
            "case": f"{case} batch {batch}",
            "provider": name,
            "median_ms": round(median[name], 4),
            "spread": round(spread(values), 3),
            "ratio": round(median[name] / median["ours"], 3),
            "peak_mib": None if name == "copy" else peak_mib(runs[name], first, device),
            "bytes": first.bytes(),
        }
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        rows.append({**row, **stamp})
    return rows


def keep_freed_memory() -> None:
    """glibc returns large freed blocks to the system or keeps them, by what was freed before; from here on it keeps."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for large tensors
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, nargs="+", help="default: 128 and 1024 on a GPU, 32 on a CPU")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, help="turns that count")
    parser.add_argument("--quick", action="store_true", help="DeiT-Ti alone, few turns")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    cases = ["deit_ti"] if options.quick else options.case
    batches = options.batch or ([128, 1024] if device.type == "cuda" else [32])
    repeats = options.repeats or (9 if options.quick else 101 if device.type == "cuda" else 31)
    load = round(os.getloadavg()[0], 2)
    stamp = {"device": device_name(device), "versions": versions(), "commit": commit(), "load_average": load}
    rows = [row for case in cases for batch in batches for row in measure(case, batch, device, repeats, stamp)]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
