"""Labelled images that are Python objects already: torch map-style datasets, Hugging Face datasets, lists of samples.

A sample is (image, label), or a mapping with both. An image is a PIL image, a uint8 tensor [C, H, W] or [H, W] as
torchvision has them, or a uint8 array [H, W] or [H, W, C]; a label is whatever ``class_indices`` takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fastlg.data.sources.base import Dataset, Source
from fastlg.data.sources.layout.labels import Part, class_indices
from fastlg.data.sources.layout.split_names import SplitName, split_of
from fastlg.data.sources.parquet import IMAGE_COLUMNS, LABEL_COLUMNS
from fastlg.data.store.decode import BadImage, decode_image, upright_rgb
from fastlg.errors import UserError, brief, first_line
from fastlg.files.progress import progress_bar

_ROWS_TOLD = 500  # images between two signs of life
SCHEME = "python:"  # what such images are called, before their kind
FORMS = "a map-style dataset of (image, label), a pair (train, test) or a dict of such, or a path"


def object_dataset(data: Any, label_column: str | None = None, image_column: str | None = None) -> Dataset:
    """What ``data`` holds: a dataset, a pair (train, test) or a mapping of splits by name (a DatasetDict).

    Every image is read once, for what they hash to is how the same images are known again.

    Raises:
        UserError: no such object, a sample that is none, or images that change whenever they are asked for.
    """
    named, called, notes = _splits_of(data)
    where = {split: "data" if split == "all" else f"data[{split!r}]" for split in named}
    read = {split: _Read(own, where[split], label_column, image_column) for split, own in named.items()}
    parts = [own.labels() for own in read.values()]
    classes = class_indices(parts, "data", "mend the dataset's labels")
    splits = {
        split: Source(own.where, labels, classes.names, own.pixels, own.name, ["objects", own.digest])
        for (split, own), labels in zip(read.items(), classes.labels, strict=True)
    }
    return Dataset(title_of(data), splits, called, [*notes, *classes.notes])


def title_of(data: Any) -> str:
    """What kind of object it is."""
    own = next(iter(data.values()), data) if isinstance(data, Mapping) else data[0] if isinstance(data, tuple) else data
    return type(own).__name__


def _splits_of(data: Any) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """({split: dataset}, what each is called there, notes). Of several test splits the nearest to its name is used."""
    if isinstance(data, tuple) and len(data) == 2 and all(map(_is_dataset, data)):
        return dict(zip(("train", "test"), data, strict=True)), {"train": "first", "test": "second"}, []
    if not isinstance(data, Mapping):
        _expect_dataset(data, "data")
        return {"all": data}, {}, []
    found: dict[str, list[tuple[SplitName, str]]] = {}
    for key in data:
        if (name := split_of(str(key))) is None:
            raise UserError(f"data has a split {brief(key)!r}; call its splits train, and test or validation")
        found.setdefault(name.split, []).append((name, key))
    named, called, notes = {}, {}, []
    for split, names in sorted(found.items(), reverse=True):  # train first: it names the classes
        ordered = sorted(names, key=lambda pair: pair[0].rank)
        if len(ordered) > 1 and ordered[0][0].rank == ordered[1][0].rank:
            raise UserError(f"data: {ordered[0][1]!r} and {ordered[1][1]!r} are both the {split} split; give one")
        named[split], called[split] = data[ordered[0][1]], str(ordered[0][1])
        notes += [f"left out: {key}, as {called[split]} is used" for _, key in ordered[1:]]
        _expect_dataset(named[split], f"data[{called[split]!r}]")
    return named, called, notes


def _is_dataset(data: Any) -> bool:
    """Whether it has a length and samples by number; not a text, nor one image or tensor."""
    is_one = isinstance(data, (str, bytes, Mapping, Image.Image, np.ndarray)) or _is_tensor(data)
    return not is_one and hasattr(data, "__len__") and hasattr(data, "__getitem__")


def _expect_dataset(data: Any, where: str) -> None:
    if _is_dataset(data):
        return
    fix = f"give {FORMS}"
    if hasattr(data, "dataset"):
        fix = "give its .dataset: fastlg makes batches and augmentation itself"
    elif hasattr(data, "__iter__") and not hasattr(data, "__len__"):
        fix = "it has no length, and images are visited in random order; give a map-style dataset"
    raise UserError(f"{where} is a {type(data).__name__}; {fix}")


class _Read:
    """One split, every image read once: labels and what the pixels hash to."""

    def __init__(self, data: Any, where: str, label_column: str | None, image_column: str | None):
        self.data, self.where = data, where
        if len(data) == 0:
            raise UserError(f"{where} is empty; give a dataset with images")
        self.image_column, self.label_column = image_column, label_column
        self.values: list[Any] = []
        digest = hashlib.sha256()
        with progress_bar(f"read {where}", len(data)) as advance:
            for row in range(len(data)):
                pixels, label = self._sample(row)
                self.values.append(label)
                digest.update(self._digest(row, pixels))
                if (row + 1) % _ROWS_TOLD == 0 or row + 1 == len(data):
                    advance(row % _ROWS_TOLD + 1)
        self.digest = digest.hexdigest()
        self._expect_the_same_again()

    def name(self, row: int) -> str:
        return f"{self.where}[{row}]"

    def pixels(self, row: int) -> np.ndarray:
        """uint8 [H, W, 3]. Raises BadImage."""
        return pixels_of(self._sample(row)[0], self.name(row))

    def labels(self) -> Part:
        column = self.label_column or "label"
        return Part(self.values, self.name, _class_names(self.data, column), column)

    def _digest(self, row: int, image: Any) -> bytes:
        try:
            pixels = pixels_of(image, self.name(row))
        except BadImage as error:  # which is said, or left out, when the images are stored
            return error.reason.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()

    def _expect_the_same_again(self) -> None:
        for row in sorted({0, len(self.data) // 2, len(self.data) - 1}):
            first, again = (self._digest(row, self._sample(row)[0]) for _ in range(2))
            if first != again:
                raise UserError(
                    f"{self.name(row)} is another picture every time; drop the dataset's random transforms: fastlg "
                    "augments by itself (augment.*)"
                )

    def _sample(self, row: int) -> tuple[Any, Any]:
        try:
            sample = self.data[row]
        except Exception as error:  # the dataset's own
            raise UserError(
                f"{self.name(row)} cannot be read: {first_line(error)} ({type(error).__name__}); mend the dataset"
            ) from error
        if isinstance(sample, Mapping):
            return self._of_columns(sample)
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            what = f"{len(sample)} values" if isinstance(sample, (tuple, list)) else f"of type {type(sample).__name__}"
            raise UserError(f"{self.name(row)} is {what}; a sample is (image, label)")
        image, label = sample
        return image, _plain(label)

    def _of_columns(self, sample: Mapping) -> tuple[Any, Any]:
        self.image_column = self._chosen(sample, self.image_column, IMAGE_COLUMNS, "image", _is_image)
        self.label_column = self._chosen(sample, self.label_column, LABEL_COLUMNS, "label", lambda _: False)
        return sample[self.image_column], _plain(sample[self.label_column])

    def _chosen(self, sample: Mapping, wanted: str | None, known: Sequence[str], what: str, fits) -> str:
        names = [wanted] if wanted else [name for name in known if name in sample]
        names = names or [name for name, value in sample.items() if fits(value)]
        if names and names[0] in sample:
            return names[0]
        given = f"data.{what}_column={wanted}" if wanted else f"which column is the {what}? Set data.{what}_column"
        raise UserError(f"{self.where}: {given}; there are {', '.join(map(str, sample))}")


def _is_image(value: Any) -> bool:
    return isinstance(value, (Image.Image, np.ndarray)) or _is_tensor(value)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "numpy")


def _plain(label: Any) -> Any:
    """A tensor or array of one value as Python's own."""
    return label.tolist() if hasattr(label, "tolist") else label


def pixels_of(image: Any, name: str) -> np.ndarray:
    """One image object as uint8 [H, W, 3]; see the head of this file. Raises BadImage, which names it."""
    if isinstance(image, Image.Image):
        return upright_rgb(image, name)
    if _is_tensor(image):
        image = image.detach().cpu().numpy()
        if image.ndim == 3:
            if image.shape[0] not in (1, 3, 4):
                raise BadImage(name, f"a tensor of shape {image.shape} is no picture; torch has them as [C, H, W]")
            image = np.ascontiguousarray(image.transpose(1, 2, 0))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            fix = "drop ToTensor and Normalize from the dataset's transform: fastlg wants the picture itself"
            raise BadImage(name, f"pixels are {image.dtype}, not uint8; {fix}")
        return decode_image(image, name)
    raise BadImage(name, f"a {type(image).__name__} is no image; give a PIL image or a uint8 tensor")


def _class_names(data: Any, column: str) -> list[str] | None:
    """Those of a ClassLabel, or the ``classes`` of a torchvision dataset, also below a Subset; None without any."""
    while data is not None:
        features = getattr(data, "features", None)
        names = getattr(features.get(column), "names", None) if isinstance(features, Mapping) else None
        names = names or getattr(data, "classes", None)
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return list(names)
        below = getattr(data, "datasets", None)
        data = getattr(data, "dataset", None) or (below[0] if isinstance(below, (list, tuple)) and below else None)
    return None
