"""A contact sheet: what is stored, what is cropped, what the student sees, what the teacher sees, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from fastlg.batch import Batch, Views
from fastlg.data.store.store import Store
from fastlg.errors import printable
from fastlg.files.atomic import whole

ROWS = ("stored, crop in red", "crop", "student", "teacher")
_GAP, _TEXT = 4, 14  # px


def contact_sheet(
    path: str | Path,
    store: Store,
    batch: Batch,
    views: Views,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    count: int = 16,
    tile: int = 112,
) -> None:
    """Write a PNG with one column for each of the first ``count`` samples of ``batch``.

    Args:
        store: where the batch was cut from, for the whole images.
        views: what ViewMaker made of ``batch``; without a teacher view the last row is left out.
        mean, std: those the views were normalised with.
        tile: side of one picture on the sheet, in pixels.
    """
    rows, labels = tiles(store, batch, views, mean=mean, std=std, count=count), batch.labels[:count].tolist()
    step = tile + _GAP
    sheet = Image.new("RGB", (_GAP + len(labels) * step, len(rows) * (step + _TEXT) + _TEXT), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (title, pictures) in enumerate(rows.items()):
        draw.text((_GAP, _TEXT + row * (step + _TEXT)), title, fill="black")
        for column, picture in enumerate(pictures):
            small = Image.fromarray(picture).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(small, (_GAP + column * step, 2 * _TEXT + row * (step + _TEXT)))
    for column, label in enumerate(labels):
        name = printable(store.class_names[label][: tile // 6])
        draw.text((_GAP + column * step, 0), name, fill="black")
    with whole(Path(path)) as partial:
        sheet.save(partial, format=Image.registered_extensions().get(Path(path).suffix.lower(), "PNG"))


def tiles(
    store: Store, batch: Batch, views: Views, *, mean: Sequence[float], std: Sequence[float], count: int
) -> dict[str, list[np.ndarray]]:
    """Row of ROWS -> uint8 [H, W, 3] of each of the first ``count`` samples; of the last, nothing without a teacher.

    The stored image is stretched to a square, with the crop outlined.
    """
    crops = list(batch.images[:count].cpu().numpy())
    boxes, side = batch.crop[:count].cpu().numpy(), max(112, batch.images.shape[1])
    rows = batch.sample_ids[:count].tolist()
    stored = [_with_box(store.images(row), box, side) for row, box in zip(rows, boxes, strict=True)]
    seen = [images for images in (views.student, views.teacher) if images.numel()]
    seen = [list(_to_uint8(images[:count], mean, std)) for images in seen]
    return dict(zip(ROWS, (stored, crops, *seen), strict=False))


def _to_uint8(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised float [N, 3, H, W] back to uint8 [N, H, W, 3]."""
    pixels = images.float().cpu().permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def _with_box(pixels: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """The stored image stretched to ``side`` px, its crop (y, x, h, w as fractions) outlined."""
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    y, x, h, w = (float(value) * (side - 1) for value in box)
    ImageDraw.Draw(image).rectangle((x, y, x + w, y + h), outline="red", width=max(1, side // 112))
    return np.asarray(image)
