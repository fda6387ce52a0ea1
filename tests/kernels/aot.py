"""Launches kept instead of made, compiled ahead of time as Triton would ask for them, and what the binaries take."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

MULTIPROCESSORS = {"sm80": 108, "sm90": 132}
SHARED_LIMIT = {"sm80": 163 * 1024, "sm90": 227 * 1024}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32",
            torch.float64: "*fp64", torch.int64: "*i64"}  # fmt: skip


class Launch(NamedTuple):
    kernel: object
    grid: tuple
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
        return lambda *arguments, **keywords: self.launches.append(Launch(self.kernel, grid, arguments, keywords))


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
