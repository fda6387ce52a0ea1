"""Compiles the guidance kernels ahead of time, as the launcher would ask for them, and reads registers and spills.

``python tests/kernels/guidance/guidance_aot.py`` prints the table of every shape, dtype and layout (half an hour).
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from aot import MULTIPROCESSORS, SHARED_LIMIT, Launch, Recorder, Usage, usage

from fastlg_kernels.guidance import launch as guidance_triton
from fastlg_kernels.guidance import op as guidance_op
from fastlg_kernels.guidance import tiles as guidance_configs

SMALLEST_SHARED_LIMIT = 99 * 1024  # compute capability 8.6, 8.9 and 12.0
KERNELS = ("flat_kernel", "window_kernel", "weight_grad_kernel", "token_grad_kernel", "reduce_kernel")

# name -> (student grid, C, D, teacher grid): the students of the paper beside ResNet-56, then odd and large ones
SHAPES = {
    "deit_ti/0": ((14, 14), 192, 16, (32, 32)),
    "deit_ti/1": ((14, 14), 192, 32, (16, 16)),
    "deit_ti/2": ((14, 14), 192, 64, (8, 8)),
    "pvt_ti/0": ((56, 56), 64, 16, (32, 32)),
    "pvt_ti/1": ((28, 28), 128, 32, (16, 16)),
    "pvt_ti/2": ((14, 14), 320, 64, (8, 8)),
    "pvt_ti/3": ((7, 7), 512, 64, (8, 8)),
    "pvt_v2_b0/0": ((56, 56), 32, 16, (32, 32)),
    "pvt_v2_b0/2": ((7, 7), 256, 64, (8, 8)),
    "pit_ti/0": ((27, 27), 64, 16, (32, 32)),
    "vit_small/0": ((14, 14), 384, 16, (32, 32)),
    "vit_small/2": ((14, 14), 384, 64, (8, 8)),
    "vit_base/2": ((14, 14), 768, 64, (8, 8)),
    "mixed": ((13, 9), 40, 19, (7, 15)),
    "wide": ((14, 14), 1536, 512, (7, 7)),
    "flat C112": ((16, 16), 112, 64, (15, 16)),
    "flat C191": ((14, 14), 191, 48, (8, 8)),
    "flat C383": ((14, 14), 383, 64, (8, 8)),
    "window C191": ((14, 14), 191, 10, (32, 32)),
    "window C300": ((14, 14), 300, 64, (32, 32)),
    "7 to 28": ((7, 7), 192, 64, (28, 28)),
    "7 to 56": ((7, 7), 160, 64, (56, 56)),
    "14 to 56": ((14, 14), 192, 64, (56, 56)),
    "14 to 48": ((14, 14), 192, 16, (48, 48)),
    "resnet50/2": ((14, 14), 192, 512, (28, 28)),
}
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# what every shape is compiled for, beside tokens with a prefix and a teacher of the same dtype, channels first
VARIANTS = {
    BF16: [
        {},
        {"teacher": "last"},
        {"student": "maps"},
        {"student": "maps", "teacher": "last"},
        {"student": "maps last"},
        {"student": "far samples"},
        {"student": "far channels"},
        {"teacher_dtype": FP32},
        {"weights": False},
        {"residuals": False},
    ],
    FP16: [{}, {"student": "maps"}],
    FP32: [
        {},
        {"teacher": "last"},
        {"student": "maps"},
        {"student": "far channels"},
        {"teacher_dtype": BF16},
        {"allow_tf32": True},
        {"allow_tf32": True, "teacher": "last"},
    ],
}


def record(
    monkeypatch,
    family,
    shapes,
    dtype,
    *,
    batch=128,
    student="tokens",
    teacher="first",
    teacher_dtype=None,
    residuals=True,
    weights=True,
    allow_tf32=False,
):
    """Launches of forward and backward for pairs of such shapes, from the launcher itself, on meta tensors."""
    launches: list[Launch] = []
    for name in KERNELS:
        kernel = getattr(guidance_triton, name)
        monkeypatch.setattr(
            guidance_triton, name, Recorder(kernel.kernel if isinstance(kernel, Recorder) else kernel, launches)
        )
    monkeypatch.setattr(guidance_triton, "device_family", lambda _: (family, MULTIPROCESSORS[family]))
    pairs = []
    for grid, channels, dim, size in shapes:
        maps = torch.empty(batch, dim, *size, dtype=teacher_dtype or dtype, device="meta")
        if teacher == "last":
            maps = maps.to(memory_format=torch.channels_last)
        weight, bias = torch.empty(dim, channels, device="meta"), torch.empty(dim, device="meta")
        pairs.append((laid_out(student, batch, grid, channels, dtype), maps, weight, bias, grid))
    _, stored, _ = guidance_triton.forward(pairs, [1] * len(pairs), residuals, weights, allow_tf32)
    upstream = torch.empty((), device="meta")
    for residual, (tokens, _, weight, _, grid) in zip(stored, pairs, strict=False):
        out = guidance_op.empty_gradient(residual, weight, guidance_op.student_layout(tokens, grid))
        guidance_triton.token_grad(residual, weight, upstream, 1.0, out, allow_tf32)
    return launches


def laid_out(layout: str, batch: int, grid: tuple[int, int], channels: int, dtype: torch.dtype) -> torch.Tensor:
    """A student on no device: tokens with one prefix token, maps, or tokens with an axis beyond 32 bits."""
    length = 1 + grid[0] * grid[1]
    maps = torch.empty(batch, channels, *grid, dtype=dtype, device="meta")
    match layout:
        case "tokens":
            return torch.empty(batch, length, channels, dtype=dtype, device="meta")
        case "maps":
            return maps
        case "maps last":
            return maps.to(memory_format=torch.channels_last)
        case "far samples":
            strides = 2**31 + 16, channels, 1
        case "far channels":  # their stride is a 32-bit number, and only its products are not
            strides = length, 1, 2**31 // channels + 16
    last = sum((n - 1) * stride for n, stride in zip((batch, length, channels), strides, strict=True))
    return torch.empty(last + 1, dtype=dtype, device="meta").as_strided((batch, length, channels), strides)


def fits(used: Usage, family: str) -> bool:
    """Whether nothing spills and it fits on the chip: for what is not tuned on the smallest of the chips."""
    limit = SHARED_LIMIT[family] if family in guidance_configs.FAMILIES else SMALLEST_SHARED_LIMIT
    return used.stack == 0 and used.registers <= 255 and used.shared <= limit


def main() -> int:
    import pytest

    count = failed = 0
    names = "family", "case", "dtype", "variant", "kernel", "regs", "stack", "smem"
    print("{:6} {:12} {:8} {:29} {:18} {:>4} {:>5} {:>7}".format(*names))
    for family, (case, shape), dtype in itertools.product(MULTIPROCESSORS, SHAPES.items(), VARIANTS):
        seen = set()  # a variant shows the kernels that it changes
        for variant in VARIANTS[dtype]:
            with pytest.MonkeyPatch.context() as patch:
                launches = record(patch, family, [shape], dtype, **variant)
            words = [f"{key}={str(value).removeprefix('torch.')}" for key, value in variant.items()]
            for used in (usage(launch, int(family[2:])) for launch in launches):
                count, failed = count + 1, failed + (not fits(used, family))
                if used not in seen:
                    name = str(dtype).removeprefix("torch.")
                    print(f"{family:6} {case:12} {name:8} {' '.join(words):29} {used.kernel:18}", end=" ")
                    print(f"{used.registers:4} {used.stack:5} {used.shared:7}", flush=True)
                seen.add(used)
    print(f"{count} launches, {failed} spill or do not fit")
    return int(failed > 0)


if __name__ == "__main__":
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / "fastlg-aot"))
    sys.exit(main())
