"""A user's own `.beton` files, the format of FFCV, as a source; beton_read.py reads them, without FFCV itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastlg.data.sources.base import Dataset, Source
from fastlg.data.sources.layout.labels import Part, class_indices
from fastlg.data.sources.layout.paths import file_stamps
from fastlg.data.sources.layout.split_names import split_of
from fastlg.data.sources.layout.walk import LeftOut
from fastlg.data.store.beton_read import Beton, open_beton
from fastlg.errors import UserError


def beton_source(root: Path, wanted: Sequence[str], label_field: str | None, image_field: str | None) -> Dataset:
    """A .beton file, whose images have no split, or a folder of them with the split in their names: train.beton and
    test.beton, cifar_train.beton, train_500_0.50_90.beton.

    The images may be raw or JPEG. Class names are the numbers found in either split: the format keeps no names.

    Args:
        label_field, image_field: names of an int and an image field; None as in ``open_beton``.

    Raises:
        UserError: a file is damaged, foreign or empty, lacks the fields, or holds a number that is no class label;
            several files of one split.
    """
    folder = root if root.is_dir() else root.parent
    left = LeftOut(folder)
    files = beton_files(root, left)
    called = {split: path.name for split, path in files.items() if split != "all"}
    files = {split: path for split, path in files.items() if split in (*wanted, "all")}
    betons = {split: open_beton(path, image_field, label_field) for split, path in files.items()}
    parts = [Part(beton.labels, _namer(beton)) for beton in betons.values()]
    classes = class_indices(parts, str(root), "choose another int field with data.label_column")
    splits = {
        split: Source(
            where=str(root),
            labels=labels,
            class_names=classes.names,
            read=_reader(beton),
            name=_namer(beton),
            stamp=[str(root), file_stamps([beton.path], folder), image_field, label_field],
        )
        for (split, beton), labels in zip(betons.items(), classes.labels, strict=True)
    }
    return Dataset(".beton", splits, called, [*classes.notes, *left.notes()])


def _namer(beton: Beton):
    return lambda i: f"{beton.path.name} sample {i}"


def _reader(beton: Beton):
    """Reads a JPEG file, or uint8 pixels [H, W, 3]."""

    def read(i: int) -> bytes | np.ndarray:
        data = beton.stored(i)
        return data.tobytes() if beton.is_jpeg[i] else data.reshape(*beton.sizes[i], 3)

    return read


def beton_files(root: Path, left: LeftOut) -> dict[str, Path]:
    """The .beton files of ``root`` as {"train": ..., "test": ...}, those there are, or {"all": ...} where the only file
    names no split.

    Raises:
        UserError: two files are of one split.
    """
    if root.is_file():
        return {"all": root}
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() == ".beton" and path.name[0] != ".")
    names = {path: split_of(path.stem) for path in paths}
    if all(name is None for name in names.values()):
        return {"all": _only(root, paths)}
    chosen = {}
    for split in ("train", "test"):
        of_split = [path for path in paths if names[path] and names[path].split == split]
        if of_split:
            rank = min(names[path].rank for path in of_split)
            chosen[split] = _only(root, [path for path in of_split if names[path].rank == rank])
    for path in paths:
        if path not in chosen.values():
            left.add(".beton files that name no split that is used", path)
    return chosen


def _only(root: Path, paths: list[Path]) -> Path:
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths[:5])
        raise UserError(f"{root}: several .beton files for one split ({names}); point data.source at one of them")
    return paths[0]
