"""Compiles the fused parts of a block for two GPUs without one, and reads registers, stack and shared memory.

python tests/kernels/block_aot.py      prints the table of every case below
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from aot import MULTIPROCESSORS, OPTIONS, Launch, Recorder, Usage, usage  # noqa: F401

from fastlg_kernels.adamw import launch as adamw
from fastlg_kernels.attention import launch as attention
from fastlg_kernels.attention.tiles import choose
from fastlg_kernels.mlp import launch as mlp
from fastlg_kernels.mlp import tiles as mlp_tiles
from fastlg_kernels.mlp.plain import Half
from fastlg_kernels.norm import launch as norm

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
KERNELS = {
    adamw: ("adamw_kernel",),
    norm: ("forward_kernel", "backward_kernel", "sum_kernel"),
    attention: ("forward_kernel", "backward_kernel"),
    mlp: ("forward_kernel", "backward_kernel", "weights_kernel", "sum_kernel"),
}
SHARED_LIMIT = 99 * 1024  # bytes, of compute capability 8.6, 8.9 and 12.0: the smallest


def on_no_device(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def norm_pass(channels: int, stream: torch.dtype, branch: torch.dtype, normed: torch.dtype, keeps: bool = True) -> None:
    """Forward and backward of ``add_layer_norm`` on a batch of 197 tokens."""
    x, joining = on_no_device(64, 197, channels, dtype=stream), on_no_device(64, 197, channels, dtype=branch)
    weight, bias = on_no_device(channels), on_no_device(channels)
    keep = on_no_device(64) if keeps else None
    total, out, stats = norm.forward(x, joining, weight, bias, keep, 1e-6, normed)
    apart = keeps or branch != stream
    norm.backward(total, out, total, stats, weight, keep, branch, apart, True)


def attention_pass(length: int, heads: int, dim: int, dtype: torch.dtype, *, odd: bool = False) -> None:
    """Forward and backward of ``short_attention``; ``odd``: tokens that do not lie at multiples of 16 bytes."""
    qkv = on_no_device(64, length, 3 * heads * dim + odd, dtype=dtype)[..., : 3 * heads * dim]
    qkv = qkv.unflatten(-1, (3, heads, dim))
    attention.backward(attention.forward(qkv, dim**-0.5), qkv, dim**-0.5)


def mlp_pass(channels: int, hidden: int, stream: torch.dtype, dtype: torch.dtype, keeps: bool = True) -> None:
    """Forward and backward of ``add_mlp`` with parameters of the stream's dtype."""
    x, branch = on_no_device(64, 197, channels, dtype=stream), on_no_device(64, 197, channels, dtype=dtype)
    keep = on_no_device(64) if keeps else None
    shapes = ((channels,), (channels,), (hidden, channels), (hidden,), (channels, hidden), (channels,))
    half = Half(x, branch, keep, keep, *(on_no_device(*shape, dtype=stream) for shape in shapes))
    out = mlp.forward(half, 1e-6, dtype)
    mlp.backward(out, half, 1e-6, dtype, keeps or dtype != stream, True)


def adamw_pass(weights: torch.dtype, grads: torch.dtype) -> None:
    """A step over three parameters: float32 ones, or float32 masters and their copies."""
    table, chunks = on_no_device(3, 6, dtype=torch.int64), on_no_device(9, 3, dtype=torch.int64)
    rates, steps = on_no_device(2, 6, dtype=torch.float64), on_no_device(dtype=torch.float64)
    copy = None if weights == FP32 else on_no_device(5, dtype=weights)
    adamw.step(table, chunks, rates, steps, on_no_device(5), on_no_device(5, dtype=grads), copy)


CASES: dict[str, tuple[Callable, tuple]] = {
    "adamw fp32": (adamw_pass, (FP32, FP32)),
    "adamw bf16 and masters": (adamw_pass, (BF16, BF16)),
    "norm C192 fp32 stream": (norm_pass, (192, FP32, BF16, BF16)),
    "norm C192 bf16 stream": (norm_pass, (192, BF16, BF16, BF16)),
    "norm C192 fp16": (norm_pass, (192, FP16, FP16, FP16, False)),
    "norm C64 fp32": (norm_pass, (64, FP32, FP32, FP32)),
    "norm C191 fp32 stream": (norm_pass, (191, FP32, BF16, BF16)),
    "norm C384 fp32 stream": (norm_pass, (384, FP32, BF16, BF16)),
    "norm C768 fp32 stream": (norm_pass, (768, FP32, BF16, BF16)),
    "norm C1536 fp32": (norm_pass, (1536, FP32, FP32, FP32)),
    "norm C4096 fp32": (norm_pass, (4096, FP32, FP32, FP32)),
    "mlp C192 fp32 stream": (mlp_pass, (192, 768, FP32, BF16)),
    "mlp C192 bf16 stream": (mlp_pass, (192, 768, BF16, BF16)),
    "mlp C192 fp16": (mlp_pass, (192, 768, FP16, FP16, False)),
    "mlp C128 fp32 stream": (mlp_pass, (128, 512, FP32, BF16)),
    "mlp C64 fp32 stream": (mlp_pass, (64, 256, FP32, BF16)),
    "mlp C48 bf16 stream": (mlp_pass, (48, 96, BF16, BF16)),
    "attention L197 D64 bf16": (attention_pass, (197, 3, 64, BF16)),
    "attention L197 D64 fp16": (attention_pass, (197, 3, 64, FP16)),
    "attention L256 D64 bf16": (attention_pass, (256, 12, 64, BF16)),
    "attention L197 D32 bf16": (attention_pass, (197, 6, 32, BF16)),
    "attention L65 D64 bf16": (attention_pass, (65, 3, 64, BF16)),
    "attention L50 D64 bf16": (attention_pass, (50, 3, 64, BF16)),
    "attention L50 D32 bf16": (attention_pass, (50, 3, 32, BF16)),
    "attention L5 D32 bf16": (attention_pass, (5, 3, 32, BF16)),
}


def record(monkeypatch, family: str, case: str) -> list[Launch]:
    """What the launchers would start on such a GPU."""
    launches: list[Launch] = []
    for module, names in KERNELS.items():
        for name in names:
            kernel = getattr(module, name)
            monkeypatch.setattr(
                module, name, Recorder(kernel.kernel if isinstance(kernel, Recorder) else kernel, launches)
            )
        monkeypatch.setattr(module, "device_family", lambda _: (family, MULTIPROCESSORS[family]), raising=False)
    function, arguments = CASES[case]
    function(*arguments)
    return launches


def fits(used: Usage, family: str, case: str) -> bool:
    """Nothing spills, and it fits on the smallest of the chips, or takes no more than its table says."""
    limit, (function, arguments) = SHARED_LIMIT, CASES[case]
    if function is attention_pass:
        length, _, dim, *_ = arguments
        limit = choose(used.kernel.removesuffix("_kernel"), length, dim).shared
    if function is mlp_pass and used.kernel != "sum_kernel":
        limit = mlp_tiles.choose(used.kernel.removesuffix("_kernel"), family, arguments[1]).shared
    return used.stack == 0 and used.registers <= 255 and used.shared <= limit


def main() -> int:
    import pytest

    count = failed = 0
    print("{:6} {:32} {:22} {:>4} {:>5} {:>7}".format("family", "case", "kernel", "regs", "stack", "smem"))
    for family in MULTIPROCESSORS:
        for case in CASES:
            if not all(word in case for word in sys.argv[1:]):
                continue
            with pytest.MonkeyPatch.context() as patch:
                launches = record(patch, family, case)
            for used in (usage(launch, int(family[2:])) for launch in launches):
                count, failed = count + 1, failed + (not fits(used, family, case))
                row = f"{family:6} {case:32} {used.kernel:22} {used.registers:4} {used.stack:5} {used.shared:7}"
                print(row, flush=True)
    print(f"{count} launches, {failed} spill or do not fit")
    return int(failed > 0)


if __name__ == "__main__":
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / "fastlg-aot"))
    sys.exit(main())
