"""What every source of labelled images looks like, and the checks all of them pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType

import numpy as np

from fastlg.errors import UserError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
)


class Source:
    """Labelled images that are not decoded yet.

    labels       int64 [N]
    class_names  list of C strings
    len(), read(i) -> bytes of an image file or uint8 pixels, name(i) -> file or row, fingerprint() -> hex string

    ``read`` raises BadImage where sample i cannot be had.
    """

    def __init__(
        self,
        where: str,
        labels: np.ndarray | Sequence[int],
        class_names: Sequence[str],
        read: Callable[[int], bytes | np.ndarray],
        name: Callable[[int], str],
        stamp: object,
    ):
        """``where`` names the source in messages; ``stamp`` is any JSON value that changes when the data may have.

        Raises:
            UserError: no image, or a label that no class name stands for.
        """
        self.where = where
        self.labels = np.ascontiguousarray(labels, dtype=np.int64)
        self.class_names = [str(name) for name in class_names]
        self.read = read
        self.name = name
        self._stamp = stamp
        self._check()

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """Hex digest of paths, sizes and modification times (no image is read), labels and class names."""
        text = json.dumps([self._stamp, self.class_names], sort_keys=True, default=str)
        return hashlib.sha256(text.encode() + self.labels.tobytes()).hexdigest()

    def subset(self, rows: np.ndarray, note: str) -> Source:
        """The same source reduced to ``rows`` (int64), in that order."""
        read, name = self.read, self.name
        return Source(
            where=f"{self.where} ({note})",
            labels=self.labels[rows],
            class_names=self.class_names,
            read=lambda i: read(int(rows[i])),
            name=lambda i: name(int(rows[i])),
            stamp=[self._stamp, note],
        )

    def _check(self) -> None:
        if len(self.labels) == 0:
            raise UserError(f"{self.where}: no images found; point data.source at a folder or file that holds some")
        wrong = (self.labels < 0) | (self.labels >= len(self.class_names))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UserError(
                f"{self.where}: label {self.labels[row]} of {self.name(row)} is out of range: there are "
                f"{len(self.class_names)} classes, so labels run from 0 to {len(self.class_names) - 1}; "
                "mend the label or choose another data.label_column"
            )

    def with_classes(self, class_names: list[str]) -> Source:
        """The same images with their classes, matched by name, as ``class_names`` orders them.

        Raises:
            UserError: an image is of a class that is none of these.
        """
        index = {name: label for label, name in enumerate(class_names)}
        onto = np.asarray([index.get(name, -1) for name in self.class_names], dtype=np.int64)
        labels = onto[self.labels]
        if (labels < 0).any():
            unknown = [self.class_names[label] for label in np.unique(self.labels[labels < 0])]
            raise UserError(f"{self.where}: {some(unknown)} is none of the {len(class_names)} classes there are")
        return Source(self.where, labels, class_names, self.read, self.name, self._stamp)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of ``names``, quoted."""
    return ", ".join(map(repr, names[:most])) + (" ..." if len(names) > most else "")


@dataclass
class Dataset:
    """What a place was found to hold.

    kind    in words: class folders, parquet, ...
    splits  "train" and "test", those that are there, with the same classes unless ``match_classes`` still has to look;
            or "all": images without a split, which are training images until a holdout is cut from them
    called  what each split is called there, those too that were not wanted
    notes   what was left out and why, and what was decided
    """

    kind: str
    splits: dict[str, Source]
    called: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def line(self, where: str) -> str:
        """All of it in one line: splits, classes, images per class, notes."""
        parts, present = [], {}
        for split, source in self.splits.items():
            counts = np.bincount(source.labels, minlength=len(source.class_names))
            present |= {source.class_names[label]: None for label in np.flatnonzero(counts)}
            counts = counts[counts > 0]
            called = f" ({self.called[split]})" if self.called.get(split, split) != split else ""
            words = f"{len(source):,} {'' if split == 'all' else split + ' '}images{called}"
            each = f"{counts.min():,} to {counts.max():,}" if counts.min() < counts.max() else f"{counts.max():,}"
            parts.append(f"{words}, {each} a class")
        names = ", ".join(list(present)[:3]) + (" ..." if len(present) > 3 else "")
        classes = f"{len(present):,} {'classes' if len(present) > 1 else 'class'} ({names})"
        return f"found    {where}: {self.kind}; " + "; ".join([classes, *parts, *self.notes, *_look_alikes(present)])


def _look_alikes(names: Iterable[str]) -> list[str]:
    """A note where two classes differ in case and spaces alone."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault("".join(name.split()).casefold(), name)
        if other != name:
            return [f"classes {other!r} and {name!r} differ in case or spaces alone"]
    return []


def match_classes(train: Source, test: Source, split: str = "test") -> tuple[Source, list[str]]:
    """The images of ``split`` with the classes of the training images, matched by name, and notes.

    Raises:
        UserError: it holds a class without a training image.
    """
    trained = {train.class_names[label] for label in np.unique(train.labels)}
    tested = {test.class_names[label] for label in np.unique(test.labels)}
    only_train = sorted(trained - tested)
    only_test = sorted(tested - trained)
    if only_test:
        missing = f"only in train: {some(only_train)}; " if only_train else ""
        raise UserError(
            f"{train.where}: train and {split} have different classes ({missing}only in {split}: {some(only_test)}); "
            "give both splits the same classes: a class that is tested needs training images"
        )
    notes = []
    if only_train:
        notes.append(f"{len(only_train)} of the classes have no {split} image: {some(only_train)}")
    if empty := [name for name in train.class_names if name not in trained]:
        notes.append(f"{len(empty)} of the classes have no image at all: {some(empty)}")
    return test.with_classes(train.class_names), notes


def check_several_classes(source: Source) -> None:
    """Refuse training images of one class.

    Raises:
        UserError: there are fewer than two classes with images.
    """
    present = np.unique(source.labels)
    if len(present) < 2:
        raise UserError(
            f"{source.where}: all {len(source)} images are of one class ({source.class_names[present[0]]!r}); "
            "classification needs at least two"
        )


def stratified_holdout(
    source: Source, share: float, seed: int = 0, field: str = "data.holdout"
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows per class: (kept rows, held-out rows), both sorted, int64.

    Every class gives ``round(share * count)`` rows, at least one and never all of them.

    Raises:
        UserError: ``share`` is not between 0 and 1, or a class has a single image.
    """
    if not 0 < share < 1:
        raise UserError(f"{field}={share} must lie between 0 and 1, for example 0.2")
    labels = source.labels
    # A Philox stream of raw bits and a stable sort: numpy keeps both the same across versions, unlike permutation().
    keys = np.random.Philox(key=seed).random_raw(len(labels))
    held = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise UserError(
                f"{field}={share}: class {source.class_names[label]!r} has a single image and cannot be split; "
                "add images"
            )
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held.append(rows[np.argsort(keys[rows], kind="stable")[:count]])
    test = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), test), test


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or say in one line how to install it.

    Raises:
        UserError: ``module`` is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs {module.partition('.')[0]} ({error}): pip install 'fastlg[{extra}]'"
        ) from None
