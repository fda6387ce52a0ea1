"""Open labelled images, whatever they are kept in, behind one interface (``Source`` in data/source.py).

A source is written as a path, whose kind is seen from what lies there, or as ``torchvision:NAME``, ``hf://OWNER/NAME``
or ``demo:mnist5k``.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fastlg.data.source import Source, existing_path, stratified_holdout
from fastlg.data.sources_arrays import demo_source, find_idx, hugging_face_source, idx_source, torchvision_source
from fastlg.data.sources_beton import beton_source
from fastlg.data.sources_files import chaoyang, class_folders, classes_with_images, flowers102, tiny_imagenet
from fastlg.data.sources_parquet import parquet_source, split_name
from fastlg.errors import UserError
from fastlg.sections import scheme_of

log = logging.getLogger(__name__)

SPLITS = ("train", "test")


def open_source(
    spec: str,
    split: str,
    *,
    label_column: str | None = None,
    image_column: str | None = None,
    download: bool = False,
    holdout: float = 0.0,
) -> Source:
    """Open one split of a dataset without decoding an image.

    Args:
        spec: path of a parquet or .beton file or a folder of them, class folders, IDX files, or the official layout of
            Flowers-102, Chaoyang or Tiny-ImageNet-200; or torchvision:NAME, hf://OWNER/NAME[/CONFIG], demo:mnist5k.
        split: "train" or "test" (a validation split stands in where there is no test split).
        label_column, image_column: for parquet and .beton, where the default choice does not fit.
        download: torchvision: and hf:// may use the network; else what was fetched before is used.
        holdout: above 0, both splits are cut from the training images: this share of every class is the test split,
            always the same images. A test split of the dataset itself is then left unused.

    Raises:
        UserError: the path or the split does not exist, an extra is missing, or the data cannot be used (empty, one
            class, a label out of range, ...).
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; choose train or test")
    opened = "train" if holdout else split
    source = _open(spec, opened, label_column, image_column, download)
    if source is None:
        raise _missing_split(spec, opened)
    if not holdout:
        return source
    kept, held = stratified_holdout(source.labels, holdout)
    return source.subset(kept if split == "train" else held, f"{split}, holdout {holdout}")


def _open(spec: str, split: str, label_column: str | None, image_column: str | None, download: bool) -> Source | None:
    rest = spec.partition(":")[2]
    match scheme_of(spec):
        case "torchvision":
            return torchvision_source(rest, split, download)
        case "hf":
            return hugging_face_source(spec, split, label_column, image_column, download)
        case "demo":
            return demo_source(rest, split)
    path = existing_path(spec)
    kind = source_kind(path)
    log.debug("%s: read as %s", path, kind)
    match kind:
        case "flowers102":
            return flowers102(path, split)
        case "chaoyang":
            return chaoyang(path, split)
        case "tiny_imagenet":
            return tiny_imagenet(path, split)
        case "idx":
            return idx_source(path, split)
        case "parquet":
            return parquet_source(path, split, label_column, image_column)
        case "beton":
            return beton_source(path, split, label_column, image_column)
        case _:
            return class_folders(path, split)


def source_kind(path: Path) -> str:
    """What lies at ``path``: flowers102, chaoyang, tiny_imagenet, idx, parquet, beton or class_folders.

    Raises:
        UserError: a file of another kind, an empty folder, or a folder that fits none of these, or two.
    """
    if path.is_file():
        if path.suffix.lower() in (".parquet", ".beton"):
            return path.suffix.lower()[1:]
        raise UserError(
            f"data.source={path}: a single file must be .parquet or .beton; give a folder of images, one per class"
        )
    if (path / "setid.mat").is_file() or (path / "imagelabels.mat").is_file():
        return "flowers102"
    if (path / "train.json").is_file() and (path / "test.json").is_file():
        return "chaoyang"
    if (path / "val" / "val_annotations.txt").is_file():
        return "tiny_imagenet"
    if find_idx(path, "train") or find_idx(path, "t10k"):
        return "idx"
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    if not entries:
        raise UserError(f"data.source={path}: the folder is empty; point it at a dataset")
    if tables := sorted(path.rglob("*.parquet")):
        return _parquet_or_class_folders(path, tables)
    if any(entry.suffix == ".beton" for entry in entries):
        return "beton"
    if any(entry.is_dir() for entry in entries):
        return "class_folders"
    raise UserError(
        f"data.source={path}: no class folders, parquet, .beton or IDX files here, only {min(e.name for e in entries)} "
        "and the like; expected train/CLASS/*.jpg and test/CLASS/*.jpg"
    )


def _parquet_or_class_folders(root: Path, tables: list[Path]) -> str:
    """Of a folder with parquet files ``tables``: somebody may keep notes or features in parquet beside their images.

    Raises:
        UserError: it holds class folders of images and a parquet dataset (at its top, in data/, or named by split).
    """
    classes = classes_with_images(root)
    if len({folder.name for folder in classes}) < 2:
        return "parquet"
    for table in tables:
        is_beside_images = any(folder in table.parents for folder in classes)
        if not is_beside_images and (table.parent in (root, root / "data") or split_name(table, root)):
            raise UserError(
                f"data.source={root}: both class folders of images ({classes[0].relative_to(root)}) and a parquet "
                f"dataset ({table.relative_to(root)}); move one of them away, or point data.source at the file"
            )
    return "class_folders"


def _missing_split(spec: str, split: str) -> UserError:
    if split == "train":
        return UserError(f"data.source={spec}: no training split; name its files or folder train")
    return UserError(
        f"data.source={spec}: no test split; add one (a folder test/, or test-*.parquet) or set data.holdout=0.2 to "
        "keep a fifth of every class for testing"
    )
