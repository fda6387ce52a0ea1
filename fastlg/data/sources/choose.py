"""Open labelled images, whatever they are kept in, behind one interface (``Source`` in data/sources/base.py).

A source is written as a path, whose kind is seen from what lies there, or as ``torchvision:NAME``, ``hf://OWNER/NAME``
or ``demo:mnist5k``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from fastlg.config.sections import scheme_of
from fastlg.data.sources.arrays import demo_source, find_idx, hugging_face_source, idx_source, torchvision_source
from fastlg.data.sources.base import Dataset, Source, check_several_classes, match_classes, some, stratified_holdout
from fastlg.data.sources.beton import beton_source
from fastlg.data.sources.files import chaoyang, flowers102, tiny_imagenet
from fastlg.data.sources.folders import class_folders, classes_with_images
from fastlg.data.sources.layout.paths import existing_path
from fastlg.data.sources.layout.split_names import split_of
from fastlg.data.sources.layout.walk import files_below, only_files
from fastlg.data.sources.objects import SCHEME
from fastlg.data.sources.parquet import parquet_source, split_name
from fastlg.data.store.store import is_store, open_store
from fastlg.errors import UserError
from fastlg.files.kinds import kind_of_file

log = logging.getLogger(__name__)

SPLITS = ("train", "test")
VAL = "val"
VAL_SEED = 1  # not that of the holdout, which may be cut from the same images before


def open_source(spec: str, split: str, **options) -> Source:
    """Open one split of a dataset without decoding an image; see ``open_splits`` for ``options`` and errors."""
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; choose train or test")
    return open_splits(spec, (split,), **options)[split]


def open_splits(
    spec: str,
    splits: Sequence[str] = SPLITS,
    *,
    label_column: str | None = None,
    image_column: str | None = None,
    download: bool = False,
    holdout: float = 0.0,
    val: float | str = 0.0,
) -> dict[str, Source]:
    """Open splits of a dataset, with one list of classes, without decoding an image; what was found is logged.

    Args:
        spec: path of a parquet or .beton file or a folder of them, class folders, IDX files, or the official layout of
            Flowers-102, Chaoyang or Tiny-ImageNet-200; or torchvision:NAME, hf://OWNER/NAME[/CONFIG], demo:mnist5k.
        splits: "train", "test" (a validation split stands in where there is no test split) or both.
        label_column, image_column: for parquet and .beton, where the default choice does not fit.
        download: torchvision: and hf:// may use the network; else what was fetched before is used.
        holdout: above 0, both splits are cut from the training images: this share of every class is the test split,
            always the same images. A test split of the dataset itself is then left unused, which is said.
        val: above 0, or "split": what is given has a third split beside train, "val", which is this share of every
            class of the training images, always the same ones, or the validation split of the dataset itself.

    Raises:
        UserError: the path or the split does not exist, an extra is missing, or the data cannot be used (empty, one
            class, a label that is none, classes that differ between the splits, ...).
    """
    wanted = ("train",) if holdout else SPLITS
    found = _open(spec, (*wanted, VAL) if val == "split" else wanted, label_column, image_column, download)
    return chosen_splits(found, spec, splits, holdout, val)


def chosen_splits(
    found: Dataset, spec: str, splits: Sequence[str] = SPLITS, holdout: float = 0.0, val: float | str = 0.0
) -> dict[str, Source]:
    """Of what was found at ``spec`` the splits that are asked for; see ``open_splits``."""
    whole = found.splits.pop("all", None)
    if whole is not None:
        found.splits = {"train": whole}
    if "train" in found.splits and "test" in found.splits and len(splits) == 2:
        found.splits["test"], notes = match_classes(found.splits["train"], found.splits["test"])
        found.notes += notes
    if holdout and "train" in found.splits:
        if "test" in found.called:
            left = f"({found.called['test']}), as data.holdout={holdout:g} cuts one from the training images"
            found.notes.append(f"left out: the test split {left}")
        train = found.splits["train"]
        for split, rows in zip(SPLITS, stratified_holdout(train, holdout), strict=True):
            found.splits[split] = train.subset(rows, f"{split}, holdout {holdout}")
            found.called[split] = found.called.get("train", "all") if split == "train" else f"holdout {holdout:g}"
    for split in ("train",) if holdout else splits:
        if split not in found.splits:
            raise _missing_split(spec, split, found)
    if val and "train" in splits:
        splits = (*splits, VAL)
        _add_validation(found, spec, val)
    if "train" in splits:
        check_several_classes(found.splits["train"])
    log.info("%s", found.line(spec), extra={"once": True})
    return {split: found.splits[split] for split in splits}


def _add_validation(found: Dataset, spec: str, val: float | str) -> None:
    """Puts the split "val" among those of ``found``. Raises UserError."""
    train = found.splits["train"]
    if val != "split":
        rows = stratified_holdout(train, val, VAL_SEED, "data.val")
        for split, own in zip(("train", VAL), rows, strict=True):
            found.splits[split] = train.subset(own, f"{split}, val {val}")
        found.called[VAL] = f"val {val:g} of the training images"
    elif VAL not in found.splits:
        raise UserError(
            f"data.source={spec}: no validation split beside its test split; give a share of the training images, as "
            "data.val=0.1"
        )
    else:
        found.splits[VAL], notes = match_classes(train, found.splits[VAL], "validation")
        found.notes += notes


def open_to_measure(
    spec: str,
    class_names: list[str],
    *,
    label_column: str | None = None,
    image_column: str | None = None,
    download: bool = False,
) -> Source:
    """The images of ``spec`` on which a model of these classes is measured: the test split, or all images where there
    are no splits. Classes are matched by name; some of them may be missing.

    Raises:
        UserError: there are only training images, or images of a class that the model does not know; else as
            ``open_splits``.
    """
    return measurable(_open(spec, ("test",), label_column, image_column, download), spec, class_names)


def measurable(found: Dataset, spec: str, class_names: list[str]) -> Source:
    """Of what was found at ``spec`` the images to measure a model of these classes on; see ``open_to_measure``."""
    split = next((name for name in ("test", "all") if name in found.splits), None)
    if split is None:
        raise _missing_split(spec, "test", found, to_train=False)
    source = found.splits[split] = found.splits[split].with_classes(class_names)
    present = set(source.labels.tolist())
    if missing := [name for label, name in enumerate(class_names) if label not in present]:
        found.notes.append(f"{len(missing)} of the run's {len(class_names)} classes have no image: {some(missing)}")
    log.info("%s", found.line(spec), extra={"once": True})
    return source


def dataset_of_paths(
    paths: dict[str, str],
    label_column: str | None = None,
    image_column: str | None = None,
    download: bool = False,
) -> Dataset:
    """Splits that lie in places of their own, {name: source}: all the images of each, or its split of that name.

    Raises:
        UserError: a name that is no split, two of one split, or a place without the images; else as ``open_splits``.
    """
    splits: dict[str, Source] = {}
    called, notes = {}, []
    for name, spec in paths.items():
        known = split_of(name)
        if known is None or known.split in splits:
            why = "is no split" if known is None else f"is a {known.split} split, and there is one"
            raise UserError(f"data: {name!r} {why}; give train, and test or validation")
        found = _open(spec, (known.split,), label_column, image_column, download)
        own = found.splits.get("all", found.splits.get(known.split))
        if own is None:
            raise UserError(f"data[{name!r}]={spec}: no {known.split} images there; give their folder or file")
        splits[known.split], called[known.split] = own, spec
        notes += found.notes
    return Dataset("splits in places of their own", splits, called, notes)


def _open(
    spec: str, wanted: Sequence[str], label_column: str | None, image_column: str | None, download: bool
) -> Dataset:
    rest = spec.partition(":")[2]
    columns = label_column, image_column
    with_val, wanted = wanted, [split for split in wanted if split != VAL]  # which most kinds have none of
    match scheme_of(spec):
        case "torchvision":
            return _without_columns(torchvision_source(rest, wanted, download), *columns)
        case "hf":
            return hugging_face_source(spec, with_val, *columns, download)
        case "demo":
            return _without_columns(demo_source(rest, wanted), *columns)
    try:
        path = existing_path(spec)
        kind = source_kind(path)
        log.debug("%s: read as %s", path, kind)
        if kind in ("parquet", "beton"):
            own = (beton_source, wanted) if kind == "beton" else (parquet_source, with_val)
            return own[0](path, own[1], *columns)
        return _without_columns(_BY_PATH[kind](path, with_val if kind == "class_folders" else wanted), *columns)
    except OSError as error:  # a folder without permission, one that vanished
        where = f" {error.filename}" if error.filename else ""
        raise UserError(f"data.source={spec}: cannot read{where} ({error.strerror or error}); mend it") from None


def _without_columns(found: Dataset, *columns: str | None) -> Dataset:
    for name, column in zip(("label_column", "image_column"), columns, strict=True):
        if column is not None:
            found.notes.append(f"data.{name}={column} is not used: {found.kind} have no columns")
    return found


def store_source(path: Path, wanted: Sequence[str]) -> Dataset:
    """The images of a store, for measuring a model whose classes are in another order."""
    splits = {}
    for split in wanted:
        store = open_store(path, split)
        splits[split] = Source(
            where=str(path),
            labels=store.labels,
            class_names=store.class_names,
            read=store.images,
            name=lambda i, split=split: f"{split} image {i}",
            stamp=[store.fingerprint],
        )
    return Dataset("a store", splits, {split: f"{split}/" for split in SPLITS})


_BY_PATH = {
    "store": store_source,
    "flowers102": flowers102,
    "chaoyang": chaoyang,
    "tiny_imagenet": tiny_imagenet,
    "idx": idx_source,
    "class_folders": class_folders,
}


def source_kind(path: Path) -> str:
    """What lies at ``path``: store, flowers102, chaoyang, tiny_imagenet, idx, parquet, beton or class_folders.

    Raises:
        UserError: a file of another kind, an empty folder, or a folder that fits none of these, or two.
    """
    if path.is_file():
        if path.suffix.lower() in (".parquet", ".beton"):
            return path.suffix.lower()[1:]
        found = kind_of_file(path)
        is_it = f" is {found.what}" if found.what else ""
        raise UserError(f"data.source={path}{is_it}: a single file must be .parquet or .beton; {found.fix}")
    if is_store(path):
        return "store"
    if (path / "setid.mat").is_file() or (path / "imagelabels.mat").is_file():
        return "flowers102"
    lists = [split for split in SPLITS if (path / f"{split}.json").is_file()]
    if len(lists) == 2 and len(classes_with_images(path)) < 2:
        return "chaoyang"
    if (path / "val" / "val_annotations.txt").is_file():
        return "tiny_imagenet"
    if any(find_idx(path, prefix) for prefix in ("train", "t10k", "test")):
        return "idx"
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    if not entries:
        raise UserError(f"data.source={path}: the folder is empty; point it at a dataset")
    if tables := files_below(path, ".parquet") + [entry for entry in entries if entry.suffix.lower() == ".beton"]:
        return _tables_or_class_folders(path, tables)
    if lists and len(classes_with_images(path)) < 2:
        return "chaoyang"
    is_run = (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()
    if any(entry.is_dir() for entry in entries) and not is_run:
        return "class_folders"
    raise UserError(
        f"data.source={path}: no class folders, parquet, .beton or IDX files here, {only_files(path)}; expected "
        "train/CLASS/*.jpg and test/CLASS/*.jpg"
    )


def _tables_or_class_folders(root: Path, tables: list[Path]) -> str:
    """Of a folder with parquet and .beton files ``tables``: somebody may keep notes or features in parquet beside their
    images.

    Raises:
        UserError: it holds two of class folders of images, a parquet dataset (at its top, in data/, or named by split)
            and .beton files.
    """
    classes = classes_with_images(root)
    is_images = len({folder.name for folder in classes}) > 1
    there = {"class folders of images": classes[0]} if is_images else {}
    for table in tables:
        is_beside_images = is_images and any(folder in table.parents for folder in classes)
        at_top = table.parent in (root, root / "data")
        if not is_images or (not is_beside_images and (at_top or split_name(table, root))):
            kind = "a parquet dataset" if table.suffix.lower() == ".parquet" else ".beton files"
            there.setdefault(kind, table)
    if len(there) > 1:
        found = " and ".join(f"{kind} ({path.relative_to(root)})" for kind, path in there.items())
        raise UserError(f"data.source={root}: both {found}; move one of them away, or point data.source at the file")
    return "class_folders" if is_images else "parquet" if "a parquet dataset" in there else "beton"


def _missing_split(spec: str, split: str, found: Dataset, *, to_train: bool = True) -> UserError:
    there = ", ".join(found.called[other] for other in found.called if other != split)
    there = f" but {there} alone" if there else ""
    left = f" ({'; '.join(found.notes)})" if found.notes else ""
    name = {"Chaoyang": f"a list {split}.json", "IDX": f"{split}-images-idx3-ubyte and its labels"}.get(
        found.kind, f"a folder {split}/, or {split}-*.parquet"
    )
    if spec.startswith(SCHEME):
        own = "give data=(train, test), or set data.holdout=0.2 to keep a fifth of every class for testing"
        own = own if split == "test" else "give data=(train, test)"
        return UserError(f"{spec}: no {split} split{there}{left}; {own}")
    if split == "train":
        return UserError(f"data.source={spec}: no training split{there}{left}; add one ({name}), or eval a run on this")
    fix = "set data.holdout=0.2 to keep a fifth of every class for testing"
    if not to_train:
        fix = "give images without splits, of which all are measured"
    return UserError(f"data.source={spec}: no test split{there}{left}; add one ({name}) or {fix}")
