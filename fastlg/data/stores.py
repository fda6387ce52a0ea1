"""The decoded images of a run: both splits, found or made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastlg.config import DataConfig
from fastlg.config.sections import scheme_of
from fastlg.data.sources.base import Source
from fastlg.data.sources.choose import chosen_splits, dataset_of_paths, measurable
from fastlg.data.sources.objects import SCHEME, object_dataset, title_of
from fastlg.data.store.duplicates import find_split, rows_in
from fastlg.data.store.make import find_made, find_or_prepare, find_or_prepare_test, in_cache, stores_root
from fastlg.data.store.make_split import Shrink
from fastlg.data.store.store import Store, fingerprint_of, open_store, read_manifest
from fastlg.errors import RunError, UserError

SPLITS = ("train", "test", "val")  # in the order of Stores.splits


@dataclass(frozen=True)
class Stores:
    """The decoded images of a run, memory-mapped; all splits hold the same classes."""

    train: Store
    test: Store
    path: Path
    val: Store | None = None  # which chooses the best epoch, where data.val asks for it

    @property
    def splits(self) -> list[Store]:
        """All that are open."""
        return [self.train, self.test, *([self.val] if self.val is not None else [])]

    @property
    def fingerprints(self) -> list[str]:
        """What the images of all splits hash to, wherever they lie."""
        return [store.fingerprint for store in self.splits]

    @property
    def class_names(self) -> list[str]:
        return self.train.class_names


def held_out_in(stores: Stores, fingerprint: str, data: DataConfig) -> dict[str, int]:
    """Split -> how many of its images, which a run holds out of training, are images of the split of this fingerprint.

    What the run's own training split holds, too, is not counted; {} where no store of that split is left.
    """
    folders = [stores.path, stores_root(data.store)]
    if fingerprint == stores.train.fingerprint or (seen := find_split(fingerprint, folders)) is None:
        return {}
    held = [store for store in stores.splits if store is not stores.train]
    return {store.split: len(rows_in(store, seen) - rows_in(store, stores.train)) for store in held}


def what_changed(data: DataConfig, fingerprints: Sequence[str]) -> str:
    """What is known to differ of the images of ``data`` from those of these fingerprints, without reading an image: by
    the store of what lies there now or, where none was made, by that of what lay there. "" where nothing is."""
    if scheme_of(data.source):  # of one content, whenever it is fetched
        return ""
    with contextlib.suppress(UserError, RunError, OSError):  # whoever needs images that are gone says so
        options = {"label_column": data.label_column, "image_column": data.image_column}
        made = find_made(data.source, data.store, holdout=data.holdout, val=data.val, **options)
        if made is not None:
            manifest = read_manifest(made)
            splits = [split for split in SPLITS[: 2 + bool(data.val)] if split in manifest["splits"]]
            is_other = [fingerprint_of(manifest, split) for split in splits] != list(fingerprints)
            return f"{data.source} holds other images now" if is_other else ""
        seen = find_split(fingerprints[0], [stores_root(data.store)])
        if seen is not None and seen.manifest["source"] == data.source:
            return f"the files of {data.source} have changed (names, sizes or times)"
    return ""


def open_stores(data: DataConfig) -> Stores:
    """Finds or makes the store of ``data.source``. Raises UserError on bad images, classes or paths."""
    most = max(32, 16 * (os.cpu_count() or 1))
    if data.workers > most:  # each is a process of some 100 MB
        raise UserError(f"data.workers is {data.workers}; on the {os.cpu_count()} cores of this machine at most {most}")
    path = find_or_prepare(
        data.source,
        data.store,
        on_bad=data.on_bad,
        holdout=data.holdout,
        label_column=data.label_column,
        image_column=data.image_column,
        download=data.download,
        val=data.val,
        workers=max(1, data.workers),
    )
    val = open_store(path, "val") if data.val else None
    return Stores(open_store(path, "train"), open_store(path, "test"), path, val)


def store_to_measure(data: DataConfig, class_names: Sequence[str]) -> Path:
    """The store of ``data``'s test images, on which a model of these classes is measured; see ``find_or_prepare_test``.

    They may be others than those it was trained on, and are matched by class name.
    """
    return find_or_prepare_test(
        data.source,
        list(class_names),
        data.store,
        on_bad=data.on_bad,
        workers=max(1, data.workers),
        label_column=data.label_column,
        image_column=data.image_column,
        download=data.download,
    )


def store_of_objects(images: Any, data: DataConfig, class_names: list[str] | None = None) -> Path:
    """The store of images that are Python objects (data/sources/objects.py), known by their content: made first if need
    be. As a ``data.source`` of its own it needs the objects no more.

    data         holdout, val, columns, store and on_bad of it count
    class_names  of a model to be measured: what is stored then are the test images, or all where there are no splits

    Raises UserError.
    """
    _refuse_own_validation(data)
    found, spec = object_dataset(images, data.label_column, data.image_column), f"{SCHEME}{title_of(images)}"
    sources: dict[str, Source]
    if class_names is None:
        sources = chosen_splits(found, spec, holdout=data.holdout, val=data.val)
    else:
        sources = {"test": measurable(found, spec, class_names)}
    return in_cache(spec, sources, data.store, data.on_bad, Shrink(), workers=1)  # they are decoded already


def store_of_paths(paths: dict[str, str], data: DataConfig) -> Path:
    """The store of splits that lie in places of their own, {train: path, test: path}; as ``store_of_objects``."""
    _refuse_own_validation(data)
    found = dataset_of_paths(paths, data.label_column, data.image_column, data.download)
    spec = f"{SCHEME}{Path(paths[next(iter(paths))]).name}"
    sources = chosen_splits(found, spec, holdout=data.holdout, val=data.val)
    return in_cache(spec, sources, data.store, data.on_bad, Shrink(), workers=max(1, data.workers))


def _refuse_own_validation(data: DataConfig) -> None:
    if data.val == "split":
        raise UserError(
            "data.val=split takes the validation split of a data set on disk; of images that are handed in give a "
            "share of the training images, as data.val=0.1"
        )
