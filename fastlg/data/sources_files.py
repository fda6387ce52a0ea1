"""Sources that are image files in folders: class folders and the official layouts of the paper's datasets."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np

from fastlg.data.matfile import read_mat
from fastlg.data.source import IMAGE_SUFFIXES, TEST_NAMES, TRAIN_NAMES, Source, file_source, read_bytes
from fastlg.errors import UserError

log = logging.getLogger(__name__)

CHAOYANG_CLASSES = ("normal", "serrated", "adenocarcinoma", "adenoma")  # labels 0..3 of the data set's own read-me


def class_folders(root: Path, split: str) -> Source | None:
    """ROOT/train/CLASS/**/image and ROOT/test (or val, validation); without those, ROOT/CLASS/** is all training.

    Classes are the folder names, sorted; hidden folders and files without an image extension are left out.

    Returns:
        None where the split does not exist.

    Raises:
        UserError: a class folder holds no image, or there is no class folder.
    """
    folder = split_folder(root, split)
    if folder is None:
        if split == "test" or split_folder(root, "test") is not None:
            return None
        folder = root
    classes = _visible_folders(folder)
    if not classes:
        raise UserError(f"{folder}: no class folders; expected one folder of images per class, or a parquet file")
    files: list[Path] = []
    labels: list[int] = []
    ignored: list[Path] = []
    for label, class_folder in enumerate(classes):
        found = _images_below(class_folder, ignored)
        if not found:
            raise UserError(f"{class_folder}: no image in this class folder; add images or remove the folder")
        files += found
        labels += [label] * len(found)
    if ignored:
        log.warning("%s: %d files have no image extension and are left out, %s first", folder, len(ignored), ignored[0])
    return file_source(str(root), root, files, labels, [path.name for path in classes])


def classes_with_images(root: Path) -> list[Path]:
    """The class folders of every split that ``class_folders`` would read, without those that hold no image."""
    splits = [folder for folder in (split_folder(root, "train"), split_folder(root, "test")) if folder]
    return [path for folder in splits or [root] for path in _visible_folders(folder) if _images_below(path, [])]


def split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split under one of its usual names in any case (Train/), or None."""
    folders = {path.name.lower(): path for path in _visible_folders(root)}
    for name in TRAIN_NAMES if split == "train" else TEST_NAMES:
        if name in folders:
            return folders[name]
    return None


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _images_below(folder: Path, ignored: list[Path]) -> list[Path]:
    """Image files below ``folder``, sorted; links to folders are followed, each real folder once."""
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() in IMAGE_SUFFIXES:
                found.append(path)
            elif not name.startswith("."):
                ignored.append(path)
    return sorted(found)


def flowers102(root: Path, split: str) -> Source:
    """Oxford Flowers-102 as published: jpg/image_00001.jpg, setid.mat, imagelabels.mat.

    Training uses the official train and validation sets together (2,040 images), as the paper does.

    Raises:
        UserError: a file is missing or damaged.
    """
    for name in ("setid.mat", "imagelabels.mat"):
        if not (root / name).is_file():
            raise UserError(f"{root}: {name} is missing; download it beside jpg/ from the Flowers-102 page")
    sets, labels = read_mat(root / "setid.mat"), read_mat(root / "imagelabels.mat").get("labels")
    wanted = ("trnid", "valid") if split == "train" else ("tstid",)
    if labels is None or any(name not in sets for name in wanted):
        raise UserError(f"{root}: setid.mat or imagelabels.mat lacks its arrays; download both again")
    ids = np.concatenate([sets[name] for name in wanted]).astype(np.int64)
    if len(ids) and not 1 <= ids.min() <= ids.max() <= len(labels):
        raise UserError(f"{root}: setid.mat names image {ids.max()}, imagelabels.mat has {len(labels)}; download both")
    files = [root / "jpg" / f"image_{i:05d}.jpg" for i in ids]
    names = _flowers102_names(int(labels.max()))
    return file_source(str(root), root, files, labels[ids - 1].astype(np.int64) - 1, names)


def _flowers102_names(count: int) -> list[str]:
    from torchvision.datasets import Flowers102  # late: slow to import, and the names are all it is for

    names = getattr(Flowers102, "classes", None)  # the data set's own files number its classes without naming them
    return list(names) if names and len(names) == count else [str(i) for i in range(1, count + 1)]


def chaoyang(root: Path, split: str) -> Source:
    """Chaoyang colon patches as published: train.json and test.json, lists of {"name": FILE, "label": 0..3}.

    Raises:
        UserError: a list is damaged or names a file that is missing.
    """
    listing = root / f"{split}.json"
    try:
        rows = json.loads(read_bytes(listing, str(root)))
        files = [root / row["name"] for row in rows]
        labels = [int(row["label"]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{listing}: expected a list of objects with 'name' and 'label' ({type(error).__name__}: {error}); "
            "download it again"
        ) from None
    return file_source(str(root), root, files, labels, CHAOYANG_CLASSES)


def tiny_imagenet(root: Path, split: str) -> Source:
    """Tiny-ImageNet-200 as published: train/WNID/images/*.JPEG, val/images with val/val_annotations.txt (the test set).

    Classes are the sorted WordNet ids of train/.

    Raises:
        UserError: an annotation names an unknown class or a missing file.
    """
    train = split_folder(root, "train")
    if train is None:
        raise UserError(f"{root}: no train folder beside val/val_annotations.txt; unpack the archive again")
    classes = [path.name for path in _visible_folders(train)]
    if split == "train":
        found = [_images_below(train / name, []) for name in classes]
        labels = np.repeat(np.arange(len(classes)), [len(files) for files in found])
        return file_source(str(root), root, [path for files in found for path in files], labels, classes)
    index = {name: label for label, name in enumerate(classes)}
    files, labels = [], []
    listing = root / "val" / "val_annotations.txt"
    for number, line in enumerate(listing.read_text().splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in index:
            raise UserError(f"{listing} line {number}: {line[:60]!r} names no class of train/; unpack the data again")
        files.append(root / "val" / "images" / fields[0])
        labels.append(index[fields[1]])
    return file_source(str(root), root, files, labels, classes)
