"""A user's own `.beton` files, the format of FFCV, as a source; read by data/beton.py, without FFCV itself."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np

from fastlg.data.beton import Beton, open_beton
from fastlg.data.source import TEST_NAMES, TRAIN_NAMES, Source, file_stamps
from fastlg.errors import UserError

log = logging.getLogger(__name__)

MAX_LABEL = 1 << 20  # a larger number is an id, not a class


def beton_source(root: Path, split: str, label_field: str | None, image_field: str | None) -> Source | None:
    """A .beton file (all of it is training data), or a folder of them with the split in their names: train.beton and
    test.beton, cifar_train.beton, train_500_0.50_90.beton.

    The images may be raw or JPEG. Class names are the numbers 0 to the largest label of either split: the format keeps
    no names.

    Args:
        label_field, image_field: names of an int and an image field; None as in ``open_beton``.

    Returns:
        None where the split does not exist.

    Raises:
        UserError: a file is damaged, foreign or empty, lacks the fields, or holds a number that is no class label;
            several files of one split.
    """
    files = beton_files(root)
    if split not in files:
        return None
    betons = {name: open_beton(path, image_field, label_field) for name, path in files.items()}
    largest = max(int(beton.labels.max()) for beton in betons.values())
    if largest > MAX_LABEL:
        raise UserError(f"{root}: label {largest} is no class; choose another int field with data.label_column")
    beton, folder = betons[split], root if root.is_dir() else root.parent
    return Source(
        where=str(root),
        labels=beton.labels,
        class_names=[str(i) for i in range(largest + 1)],
        read=lambda i: _read(beton, i),
        name=lambda i: f"{beton.path.name} sample {i}",
        stamp=[str(root), file_stamps([beton.path], folder), image_field, label_field],
    )


def _read(beton: Beton, i: int) -> bytes | np.ndarray:
    """A JPEG file, or uint8 pixels [H, W, 3]."""
    data = beton.stored(i)
    return data.tobytes() if beton.is_jpeg[i] else data.reshape(*beton.sizes[i], 3)


def beton_files(root: Path) -> dict[str, Path]:
    """The .beton files of ``root`` as {"train": ..., "test": ...}; a split without a file is left out.

    Raises:
        UserError: two files are of one split.
    """
    if root.is_file():
        return {"train": root}
    paths = sorted(root.glob("*.beton"))
    found: dict[str, list[Path]] = {}
    for path in paths:
        words = re.findall("[a-z]+", path.stem.lower())
        found.setdefault(next((w for w in words if w in TRAIN_NAMES + TEST_NAMES), ""), []).append(path)
    train = next((found[name] for name in TRAIN_NAMES if name in found), found[""] if set(found) == {""} else [])
    test = next((found[name] for name in TEST_NAMES if name in found), [])
    for group in (train, test):
        if len(group) > 1:
            names = ", ".join(path.name for path in group[:5])
            raise UserError(f"{root}: several .beton files for one split ({names}); point data.source at one of them")
    if left := [path for path in paths if path not in train + test]:
        log.warning("%s: %s names no split that is used and is left out", root, left[0].name)
    return {split: group[0] for split, group in (("train", train), ("test", test)) if group}
