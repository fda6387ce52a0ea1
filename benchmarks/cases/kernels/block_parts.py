"""The fused parts of a DeiT-Ti block, forward and backward, beside torch: time, memory and distance to the bytes.

    fastlg bench blocks [--quick]

Cases, in bfloat16 autocast on a float32 residual stream, paths dropped at 0.1, as a GPU trains them:

    mlp        the attention's branch joins the stream, layer norm, both layers and GELU, and what they make joins
    attention  softmax attention of 3 heads of 64 channels over 197 tokens, from packed queries, keys and values
    norm       a branch joins the stream, and the layer norm behind it

Providers: "ours" is the operator of fastlg_kernels (on a CPU its twin in torch, which is a rehearsal and no rival);
"eager" what timm's block does; "compiled" the same under torch.compile (GPU only); "copy" a device copy of as many
bytes as the operator moves, forward and backward. They take turns; ``ratio`` is to eager. Bytes are counted on tensors
without memory (block_bytes.py), FLOPs are those of eager: the bound is what a kernel could do that makes nothing twice.
``moved_mib`` is what each of "ours" and "eager" moves. At batch 128 the tensors of a case are larger than an L2 cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product as every
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

from benchmarks.cases.kernels.block_bytes import Bytes
from benchmarks.cases.kernels.guidance import timed
from benchmarks.harness.bench import Bench, peak_mib
from benchmarks.harness.counting import Work, count
from fastlg_kernels import add_layer_norm, add_mlp, short_attention

TOKENS, HEADS, HEAD_DIM, DROPPED, EPS = 197, 3, 64, 0.1, 1e-6
CHANNELS = HEADS * HEAD_DIM
HALF = torch.bfloat16


class Inputs(NamedTuple):
    """``leaves`` get gradients, ``keeps`` are what samples' branches are multiplied by, ``upstream`` is behind each
    result."""

    leaves: list[Tensor]
    keeps: list[Tensor]
    upstream: list[Tensor]


def draw(case: str, batch: int, device: torch.device) -> Inputs:
    """Gaussian, a tenth of the branches dropped."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

    stream, hidden = (batch, TOKENS, CHANNELS), 4 * CHANNELS
    if case == "attention":
        leaves, upstream = [normal(batch, TOKENS, 3, HEADS, HEAD_DIM, dtype=HALF)], [normal(*stream, dtype=HALF)]
    else:
        leaves = [normal(*stream), normal(*stream, dtype=HALF), 1 + normal(CHANNELS, scale=0.1), normal(CHANNELS)]
        upstream = [normal(*stream)] + [normal(*stream, dtype=HALF)] * (case == "norm")
    if case == "mlp":
        leaves += [normal(hidden, CHANNELS, scale=CHANNELS**-0.5), normal(hidden)]
        leaves += [normal(CHANNELS, hidden, scale=hidden**-0.5), normal(CHANNELS)]
    keeps = [(torch.rand(batch, generator=generator, device=device) > DROPPED).float() / (1 - DROPPED)] * 2
    return Inputs([leaf.requires_grad_() for leaf in leaves], keeps, upstream)


def ours(case: str, inputs: Inputs) -> list[Tensor]:
    if case == "attention":
        return [short_attention(*inputs.leaves)]
    x, branch, gain, shift, *layers = inputs.leaves
    keep, keep_mlp = inputs.keeps
    if case == "norm":
        return list(add_layer_norm(x, branch, gain, shift, keep=keep, eps=EPS))
    return [add_mlp(x, branch, (gain, shift), layers[:2], layers[2:], keep=keep, keep_mlp=keep_mlp, eps=EPS)]


def eager(case: str, inputs: Inputs) -> list[Tensor]:
    """As timm's Attention and Block write it; under autocast a layer norm is float32."""
    if case == "attention":
        query, key, value = inputs.leaves[0].permute(2, 0, 3, 1, 4).unbind(0)
        return [F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)]
    x, branch, gain, shift, *layers = inputs.leaves
    keep, keep_mlp = (keep.view(-1, 1, 1).to(HALF) for keep in inputs.keeps)
    total = x + branch * keep
    normed = F.layer_norm(total, (CHANNELS,), gain, shift, EPS)
    if case == "norm":
        return [total, normed.to(HALF)]
    return [total + F.linear(F.gelu(F.linear(normed, *layers[:2])), *layers[2:]) * keep_mlp]


CASES = ("mlp", "attention", "norm")


def passes(form: Callable, case: str, inputs: Inputs, device: str) -> Callable[[object], None]:
    """Forward and backward under autocast; gradients are given back, not added up."""

    def run(_: object = None) -> None:
        with torch.autocast(device, HALF):
            results = form(case, inputs)
        torch.autograd.grad(results, inputs.leaves, inputs.upstream)

    return run


def moved(form: Callable, case: str, batch: int) -> Work:
    """Of one forward and backward pass, counted without memory."""
    with FakeTensorMode():
        run = passes(form, case, draw(case, batch, torch.device("cpu")), "cpu")
        work = count(run)
        with Bytes() as counted:
            run()
    return Work(sum(counted.parts.values()), work.flops, "bfloat16")


def providers(case: str, inputs: Inputs, device: torch.device, least: Work) -> dict[str, Callable]:
    """Name -> one forward and backward pass."""
    made = {"ours": passes(ours, case, inputs, device.type), "eager": passes(eager, case, inputs, device.type)}
    if device.type == "cuda":
        compiled = torch.compile(eager, fullgraph=True, dynamic=False)
        made["compiled"] = passes(compiled, case, inputs, device.type)
    source, target = torch.empty(2, least.bytes // 2, dtype=torch.uint8, device=device).random_()
    made["copy"] = lambda _: target.copy_(source)
    return made


def rows(bench: Bench) -> None:
    """For benchmarks/run.py: every provider beside eager."""
    batches = (128, 1024) if bench.gpu else (2,) if bench.quick else (32,)
    for case, batch in every(CASES, batches):
        if not bench.fits(f"{case}, batch {batch}", 1.5):
            continue
        own, theirs = (moved(form, case, batch) for form in (ours, eager))
        least = Work(own.bytes, theirs.flops, "bfloat16")
        runs = providers(case, draw(case, batch, bench.device), bench.device, least)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(104 if bench.gpu else 8 if bench.quick else 14):
            for name, run in runs.items():
                took = timed(run, None, bench.device) / 1e3
                if turn >= 3:
                    times[name].append(took)
        extra = {"ours": {"moved_mib": own.bytes / 2**20}, "eager": {"moved_mib": theirs.bytes / 2**20}}
        for name, taken in times.items():
            counts = bench.gpu and name != "copy"
            peak = peak_mib(partial(runs[name], None), bench.device) if counts else None
            bench.add(
                f"DeiT-Ti's {case}",
                name,
                taken,
                batch=batch,
                base=times["eager"],
                work=least,
                peak_mib=peak,
                **extra.get(name, {}),
            )
