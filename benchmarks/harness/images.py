"""The images that benchmarks train on: made here, shaped like CIFAR, so that nothing is downloaded.

No duration depends on what the images show: every operation runs for every image that draws it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fastlg.data.store.make import prepare

CLASSES = 100


def make_source(folder: Path, count: int, test: int = 100, side: int = 32) -> Path:
    """``folder``/{train,test}/CLASS/NNNN.png: smooth colour fields with noise, ``count`` and ``test`` of them."""
    generator = np.random.default_rng(0)
    for split, number in (("train", count), ("test", test)):
        for label in range(CLASSES):
            (folder / split / f"c{label:03d}").mkdir(parents=True, exist_ok=True)
        noise = generator.integers(-12, 13, (64, side, side, 3), dtype=np.int16)
        coarse = generator.integers(0, 256, (number, 4, 4, 3), dtype=np.uint8)
        for index, colours in enumerate(coarse):
            image = np.asarray(Image.fromarray(colours).resize((side, side), Image.BICUBIC), np.int16)
            pixels = (image + noise[index % len(noise)]).clip(0, 255).astype(np.uint8)
            path = folder / split / f"c{index % CLASSES:03d}" / f"{index:06d}.png"
            Image.fromarray(pixels).save(path, compress_level=1)
    return folder


def make_store(folder: Path, count: int, test: int = 100) -> Path:
    """A prepared store of so many made images for training and for testing, below ``folder``."""
    store = folder / f"store-{count}"
    if not store.exists():
        prepare(str(make_source(folder / f"images-{count}", count, test)), store)
    return store
