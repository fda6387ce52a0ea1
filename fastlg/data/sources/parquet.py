"""Parquet in the Hugging Face schema: an image column (struct of bytes and path, or plain bytes) and a label column."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastlg.data.sources.base import Dataset, Source, import_extra
from fastlg.data.sources.layout.labels import Part, class_indices
from fastlg.data.sources.layout.paths import file_stamps
from fastlg.data.sources.layout.split_names import SplitName, folds_among, split_of
from fastlg.data.sources.layout.walk import LeftOut, files_below
from fastlg.data.sources.parquet_rows import Rows
from fastlg.errors import UserError, first_line
from fastlg.files.kinds import kind_of_file
from fastlg.files.reading import check_regular

log = logging.getLogger(__name__)

LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "class")  # the default choice, in this order
IMAGE_COLUMNS = ("image", "img")


def parquet_source(root: Path, wanted: Sequence[str], label_column: str | None, image_column: str | None) -> Dataset:
    """A parquet file, whose images have no split; or a folder of them split by name (train-*, cifar_test, validation-*)
    or by subfolder (train/0000.parquet).

    Class names come from the ``huggingface`` schema metadata of each file, matched by name; without it they are the
    strings or numbers found in all files.

    Raises:
        UserError: pyarrow is missing, a file is damaged, a column cannot be found, or a label is null or no class.
    """
    parquet = import_extra("pyarrow.parquet", "parquet", f"reading {root}")
    left = LeftOut(root if root.is_dir() else root.parent)
    by_split, called = split_files(root, left, wanted)
    by_split = {split: paths for split, paths in by_split.items() if split in (*wanted, "all")}
    files = {path: _open(parquet, path) for group in by_split.values() for path in group}
    if not files:
        return Dataset("parquet", {}, called, left.notes())
    first = next(iter(files))
    notes: list[str] = []
    features = _features(files[first].schema_arrow, first, notes)
    image_column = _choose_image(root, files[first].schema_arrow, features, image_column)
    label_column = _choose_label(root, files[first].schema_arrow, features, label_column)
    for path, file in files.items():
        _check_columns(file, path, label_column, image_column)
    parts = [_labels(file, path, label_column) for path, file in files.items()]
    classes = class_indices(parts, str(root), "mend the row or choose another data.label_column")
    labels = dict(zip(files, classes.labels, strict=True))
    folder = left.root
    splits = {}
    for split, paths in by_split.items():
        rows = Rows([(path, files[path]) for path in paths], image_column, folder)
        splits[split] = Source(
            where=str(root),
            labels=np.concatenate([labels[path] for path in paths]),
            class_names=classes.names,
            read=rows.read,
            name=rows.name,
            stamp=[str(root), file_stamps(paths, folder), image_column, label_column],
        )
    return Dataset("parquet", splits, called, [*notes, *classes.notes, *left.notes()])


def split_files(root: Path, left: LeftOut, wanted: Sequence[str] = ()) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """The parquet files of ``root`` as {"train": [...], "test": [...]}, those there are, and "val" if it is ``wanted``
    and there beside a test split; or {"all": [...]} where no file names a split; and what the splits are called there.

    Raises:
        UserError: two datasets lie below ``root``, or two spellings of one split.
    """
    if root.is_file():
        return {"all": [root]}, {}
    paths = files_below(root, ".parquet")
    folders = [root] if any(path.parent == root for path in paths) else _dataset_folders(root, paths)
    if len(folders) > 1:
        raise UserError(
            f"{root}: several datasets ({', '.join(path.name for path in folders[:5])}); point data.source at one"
        )
    found: dict[SplitName | None, list[Path]] = {}
    for path in paths:
        name = split_name(path, folders[0])
        found.setdefault(name and name._replace(is_plain=True), []).append(path)
    nameless = found.pop(None, [])
    if not found:
        return {"all": nameless}, {}
    for path in nameless:
        left.add("parquet files that name no split", path)
    chosen: dict[str, list[Path]] = {}
    called: dict[str, str] = {}
    ranks: dict[str, int] = {}
    for name in sorted(found, key=lambda name: (name.split == "test", name)):
        if name.split not in chosen:
            chosen[name.split], called[name.split] = found[name], _called(found[name], folders[0])
            ranks[name.split] = name.rank
            continue
        if ranks[name.split] == name.rank:
            raise UserError(
                f"{root}: {called[name.split]} and {_called(found[name], folders[0])} are both the {name.split} split; "
                "give its files one name or move some away"
            )
        if "val" in wanted and "val" not in chosen and name.is_validation:
            chosen["val"], called["val"] = found[name], _called(found[name], folders[0])
            continue
        for path in found[name]:
            left.add(f"files of other splits, as {called['test']} is used for testing", path)
    for split, paths in chosen.items():
        if len(folds := folds_among(path.relative_to(root) for path in paths)) > 1:  # what one trains on, another tests
            raise UserError(
                f"{root}: {', '.join(map(str, list(folds.values())[:4]))} are folds of a cross-validation, all of the "
                f"{split} split; keep those of one fold here, or rename them if they are parts of one split"
            )
    return chosen, called


def split_name(path: Path, folder: Path) -> SplitName | None:
    """The split that the file, or the nearest folder above it below ``folder``, is named by."""
    names = [path.stem, *reversed(path.relative_to(folder).parts[:-1])]
    return next((name for text in names if (name := split_of(text))), None)


def _called(paths: list[Path], folder: Path) -> str:
    first = paths[0].relative_to(folder)
    return f"{first}{' ...' if len(paths) > 1 else ''}" if split_of(first.stem) else f"{first.parent}/"


def _dataset_folders(root: Path, paths: list[Path]) -> list[Path]:
    """Folders that hold a whole dataset: data/, CONFIG/ (files named by split) or ROOT itself (train/0000.parquet)."""
    below = sorted({path.relative_to(root).parts[0] for path in paths})
    if any((name := split_of(folder)) and name.is_plain for folder in below):
        return [root]
    return [root / name for name in below]


def _open(parquet: Any, path: Path) -> Any:
    with reading(path):
        check_regular(path)
        return parquet.ParquetFile(path, page_checksum_verification=True)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what Arrow raises on a damaged file (its own errors, OSError, ValueError, MemoryError, ...) into a line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        what = f"it is {kind.what}" if (kind := kind_of_file(path)).what not in ("", "a parquet file") else ""
        fix = "download it again" if kind.is_text or not what else kind.fix
        raise UserError(f"{path}: not a readable parquet file ({what or first_line(error)}); {fix}") from None


def _features(schema: Any, path: Path, notes: list[str]) -> dict[str, dict]:
    """Column -> feature description of the `huggingface` metadata, {} where there is none."""
    text = (schema.metadata or {}).get(b"huggingface")
    if not text:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        features = {name: _of_element(feature) for name, feature in features.items()}
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        notes.append(f"{path.name}: its `huggingface` metadata cannot be read and is ignored")
        return {}


def _of_element(feature: Any) -> Any:
    """What a list's elements are described as, in either of the two ways; else ``feature`` itself."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    inner = feature.get("feature") if isinstance(feature, dict) else None
    return inner if isinstance(inner, dict) else feature


def _class_names(feature: dict, path: Path, column: str) -> list[str] | None:
    """The names of a ClassLabel in order; None where the column has none."""
    names = feature.get("names")
    if feature.get("_type") != "ClassLabel" or names is None:
        return None
    if isinstance(names, dict):  # of older files: {"0": "cat", "1": "dog"}
        names = [names.get(str(i)) for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, (str, int)) for name in names):
        raise UserError(
            f"{path}: the class names of column {column!r} in its `huggingface` metadata are no list of names; mend or "
            "remove the metadata"
        )
    return [str(name) for name in names]


def _choose_label(root: Path, schema: Any, features: dict[str, dict], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in schema.names:
            raise UserError(f"data.label_column={wanted}: {root} has only the columns {', '.join(schema.names)}")
        return wanted
    classes = [
        name for name, feature in features.items() if feature.get("_type") == "ClassLabel" and name in schema.names
    ]
    choice = next((name for name in LABEL_COLUMNS if name in schema.names), classes[0] if len(classes) == 1 else None)
    if choice is None:
        raise UserError(f"{root}: which column is the label? Set data.label_column to one of {', '.join(schema.names)}")
    others = [name for name in schema.names if name != choice and ("label" in name or name in classes)]
    if others:
        others = ", ".join(others)
        log.info(
            "%s: labels from column %r (also there: %s; data.label_column chooses)",
            root,
            choice,
            others,
            extra={"once": True},
        )
    return choice


def _choose_image(root: Path, schema: Any, features: dict[str, dict], wanted: str | None) -> str:
    fits = [field.name for field in schema if _is_image(field.type)]
    if wanted is not None:
        if wanted not in fits:
            raise UserError(
                f"data.image_column={wanted}: no column of image bytes in {root} (there: {', '.join(fits) or 'none'})"
            )
        return wanted
    marked = [name for name in fits if features.get(name, {}).get("_type") == "Image"]
    named = [name for name in IMAGE_COLUMNS if name in fits]
    for group in (marked, named, fits):
        if len(set(group)) == 1:
            return group[0]
    if not fits:
        described = ", ".join(f"{field.name} ({str(field.type)[:40]})" for field in schema)
        raise UserError(
            f"{root}: no column of image bytes; there are {described}; write the images' files into a column of bytes, "
            "or give a folder of images, one folder per class"
        )
    raise UserError(f"{root}: which column is the image? Set data.image_column to one of {', '.join(fits)}")


def _is_image(kind: Any) -> bool:
    """Whether cells of this Arrow type are the bytes of a file, or a struct of these and a path."""
    text = str(kind)
    if not text.startswith("struct"):
        return text in ("binary", "large_binary", "binary_view") or text.startswith("fixed_size_binary")
    fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    bytes_type = fields.get("bytes")
    return bytes_type is not None and (_is_image(bytes_type) or (str(bytes_type) == "null" and "path" in fields))


def _check_columns(file: Any, path: Path, *columns: str) -> None:
    counts = Counter(file.schema_arrow.names)
    for column in columns:
        if counts[column] == 0:
            raise UserError(f"{path}: no column {column!r}, which other files of this dataset have; download it again")
        if counts[column] > 1:
            raise UserError(f"{path}: {counts[column]} columns are named {column!r}; rename all but one")
    image = columns[-1]
    if not _is_image(file.schema_arrow.field(image).type):
        kind = str(file.schema_arrow.field(image).type)[:40]
        raise UserError(f"{path}: column {image!r} holds {kind}, not image bytes as in other files; download it again")


def _labels(file: Any, path: Path, column: str) -> Part:
    """The labels of one file; one-element lists are opened."""
    import pyarrow.types as types

    def name(row: int) -> str:
        return f"{path.name} row {row}"

    kind = file.schema_arrow.field(column).type
    inner = kind.value_type if _is_list(kind) or types.is_dictionary(kind) else kind
    texts = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    checks = (types.is_boolean, types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    if not any(is_kind(inner) for is_kind in checks) and str(inner) not in texts:
        raise UserError(
            f"{path}: column {column!r} holds {str(kind)[:60]}, which is no label; choose another data.label_column"
        )
    names = _class_names(_features(file.schema_arrow, path, []).get(column, {}), path, column)
    with reading(path):
        values = file.read(columns=[column]).column(column)
        if _is_list(kind):
            values = _only_elements(values, name)
        if types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if str(values.type) in ("string", "large_string"):  # whose writer may not have checked that it is text
            values = values.cast(str(values.type).replace("string", "binary"))
        if not any(values.chunks) or values.null_count or not types.is_integer(values.type):
            return Part(values.to_pylist(), name, names, column)
        return Part(values.to_numpy(), name, names, column)


def _is_list(kind: Any) -> bool:
    return str(kind).startswith(("list<", "large_list<", "fixed_size_list<"))


def _only_elements(lists: Any, name: Any) -> Any:
    import pyarrow.compute as compute

    lengths = compute.fill_null(compute.list_value_length(lists), 0).to_numpy()
    wrong = np.flatnonzero(lengths != 1)
    if len(wrong):
        raise UserError(
            f"{name(int(wrong[0]))}: its label is a list of {lengths[wrong[0]]} values, and an image has one class; "
            "choose another data.label_column"
        )
    return compute.list_flatten(lists)
