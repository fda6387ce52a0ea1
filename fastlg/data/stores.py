"""The decoded images of a run: both splits, found or made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fastlg.config import DataConfig
from fastlg.data.store.make import find_or_prepare
from fastlg.data.store.store import Store, open_store
from fastlg.errors import UserError


@dataclass(frozen=True)
class Stores:
    """The decoded images of a run, memory-mapped; train and test hold the same classes."""

    train: Store
    test: Store
    path: Path

    @property
    def fingerprints(self) -> list[str]:
        """What the images of both splits hash to, wherever they lie."""
        return [self.train.fingerprint, self.test.fingerprint]

    @property
    def class_names(self) -> list[str]:
        return self.train.class_names


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
        workers=max(1, data.workers),
    )
    return Stores(open_store(path, "train"), open_store(path, "test"), path)
