"""Labels, in whatever form a source keeps them, as class indices. The one place that decides what is a class."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from numbers import Integral, Number
from typing import NamedTuple

import numpy as np

from fastlg.errors import UserError

MAX_LABEL = 1 << 20  # a larger number is an id, not a class
FEW = 20  # so few images may be each of a class of its own


class Part(NamedTuple):
    """The labels of one file.

    values  integers [N] in an array, or any N values as they were read
    name    names row i in messages
    names   the class names that whole numbers stand for; None where the file gives none
    column  what the labels are called there
    """

    values: Sequence | np.ndarray
    name: Callable[[int], str]
    names: Sequence[str] | None = None
    column: str = "label"

    def wrong(self, row: int, value: object, why: str) -> UserError:
        """That the label of row ``row`` is none."""
        shown = repr(value)
        return UserError(
            f"{self.name(row)}: {self.column}={shown[:60]}{' ...' if len(shown) > 60 else ''} is no class label{why}"
        )


class Classes(NamedTuple):
    """names: C strings. labels: int64 indices into them, one array per part. notes: what a person should know."""

    names: list[str]
    labels: list[np.ndarray]
    notes: list[str]


def class_indices(parts: Sequence[Part], where: str, fix: str = "choose another data.label_column") -> Classes:
    """Turn the labels of all files of a dataset into indices of one list of classes.

    Whole numbers stand for the file's own class names where it gives them, so that files whose lists differ in order
    are matched by name. Without any names, a number is a class named by it ("3"), text is its own name, and truth
    values are "False" and "True". Numbers that no image carries make no class, however large they are.

    Args:
        where: names the source in messages; ``fix`` says what to do about labels that are none.

    Raises:
        UserError: a value is no label (null, fractional, bytes that are not UTF-8, several values, negative, beyond the
            names), text and numbers are mixed, or the labels are ids: nearly every image has its own.
    """
    if not parts:
        return Classes([], [], [])
    values = [_plain(part, fix) for part in parts]
    if any(part.names is not None for part in parts):
        return _by_names(parts, values, where, fix)
    kinds = {kind for kind, column in values if len(column)}
    if len(kinds) > 1:
        raise UserError(f"{where}: some labels are {' and others '.join(sorted(kinds))}; give all of them one form")
    columns = [column for _, column in values]
    if kinds == {"text"}:
        names = sorted({name for column in columns for name in column})
        index = {name: label for label, name in enumerate(names)}
        labels = [np.asarray([index[name] for name in column], dtype=np.int64) for column in columns]
        _refuse_ids(labels, names, 0, where, fix)
        return Classes(names, labels, [])
    if kinds == {"truth values"}:
        return Classes(["False", "True"], [np.asarray(column, dtype=np.int64) for column in columns], [])
    for part, column in zip(parts, columns, strict=True):
        _refuse_range(part, column, MAX_LABEL, "no class but an id, being above 1,048,576", fix)
    present = np.unique(np.concatenate([np.asarray(column, dtype=np.int64) for column in columns]))
    labels = [np.searchsorted(present, np.asarray(column, dtype=np.int64)) for column in columns]
    names = [str(value) for value in present.tolist()]
    _refuse_ids(labels, names, int(present.max(initial=0)), where, fix)
    notes = []
    if len(present) and present[-1] != len(present) - 1:
        notes.append(f"labels run from {present[0]} to {present[-1]}, {len(present)} of these numbers are classes")
    return Classes(names, labels, notes)


def same_form(name: str) -> str:
    """A class name in Unicode's composed form (NFC): macOS and Linux write one name in two."""
    return unicodedata.normalize("NFC", name)


def distinct_names(names: Sequence[str], where: str) -> list[str]:
    """``names`` in composed form.

    Raises:
        UserError: two of them are the same.
    """
    result = [same_form(name) for name in names]
    seen: dict[str, str] = {}
    for name, original in zip(result, names, strict=True):
        if name in seen:
            how = "" if seen[name] == original else " (in two Unicode forms)"
            raise UserError(f"{where}: class {original!r} is there twice{how}; make it one class")
        seen[name] = original
    return result


def _by_names(parts: Sequence[Part], values: list[tuple[str, Sequence]], where: str, fix: str) -> Classes:
    lists = [None if part.names is None else distinct_names(part.names, where) for part in parts]
    first = next(names for names in lists if names is not None)
    union = list(dict.fromkeys(name for names in lists if names is not None for name in names))
    index = {name: label for label, name in enumerate(union)}
    labels = []
    for part, own, (kind, column) in zip(parts, lists, values, strict=True):
        if kind == "text":
            unknown = next((row for row, name in enumerate(column) if name not in index), None)
            if unknown is not None:
                raise part.wrong(unknown, column[unknown], f": there are the classes {_few(union)}; {fix}")
            labels.append(np.asarray([index[name] for name in column], dtype=np.int64))
            continue
        if own is None:
            if len(column):
                raise UserError(
                    f"{where}: {part.name(0)} and its file number their classes without naming them, other files name "
                    "them; write all files with the same class names"
                )
            own = []
        counted = f"there are {len(own)} classes, so labels run from 0 to {len(own) - 1}"
        _refuse_range(part, column, len(own) - 1, f"out of range: {counted}", fix)
        onto = np.asarray([index[name] for name in own], dtype=np.int64)
        labels.append(onto[np.asarray(column, dtype=np.int64)])
    differ = any(names is not None and names != first for names in lists)
    return Classes(union, labels, ["its files list the classes differently, matched by name"] if differ else [])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _plain(part: Part, fix: str) -> tuple[str, Sequence]:
    """(kind, values) with kind whole numbers, truth values or text; Python's or numpy's own values of one kind."""
    if isinstance(part.values, np.ndarray) and part.values.dtype.kind in "iu":
        return "whole numbers", part.values
    kinds, column = {}, []
    for row, value in enumerate(part.values):
        kind, value = _plain_value(value, part, row, fix)
        kinds.setdefault(kind, row)
        if len(kinds) > 1:
            raise part.wrong(row, value, f" among {next(iter(kinds))}; give all of them one form")
        column.append(value)
    return next(iter(kinds), "whole numbers"), column


def _plain_value(value: object, part: Part, row: int, fix: str) -> tuple[str, int | str]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise part.wrong(row, value, f" but {len(value)} values, and an image has one class; {fix}")
        value = value[0]
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise part.wrong(row, value, f": its bytes are not UTF-8; write text, {fix}") from None
    if isinstance(value, (bool, np.bool_)):
        return "truth values", int(value)
    if isinstance(value, str) and value.strip():
        return "text", same_form(value)
    if isinstance(value, Integral):
        return "whole numbers", int(value)
    if isinstance(value, Number) and not isinstance(value, complex):  # Decimal and numpy's floats, too
        if value != value or value in (float("inf"), float("-inf")) or value != int(value):
            raise part.wrong(row, value, f", which is a whole number or a name; {fix}")
        return "whole numbers", int(value)
    raise part.wrong(row, value, f"; {fix}")


def _refuse_range(part: Part, column: Sequence, largest: int, why: str, fix: str) -> None:
    if not len(column):
        return
    low, high = (column.min(), column.max()) if isinstance(column, np.ndarray) else (min(column), max(column))
    for row, label in enumerate(column) if low < 0 or high > largest else ():
        if label < 0:
            raise UserError(
                f"label {label} of {part.name(row)} is no class but marks an image without a label (of a test split? "
                f"data.holdout=0.2 tests on training images instead); {fix}"
            )
        if label > largest:
            raise UserError(f"label {label} of {part.name(row)} is {why}; {fix}")


def _refuse_ids(labels: list[np.ndarray], names: list[str], largest: int, where: str, fix: str) -> None:
    images = sum(map(len, labels))
    if max(images, largest) > FEW and (len(names) == images or (len(names) > FEW and 2 * len(names) > images)):
        raise UserError(
            f"{where}: {len(names):,} different labels for {images:,} images (from {names[0]} to {names[-1]}): these "
            f"are ids, not classes; {fix}"
        )
