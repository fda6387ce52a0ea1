"""Images of a dataset that are equal pixel for pixel, within a split and across train and test."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fastlg.data.sources.base import Source
from fastlg.data.store.store import Store, fingerprint_of, is_store, open_store, read_manifest
from fastlg.errors import UserError

_MARK = 64  # bytes from an image's middle, by which most that differ are told apart unread
_EXAMPLES = 20  # groups named in the report


def duplicate_report(sources: dict[str, Source], parts: dict[str, list[dict]]) -> dict:
    """Groups of equal images: how many per split, across splits and with two labels, and the first of them by name.

    Args:
        parts: what ``write_split`` returned for each split.
    """
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for split, split_parts in parts.items():
        for part in split_parts:
            for row, digest in zip(part["kept"], part["digests"], strict=True):
                found[digest].append((split, row))
    groups = [group for group in found.values() if len(group) > 1]
    counts: dict[str, int] = defaultdict(int)
    two_labels = 0
    for group in groups:
        splits = {split for split, _ in group}
        counts[f"{splits.pop()} only" if len(splits) == 1 else " and ".join(s for s in parts if s in splits)] += 1
        two_labels += len({int(sources[split].labels[row]) for split, row in group}) > 1

    def describe(split: str, row: int) -> str:
        source = sources[split]
        return f"{split}: {source.name(row)}, {source.class_names[source.labels[row]]}"

    examples = [[describe(*member) for member in group] for group in groups[:_EXAMPLES]]
    return {"groups": len(groups), **counts, "with two labels": two_labels, "examples": examples}


def rows_in(of: Store, among: Store) -> set[int]:
    """Rows of ``of`` whose image is, pixel for pixel, one of ``among``. Few that differ are read whole."""
    marks, others = _marks(of), _marks(among)
    near = set(marks) & set(others)
    digests = {_digest(among.images(row)) for row, mark in enumerate(others) if mark in near}
    return {row for row, mark in enumerate(marks) if mark in near and _digest(of.images(row)) in digests}


def _marks(store: Store) -> list[tuple]:
    pixels, ends = np.asarray(store.pixels), store.offsets[1:].tolist()
    middles = ((store.offsets[:-1] + store.offsets[1:]) // 2).tolist()
    marks = [pixels[middle : min(middle + _MARK, end)].tobytes() for middle, end in zip(middles, ends, strict=True)]
    return [(*size, mark) for size, mark in zip(store.sizes.tolist(), marks, strict=True)]


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def find_split(fingerprint: str, folders: Iterable[Path]) -> Store | None:
    """The split of this content in one of some stores, or right below one of some folders; None where it is in none."""
    for folder in folders:
        inside = sorted(folder.iterdir()) if folder.is_dir() and not is_store(folder) else [folder]
        for path in inside:
            try:
                manifest = read_manifest(path)
                for split in manifest["splits"]:
                    if fingerprint_of(manifest, split) == fingerprint:
                        return open_store(path, split)
            except (UserError, OSError):  # no store, or one that nobody asked for
                continue
    return None
