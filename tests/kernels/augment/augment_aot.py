"""Compiles the kernels of augmentation and cache ahead of time, as launched, and reads registers and spills.

``python tests/kernels/augment/augment_aot.py`` prints the table for sm_80 and sm_90; no GPU is needed.
"""

from __future__ import annotations

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

from fastlg_kernels.augment.rand_augment import RandAugmentDraw
from fastlg_kernels.augment.triton import launch as augment_triton
from fastlg_kernels.augment.triton import resize as resize_triton
from fastlg_kernels.gather import launch as gather_triton

CAPABILITIES = (80, 90)
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
TYPES = {
    torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64", torch.float32: "*fp32", torch.float64: "*fp64",
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.bool: "*i1",
}  # fmt: skip


class Launch(NamedTuple):
    kernel: object
    arguments: tuple
    options: dict


class Usage(NamedTuple):
    kernel: str
    registers: int
    stack_bytes: int


class Recorder:
    """Stands in for a kernel and keeps what it is launched with."""

    def __init__(self, kernel, launches: list[Launch]):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launches.append(Launch(self.kernel, arguments, options))


def record(monkeypatch, thorough: bool = True) -> list[Launch]:
    """The launches of a training batch, made by the launchers themselves on tensors without memory.

    thorough adds bilinear kernels, float32 views, and what only `rand_augment` launches.
    """
    launches: list[Launch] = []
    for module, names in (
        (resize_triton, ("coefficients_kernel", "first_pass_kernel", "second_pass_kernel")),
        (augment_triton, ("maps_kernel", "tables_kernel", "blur_kernel", "layer_kernel", "erase_kernel")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), launches))
    device, count, size = torch.device("meta"), 128, 224
    store = torch.empty(count, 32, 32, 3, dtype=torch.uint8, device=device)
    for interpolation in ("bicubic", "bilinear")[: 1 + thorough]:
        resize_triton.resize_crops(store, torch.tensor([[0, 0, 32, 32]] * count), size, interpolation, None)
    images = torch.empty(count, size, size, 3, dtype=torch.uint8, device=device)
    seeds = torch.empty(count, dtype=torch.int64, device=device)
    numbers = torch.empty(count, 2, dtype=torch.int64, device=device)
    draw = RandAugmentDraw(numbers, numbers > 0, numbers.to(torch.float64), False)
    erasing = augment_triton.Erasing(torch.empty(count, 1, 4, dtype=torch.int32, device=device), seeds, "pixel")
    normal = ((0.5,) * 3, (0.2,) * 3)
    for dtype, resample in ((torch.bfloat16, "bicubic"), (torch.float32, "bilinear"))[: 1 + thorough]:
        augment_triton.train_views(images, None, draw, normal, erasing, 32, dtype, resample, (124, 116, 104))
    augment_triton.erase(torch.empty(count, 3, size, size, device=device), erasing.rectangles, seeds, "pixel")
    if not thorough:
        return launches
    augment_triton.rand_augment(images, draw._replace(blurs=True), "bicubic", (124, 116, 104))
    augment_triton.rand_augment(images, draw, "bicubic", (124, 116, 104))
    return launches


def record_gather(monkeypatch) -> list[Launch]:
    """The launches that read the caches of a ResNet-56, whole rows and crops by both rules, in every storage type."""
    launches: list[Launch] = []
    kernel = gather_triton.gather_kernel
    monkeypatch.setattr(gather_triton, "gather_kernel", Recorder(kernel, launches))
    rows = torch.empty(128, dtype=torch.int64, device="meta")
    boxes, flip = torch.empty(128, 4, device="meta"), torch.empty(128, dtype=torch.bool, device="meta")
    for dtype, shape in (
        (torch.float16, (16, 32, 32)),
        (torch.bfloat16, (32, 16, 16)),
        (torch.float32, (64, 8, 8)),
        (torch.float16, (19, 7, 15)),
    ):
        source = torch.empty(50_000, *shape, dtype=dtype, device="meta")
        for box, mirrored, clip in ((None, None, False), (boxes, flip, False), (boxes, None, True)):
            gather_triton.gather_triton(source, rows, box, mirrored, clip_to_box=clip)
    return launches


def usage(launch: Launch, capability: int) -> Usage:
    """Compiles one launch as Triton's just-in-time path would, and reads what the binary needs."""
    signature, constants, attributes = {}, {}, {}
    for position, (parameter, value) in enumerate(zip(launch.kernel.params, launch.arguments, strict=True)):
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif value is None or parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
            signature[parameter.name] = "constexpr"
            constants[(position,)] = value
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        text = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", text)}
    return Usage(launch.kernel.fn.__name__, found["REG"], found["STACK"])


def main() -> int:
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        launches = record(patch) + record_gather(patch)
    rows = [(capability, usage(launch, capability)) for capability in CAPABILITIES for launch in launches]
    for capability, row in rows:
        print(f"sm_{capability} {row.kernel:22} {row.registers:4} registers {row.stack_bytes:4} bytes of stack")
    return int(any(row.stack_bytes for _, row in rows))


if __name__ == "__main__":
    sys.exit(main())
