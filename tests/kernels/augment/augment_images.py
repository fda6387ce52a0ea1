"""Images the augmentation tests run on: made ones always, real photographs and CIFAR images where they are at hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

KINDS = ("smooth", "noise", "steps", "flowers", "cifar")


def images_of(kind: str, shared: Path | None, height: int, width: int) -> torch.Tensor:
    """uint8 [3, height, width, 3] of one of KINDS."""
    generator = torch.Generator().manual_seed(7)
    match kind:
        case "smooth":
            coarse = torch.rand(3, 3, 6, 6, generator=generator) * 300 - 20
            fine = torch.randn(3, 3, height, width, generator=generator) * 3
            values = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic") + fine
            return values.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        case "noise":
            return torch.randint(0, 256, (3, height, width, 3), generator=generator, dtype=torch.uint8)
        case "steps":
            return _steps(height, width)
    import pytest

    pytest.importorskip("pyarrow")
    if shared is None:
        pytest.skip("no real images here")
    images = [image.resize((width, height), Image.Resampling.LANCZOS) for image in real_images(shared, kind, 3)]
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])


def real_images(shared: Path, kind: str, count: int) -> list[Image.Image]:
    """The first images of the Flowers-17 test split (kind "flowers") or of CIFAR-100 (kind "cifar")."""
    from pyarrow import parquet

    folder, column = {"flowers": ("flowers17", "image"), "cifar": ("cifar100-mini", "img")}[kind]
    batch = next(parquet.ParquetFile(shared / "data" / folder / "test-00000-of-00001.parquet").iter_batches(count))
    return [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in batch.column(column).to_pylist()]


def _steps(height: int, width: int) -> torch.Tensor:
    """A ramp, a hard-edged board, and an image with a flat, a two-valued and a low-contrast channel."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramp = torch.stack((row, column, row + column), dim=-1) * 255 // (height + width)
    board = (((row // 3 + column // 5) % 2) * 255)[..., None].expand(-1, -1, 3)
    poor = torch.stack((torch.full_like(row, 77), (row > 2) * 201, 100 + (row * column) % 9), dim=-1)
    return torch.stack((ramp, board, poor)).to(torch.uint8)


def to_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.numpy())
