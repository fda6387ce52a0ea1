"""Compiles the guidance kernels ahead of time, as the launcher would ask for them, and reads registers and spills.

``python tests/kernels/guidance_aot.py`` prints the table for every shape, dtype and layout (minutes).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastlg_kernels import guidance_triton

MULTIPROCESSORS = {"sm80": 108, "sm90": 132}
SHARED_LIMIT = {"sm80": 163 * 1024, "sm90": 227 * 1024}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
KERNELS = ("flat_kernel", "window_kernel", "weight_grad_kernel", "token_grad_kernel", "reduce_kernel")
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}

# name -> (student grid, C, D, teacher grid): the students of the paper beside ResNet-56, and odd ones
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
}


class Launch(NamedTuple):
    kernel: object
    arguments: tuple
    keywords: dict


class Usage(NamedTuple):
    kernel: str
    registers: int
    stack: int
    shared: int


class Recorder:
    """Stands in for a kernel and keeps what it is launched with."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *arguments, **keywords: self.launches.append(Launch(self.kernel, arguments, keywords))


def record(monkeypatch, family, shape, dtype, *, allow_tf32=False, channels_last=False, maps=False, wide=False):
    """Launches of forward and backward for one pair at batch 128, from the launcher itself, on meta tensors."""
    grid, channels, dim, teacher_grid = shape
    launches: list[Launch] = []
    for name in KERNELS:
        kernel = getattr(guidance_triton, name)
        monkeypatch.setattr(
            guidance_triton, name, Recorder(kernel.kernel if isinstance(kernel, Recorder) else kernel, launches)
        )
    monkeypatch.setattr(guidance_triton, "device_family", lambda _: (family, MULTIPROCESSORS[family]))
    if wide:
        monkeypatch.setattr(guidance_triton, "needs_64_bit", lambda *_: True)
    student = torch.empty(128, 1 + grid[0] * grid[1], channels, dtype=dtype, device="meta")
    if maps:
        student = torch.empty(128, channels, *grid, dtype=dtype, device="meta")
    teacher = torch.empty(128, dim, *teacher_grid, dtype=dtype, device="meta")
    if channels_last:
        teacher = teacher.to(memory_format=torch.channels_last)
    weight, bias = torch.empty(dim, channels, device="meta"), torch.empty(dim, device="meta")
    _, residuals, _ = guidance_triton.forward([(student, teacher, weight, bias, grid)], [1], True, True, allow_tf32)
    upstream = torch.empty((), device="meta")
    guidance_triton.token_grad(residuals[0], weight, upstream, 1.0, torch.empty_like(student), allow_tf32)
    return launches


def compiled(launch: Launch, capability: int):
    """Compile one launch as Triton's just-in-time path would specialise it (pointers aligned to 16 bytes)."""
    names = launch.kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False)) | {
        key: value for key, value in launch.keywords.items() if key not in OPTIONS
    }
    fixed = {parameter.name for parameter in launch.kernel.params if parameter.do_not_specialize}
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(names):
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float) and name.islower():
            signature[name] = "fp32"
        elif name.isupper() or (value == 1 and name not in fixed):
            signature[name] = "constexpr"
            constants[(position,)] = value
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            if name not in fixed and value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {key: value for key, value in launch.keywords.items() if key in OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def usage(launch: Launch, capability: int) -> Usage:
    """Registers per thread, stack (which is where spills go) and shared memory in bytes, read from the binary."""
    binary = compiled(launch, capability)
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        text = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", text)}
    return Usage(launch.kernel.fn.__name__, found["REG"], found["STACK"], binary.metadata.shared)


def main() -> int:
    import pytest

    spilled = 0
    names = "family", "case", "dtype", "tf32", "teacher", "kernel", "regs", "stack", "smem"
    print("{:6} {:12} {:8} {:5} {:8} {:20} {:>4} {:>5} {:>7}".format(*names))
    for family in MULTIPROCESSORS:
        for case, shape in SHAPES.items():
            for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, False), (torch.float32, True)):
                for last in (False, True):
                    with pytest.MonkeyPatch.context() as patch:
                        launches = record(patch, family, shape, dtype, allow_tf32=tf32, channels_last=last)
                        rows = [usage(launch, int(family[2:])) for launch in launches]
                    for row in rows:
                        name, layout = str(dtype).removeprefix("torch."), "last" if last else "first"
                        spilled += row.stack > 0 or row.shared > SHARED_LIMIT[family]
                        print(f"{family:6} {case:12} {name:8} {tf32!s:5} {layout:8} {row.kernel:20}", end=" ")
                        print(f"{row.registers:4} {row.stack:5} {row.shared:7}", flush=True)
    print(f"{spilled} launches spill or do not fit")
    return int(spilled > 0)


if __name__ == "__main__":
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / "fastlg-aot"))
    sys.exit(main())
