"""One small forward and backward pass through every guidance kernel and branch, for scripts/sanitize.sh."""

from __future__ import annotations

import torch
from guidance_truth import draw

from fastlg_kernels import guidance_loss

PAIRS = [
    ((14, 14), 192, 16, (32, 32)),  # one window to a sample
    ((14, 14), 192, 32, (16, 16)),
    ((14, 14), 192, 64, (8, 8)),  # flat
    ((7, 7), 512, 64, (8, 8)),  # four samples to a window, split weight gradient
    ((27, 19), 40, 19, (32, 32)),  # windows with a halo
    ((13, 9), 23, 19, (7, 15)),  # each side upsampled on one axis
    ((5, 3), 7, 3, (5, 3)),  # nothing resized
]


def main() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for channels_last in (False, True):
            inputs = draw(3, PAIRS, dtype, prefix=1, device="cuda")
            teachers = inputs.teachers
            if channels_last:
                teachers = [teacher.to(memory_format=torch.channels_last) for teacher in teachers]
            loss = guidance_loss(inputs.students, teachers, *inputs[2:4], grids=inputs.grids, impl="triton")
            loss.backward()
            print(dtype, "channels last" if channels_last else "channels first", loss.item())


if __name__ == "__main__":
    main()
