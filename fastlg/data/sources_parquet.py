"""Parquet in the Hugging Face schema: an image column (struct of bytes and path, or plain bytes) and a label column."""

from __future__ import annotations

import json
import logging
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from fastlg.data.source import TEST_NAMES, TRAIN_NAMES, Source, file_stamps, import_extra, read_bytes
from fastlg.errors import UserError

log = logging.getLogger(__name__)

LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "class")  # the default choice, in this order
IMAGE_COLUMNS = ("image", "img")
_CACHED_GROUPS = 2  # row groups held in memory: reading runs forward


def parquet_source(root: Path, split: str, label_column: str | None, image_column: str | None) -> Source | None:
    """A parquet file (all of it is training data), or a folder of them split by name (train-*, test-*, validation-*)
    or by subfolder (train/0000.parquet).

    Class names come from the ``huggingface`` schema metadata; without it they are the strings found, or the numbers
    0 to the largest label of any split.

    Returns:
        None where the split does not exist.

    Raises:
        UserError: pyarrow is missing, a file is damaged, a column cannot be found, or a label is null or no class.
    """
    parquet = import_extra("pyarrow.parquet", "parquet", f"reading {root}")
    by_split = split_files(root)
    paths = by_split.get(split)
    if not paths:
        return None
    folder = root if root.is_dir() else root.parent
    files = {path: _open(parquet, path) for group in by_split.values() for path in group}
    schema = files[paths[0]].schema_arrow
    features = _features(schema)
    label_column = _choose_label(root, schema, features, label_column)
    image_column = _choose_image(root, schema, features, image_column)
    columns = {path: _label_column(files[path], path, label_column) for path in files}
    names = (features.get(label_column) or {}).get("names") or _names_from(list(columns.values()))
    labels = np.concatenate([_to_indices(columns[path], names, path, label_column) for path in paths])
    rows = _Rows([files[path] for path in paths], image_column, folder)
    return Source(
        where=str(root),
        labels=labels,
        class_names=names,
        read=rows.read,
        name=rows.name,
        stamp=[str(root), file_stamps(paths, folder), image_column, label_column],
    )


def split_files(root: Path) -> dict[str, list[Path]]:
    """The parquet files of ``root`` as {"train": [...], "test": [...]}; a split without files is left out.

    Raises:
        UserError: two datasets lie below ``root``.
    """
    if root.is_file():
        return {"train": [root]}
    folders = [root] if any(root.glob("*.parquet")) else _dataset_folders(root)
    if len(folders) > 1:
        raise UserError(
            f"{root}: several datasets ({', '.join(path.name for path in folders[:5])}); point data.source at one"
        )
    found: dict[str, list[Path]] = {}
    for path in sorted(folders[0].rglob("*.parquet")) if folders else []:
        found.setdefault(split_name(path, folders[0]), []).append(path)
    train = next((found[name] for name in TRAIN_NAMES if name in found), None)
    test_name = next((name for name in TEST_NAMES if name in found), None)
    if train is None and test_name is None and "" in found:
        train = found[""]
    elif "" in found:
        log.warning("%s: %s names no split and is left out", root, found[""][0].name)
    if test_name not in (None, "test"):
        log.info("%s: no test split; %s is used for testing", root, test_name)
    result = {"train": train, "test": found.get(test_name)}
    return {split: paths for split, paths in result.items() if paths}


def _dataset_folders(root: Path) -> list[Path]:
    """Folders that hold a whole dataset: data/, CONFIG/ (files named by split) or ROOT itself (train/0000.parquet)."""
    below = sorted({path.relative_to(root).parts[0] for path in root.rglob("*.parquet")})
    if any(name in TRAIN_NAMES + TEST_NAMES for name in below):
        return [root]
    return [root / name for name in below]


def split_name(path: Path, folder: Path) -> str:
    """The split that the file or a folder on the way to it from ``folder`` is named by, "" where none is."""
    for text in (path.name, *path.relative_to(folder).parts[:-1]):
        match = re.match(r"(train(?:ing)?|test|val(?:id(?:ation)?)?)(?![a-z])", text.lower())
        if match:
            return match.group(1)
    return ""


def _open(parquet: Any, path: Path) -> Any:
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise UserError(f"{path}: not a readable parquet file ({_first_line(error)}); download it again") from None


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:160]


def _features(schema: Any) -> dict[str, dict]:
    """Column -> feature description of the `huggingface` metadata, {} where there is none."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(text)["info"]["features"] if text else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _choose_label(root: Path, schema: Any, features: dict[str, dict], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in schema.names:
            raise UserError(f"data.label_column={wanted}: {root} has only the columns {', '.join(schema.names)}")
        return wanted
    classes = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    choice = next((name for name in LABEL_COLUMNS if name in schema.names), classes[0] if len(classes) == 1 else None)
    if choice is None:
        raise UserError(f"{root}: which column is the label? Set data.label_column to one of {', '.join(schema.names)}")
    others = [name for name in schema.names if name != choice and ("label" in name or name in classes)]
    if others:
        others = ", ".join(others)
        log.info("%s: labels from column %r (also there: %s; data.label_column chooses)", root, choice, others)
    return choice


def _choose_image(root: Path, schema: Any, features: dict[str, dict], wanted: str | None) -> str:
    types = {name: str(schema.field(name).type) for name in schema.names}
    fits = [name for name in schema.names if "binary" in types[name]]
    if wanted is not None:
        if wanted not in fits:
            raise UserError(
                f"data.image_column={wanted}: no column of image bytes in {root} (there: {', '.join(fits) or 'none'})"
            )
        return wanted
    marked = [name for name in fits if features.get(name, {}).get("_type") == "Image"]
    named = [name for name in IMAGE_COLUMNS if name in fits]
    for group in (marked, named, fits):
        if len(group) == 1:
            return group[0]
    if not fits:
        described = ", ".join(f"{name} ({kind[:40]})" for name, kind in types.items())
        raise UserError(f"{root}: no column of image bytes; there are {described}")
    raise UserError(f"{root}: which column is the image? Set data.image_column to one of {', '.join(fits)}")


def _label_column(file: Any, path: Path, column: str) -> Any:
    if column not in file.schema_arrow.names:
        raise UserError(f"{path}: no column {column!r}, which other files of this dataset have; download it again")
    return file.read(columns=[column]).column(column)


def _names_from(columns: list[Any]) -> list[str]:
    """Class names of labels without metadata: the strings, sorted, or the numbers up to the largest."""
    values = {value for column in columns for value in column.unique().to_pylist() if value is not None}
    if all(isinstance(value, int) for value in values):
        return [str(i) for i in range(max(values, default=-1) + 1)]
    return sorted(str(value) for value in values)


def _to_indices(column: Any, names: list[str], path: Path, label_column: str) -> np.ndarray:
    values = column.to_pylist()
    index = {name: label for label, name in enumerate(names)}
    for row, value in enumerate(values):
        if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, str) and value in index)):
            raise UserError(
                f"{path.name} row {row}: {label_column}={value!r} is no class label; "
                "mend the row or choose another data.label_column"
            )
    return np.asarray([value if isinstance(value, int) else index[value] for value in values], dtype=np.int64)


class _Rows:
    """Random access to the image column, a few row groups in memory."""

    def __init__(self, files: list[Any], column: str, folder: Path):
        self._files = files
        self._column = column
        self._folder = folder
        groups = [
            (f, g, file.metadata.row_group(g).num_rows)
            for f, file in enumerate(files)
            for g in range(file.metadata.num_row_groups)
        ]
        self._groups = [(f, g) for f, g, _ in groups]
        self._starts = np.cumsum([0] + [rows for _, _, rows in groups])
        self._cache: OrderedDict[int, tuple[Any, Any]] = OrderedDict()

    def read(self, i: int) -> bytes:
        data, path = self._cell(i)
        if data is not None:
            return data
        if path is None:
            return b""  # the decoder refuses it by name: a row without an image
        return read_bytes(self._folder / path, self.name(i))

    def name(self, i: int) -> str:
        path = self._cell(i)[1]
        return f"row {i} ({path})" if path else f"row {i}"

    def _cell(self, i: int) -> tuple[bytes | None, str | None]:
        group = int(np.searchsorted(self._starts, i, side="right")) - 1
        data, paths = self._group(group)
        row = i - int(self._starts[group])
        return data[row].as_py(), paths[row].as_py() if paths is not None else None

    def _group(self, group: int) -> tuple[Any, Any]:
        if group not in self._cache:
            file, index = self._groups[group]
            column = self._files[file].read_row_group(index, columns=[self._column]).column(self._column)
            column = column.combine_chunks()
            fields = [column.type.field(j).name for j in range(column.type.num_fields)]
            data = column.field("bytes") if "bytes" in fields else column
            self._cache[group] = (data, column.field("path") if "path" in fields else None)
            while len(self._cache) > _CACHED_GROUPS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]
