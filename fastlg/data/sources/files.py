"""Sources that are image files in the official layouts of the paper's datasets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastlg.data.sources.base import Dataset
from fastlg.data.sources.layout.labels import MAX_LABEL, Part, class_indices
from fastlg.data.sources.layout.paths import file_source, listed_files, read_listing
from fastlg.data.sources.layout.walk import LeftOut, images_below, visible_folders
from fastlg.data.sources.matfile import read_mat
from fastlg.errors import UserError

CHAOYANG_CLASSES = ("normal", "serrated", "adenocarcinoma", "adenoma")  # labels 0..3 of the data set's own read-me
MAX_LISTING = 32 << 20  # bytes; JSON takes twenty times as much memory, and the official lists have less than 1 MiB


def flowers102(root: Path, wanted: Sequence[str]) -> Dataset:
    """Oxford Flowers-102 as published: jpg/image_00001.jpg, setid.mat, imagelabels.mat.

    Training uses the official train and validation sets together (2,040 images), as the paper does.

    Raises:
        UserError: a file is missing or damaged.
    """
    for name in ("setid.mat", "imagelabels.mat"):
        if not (root / name).is_file():
            raise UserError(f"{root}: {name} is missing; download it beside jpg/ from the Flowers-102 page")
    sets, labels = read_mat(root / "setid.mat"), read_mat(root / "imagelabels.mat").get("labels")
    if labels is None or any(name not in sets for name in ("trnid", "valid", "tstid")):
        raise UserError(f"{root}: setid.mat or imagelabels.mat lacks its arrays; download both again")
    labels = _whole(labels, root / "imagelabels.mat", MAX_LABEL) - 1
    names = _flowers102_names(int(labels.max()) + 1)
    splits = {}
    for split, parts in (("train", ("trnid", "valid")), ("test", ("tstid",))):
        if split not in wanted:
            continue
        ids = np.concatenate([_whole(sets[part], root / "setid.mat", len(labels)) for part in parts])
        files = listed_files(str(root), root, [f"jpg/image_{i:05d}.jpg" for i in ids])
        splits[split] = file_source(str(root), root, files, labels[ids - 1], names)
    return Dataset("Flowers-102", splits, {"train": "trnid and valid", "test": "tstid"})


def _whole(values: np.ndarray, path: Path, largest: int) -> np.ndarray:
    """int64 [N]; MATLAB writes whole numbers as floats. Raises UserError for what is not among 1 to ``largest``."""
    wrong = ~((values >= 1) & (values <= largest) & (values == np.floor(values)))
    if len(values) == 0 or wrong.any():
        found = f"{values[np.argmax(wrong)]} where" if len(values) else "nothing where"
        raise UserError(f"{path}: {found} whole numbers from 1 to {largest} belong; download both .mat files again")
    return values.astype(np.int64)


def _flowers102_names(count: int) -> list[str]:
    from torchvision.datasets import Flowers102  # late: slow to import, and the names are all it is for

    names = getattr(Flowers102, "classes", None)  # the data set's own files number its classes without naming them
    return list(names) if names and len(names) == count else [str(i) for i in range(1, count + 1)]


def chaoyang(root: Path, wanted: Sequence[str]) -> Dataset:
    """Chaoyang colon patches as published: train.json and test.json, or one of them alone, lists of {"name": FILE,
    "label": 0..3}.

    Raises:
        UserError: a list is damaged or names a file that is missing.
    """
    splits = {}
    listings = {split: root / f"{split}.json" for split in ("train", "test") if (root / f"{split}.json").exists()}
    for split in [split for split in wanted if split in listings]:
        listing = listings[split]
        try:
            rows = json.loads(read_listing(listing, MAX_LISTING))
            if not isinstance(rows, list):
                raise TypeError(f"a {type(rows).__name__}")
            names, labels = [row["name"] for row in rows], [row["label"] for row in rows]
            if not all(isinstance(name, str) for name in names):
                raise TypeError("a name is no text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{listing}: expected a list of objects with 'name' and 'label' ({type(error).__name__}: "
                f"{str(error)[:200]}); download it again"
            ) from None

        def row_name(i: int, listing: Path = listing) -> str:
            return f"{listing} entry {i}"

        found = class_indices([Part(labels, row_name, CHAOYANG_CLASSES)], str(root), "download the list again")
        files = listed_files(str(root), root, names)
        splits[split] = file_source(str(root), root, files, found.labels[0], CHAOYANG_CLASSES)
    return Dataset("Chaoyang", splits, {split: listing.name for split, listing in listings.items()})


def tiny_imagenet(root: Path, wanted: Sequence[str]) -> Dataset:
    """Tiny-ImageNet-200 as published: train/WNID/images/*.JPEG, val/images with val/val_annotations.txt (the test set).

    Classes are the sorted WordNet ids of train/; without train/, those that the annotations name.

    Raises:
        UserError: an annotation names an unknown class or a missing file.
    """
    left, splits, train = LeftOut(root), {}, root / "train"
    classes = [path.name for path in visible_folders(train, left)] if train.is_dir() else None
    if "train" in wanted and classes is not None:
        found = [images_below(train / name, left) for name in classes]
        labels = np.repeat(np.arange(len(classes)), [len(files) for files in found])
        splits["train"] = file_source(str(root), root, [path for files in found for path in files], labels, classes)
    if "test" in wanted:
        listing = root / "val" / "val_annotations.txt"
        rows = []
        for number, line in enumerate(read_listing(listing, MAX_LISTING).decode("utf-8", "replace").splitlines(), 1):
            fields = line.split("\t")
            if len(fields) < 2 or (classes is not None and fields[1] not in classes):
                raise UserError(
                    f"{listing} line {number}: {line[:60]!r} names no class of train/; unpack the data again"
                )
            rows.append(fields)
        names = classes if classes is not None else sorted({fields[1] for fields in rows})
        index = {name: label for label, name in enumerate(names)}
        files = listed_files(str(listing), root / "val" / "images", [fields[0] for fields in rows])
        splits["test"] = file_source(str(root), root, files, [index[fields[1]] for fields in rows], names)
    return Dataset("Tiny-ImageNet", splits, {"test": "val/"}, left.notes())
