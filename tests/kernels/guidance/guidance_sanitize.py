"""Small forward and backward passes through every guidance kernel and branch, for scripts/sanitize.sh."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import torch
from guidance_truth import draw

from fastlg_kernels import guidance_loss
from fastlg_kernels.guidance import launch as guidance_triton

PAIRS = [
    ((14, 14), 192, 16, (32, 32)),  # one window to a sample
    ((14, 14), 192, 32, (16, 16)),
    ((14, 14), 192, 64, (8, 8)),  # flat
    ((9, 9), 320, 40, (4, 4)),
    ((9, 9), 384, 40, (4, 4)),
    ((9, 9), 400, 40, (4, 4)),  # flat, split weight gradient
    ((7, 7), 512, 64, (8, 8)),  # four samples to a window, split weight gradient
    ((27, 19), 40, 19, (32, 32)),  # windows with a halo
    ((13, 9), 23, 19, (7, 15)),  # each side upsampled on one axis
    ((5, 3), 7, 3, (5, 3)),  # nothing resized
]
VARIANTS = ("tokens", "teachers channels last", "students as maps", "64-bit offsets", "few partial sums")


def run(variant: str, dtype: torch.dtype, device: str) -> float:
    """Loss of one forward and backward pass of all pairs together."""
    inputs = draw(3, PAIRS, dtype, prefix=0 if variant == "students as maps" else 1, device=device)
    students, teachers, grids = inputs.students, inputs.teachers, inputs.grids
    if variant == "teachers channels last":
        teachers = [teacher.to(memory_format=torch.channels_last) for teacher in teachers]
    if variant == "students as maps":
        students = [s.mT.unflatten(2, grid).contiguous() for s, grid in zip(students, grids, strict=True)]
    wide, bound = guidance_triton.needs_64_bit, guidance_triton.PARTIAL_BYTES
    with (
        mock.patch.object(guidance_triton, "needs_64_bit", (lambda *_: True) if variant == "64-bit offsets" else wide),
        mock.patch.object(guidance_triton, "PARTIAL_BYTES", 1 if variant == "few partial sums" else bound),
    ):
        loss = guidance_loss(students, teachers, *inputs[2:4], grids=grids, impl="triton")
        loss.backward()
    return loss.item()


def main(device: str = "cuda", dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16, torch.float32)) -> None:
    for dtype in dtypes:
        for variant in VARIANTS:
            print(dtype, variant, run(variant, dtype, device), flush=True)


if __name__ == "__main__":
    main()
