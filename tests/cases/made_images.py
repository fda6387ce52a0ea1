"""Small image folders that tests make for themselves."""

from __future__ import annotations

import numpy as np
from PIL import Image


def write_images(folder, *, per_class: int, seed: int) -> None:
    """folder/{blue,green,red}/NNN.png: noise tinted by class, sizes differ by class; learnable, never constant."""
    generator = np.random.default_rng(seed)
    for label, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 120, (20 + label, 24, 3))
            pixels[..., 2 - label] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")
