"""What every source of labelled images looks like, and the checks all of them pass."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from fastlg.errors import UserError

TEST_NAMES = ("test", "val", "valid", "validation")  # in order of preference
TRAIN_NAMES = ("train", "training")
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
)


class Source:
    """Labelled images that are not decoded yet.

    labels       int64 [N]
    class_names  list of C strings
    len(), read(i) -> bytes of an image file or uint8 pixels, name(i) -> file or row, fingerprint() -> hex string
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
            UserError: no image, fewer than two classes, or a label that no class name stands for.
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
        present = np.unique(self.labels)
        if len(present) < 2:
            raise UserError(
                f"{self.where}: all {len(self)} images are of one class ({self.class_names[present[0]]!r}); "
                "classification needs at least two"
            )


def check_same_classes(train: Source, test: Source) -> None:
    """Refuse a test set whose classes are not those of the training set.

    Raises:
        UserError: the lists of names differ, or the test set holds a class without a training image.
    """
    if train.class_names != test.class_names:
        only_train = [name for name in train.class_names if name not in test.class_names]
        only_test = [name for name in test.class_names if name not in train.class_names]
        detail = "; ".join(
            f"only in {split}: {', '.join(map(repr, names[:5]))}{' ...' if len(names) > 5 else ''}"
            for split, names in (("train", only_train), ("test", only_test))
            if names
        )
        raise UserError(
            f"{train.where}: train and test have different classes ({detail or 'same names in another order'}); "
            "give both splits the same classes"
        )
    unseen = np.setdiff1d(test.labels, train.labels)
    if len(unseen):
        names = ", ".join(repr(train.class_names[label]) for label in unseen[:5])
        raise UserError(
            f"{train.where}: train and test have different classes ({names} has no training image); "
            "add training images or remove the class from the test split"
        )


def stratified_holdout(labels: np.ndarray, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split rows per class: (kept rows, held-out rows), both sorted, int64.

    Every class gives ``round(share * count)`` rows, at least one and never all of them.

    Raises:
        UserError: ``share`` is not between 0 and 1, or a class has a single image.
    """
    if not 0 < share < 1:
        raise UserError(f"data.holdout={share} must lie between 0 and 1, for example 0.2")
    # A Philox stream of raw bits and a stable sort: numpy keeps both the same across versions, unlike permutation().
    keys = np.random.Philox(key=seed).random_raw(len(labels))
    held = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise UserError(f"data.holdout={share}: class {label} has a single image and cannot be split; add images")
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held.append(rows[np.argsort(keys[rows], kind="stable")[:count]])
    test = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), test), test


def existing_path(spec: str) -> Path:
    """``spec`` as a path that exists.

    Raises:
        UserError: it does not; names that look alike in the deepest folder that exists are suggested.
    """
    path = Path(spec).expanduser()
    if path.exists():
        return path.resolve()
    parent, missing = path.parent, path.name
    while not parent.exists() and parent != parent.parent:
        parent, missing = parent.parent, parent.name
    entries = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    near = difflib.get_close_matches(missing, entries, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(str(parent / name) for name in near)}?" if near else f"{parent} has no {missing}"
    raise UserError(f"data.source={spec}: no such file or folder; {hint}")


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


def file_stamps(paths: Iterable[Path], root: Path) -> list[tuple[str, int, int]]:
    """(path relative to ``root``, bytes, modification time in ns) of every file."""
    stamps = []
    for path in paths:
        status = path.stat()
        stamps.append((str(path.relative_to(root)), status.st_size, status.st_mtime_ns))
    return stamps


def read_bytes(path: Path, where: str) -> bytes:
    """The file's bytes.

    Raises:
        UserError: it cannot be read (vanished, no permission).
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot read {path} ({error.strerror or error})") from None


def file_source(
    where: str,
    root: Path,
    files: Sequence[Path],
    labels: np.ndarray | Sequence[int],
    class_names: Sequence[str],
) -> Source:
    """A source of one image file per sample; names are paths relative to ``root``."""
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise UserError(f"{where}: {missing} is listed but missing; complete the download or unpack it again")
    return Source(
        where=where,
        labels=labels,
        class_names=class_names,
        read=lambda i: read_bytes(files[i], where),
        name=lambda i: str(files[i].relative_to(root)),
        stamp=[str(root), file_stamps(files, root)],
    )
