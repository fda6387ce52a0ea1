"""A contact sheet: what is stored, what is cropped, what the student sees, what the teacher sees, side by side."""

from __future__ import annotations

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
    count = min(count, len(batch.labels))
    seen = [images for images in (views.student, views.teacher) if images.numel()]
    seen = [_to_uint8(images[:count], mean, std) for images in seen]
    titles = ROWS[: 2 + len(seen)]
    crops, boxes = batch.images[:count].cpu().numpy(), batch.crop[:count].cpu().numpy()
    ids, labels = batch.sample_ids[:count].tolist(), batch.labels[:count].tolist()
    step = tile + _GAP
    sheet = Image.new("RGB", (_GAP + count * step, len(titles) * (step + _TEXT) + _TEXT), "white")
    draw = ImageDraw.Draw(sheet)
    for row, title in enumerate(titles):
        draw.text((_GAP, _TEXT + row * (step + _TEXT)), title, fill="black")
    for column in range(count):
        left = _GAP + column * step
        name = printable(store.class_names[labels[column]][: tile // 6])
        draw.text((left, 0), name, fill="black")
        stored = _with_box(store.images(ids[column]), boxes[column], tile)
        for row, picture in enumerate([stored, crops[column], *(images[column] for images in seen)]):
            image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
            sheet.paste(image.resize((tile, tile), Image.Resampling.NEAREST), (left, 2 * _TEXT + row * (step + _TEXT)))
    with whole(Path(path)) as partial:
        sheet.save(partial, format=Image.registered_extensions().get(Path(path).suffix.lower(), "PNG"))


def _to_uint8(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Normalised float [N, 3, H, W] back to uint8 [N, H, W, 3]."""
    pixels = images.float().cpu().permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def _with_box(pixels: np.ndarray, box: np.ndarray, tile: int) -> Image.Image:
    """The stored image stretched to a tile, its crop (y, x, h, w as fractions) outlined."""
    image = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.BILINEAR)
    y, x, h, w = (float(value) * (tile - 1) for value in box)
    ImageDraw.Draw(image).rectangle((x, y, x + w, y + h), outline="red")
    return image
