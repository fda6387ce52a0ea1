"""Write a store's images as a `.beton` file (its layout: beton_read.py): raw pixels, or JPEG files as they are."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fastlg.data.sources.base import Source
from fastlg.data.store.beton_read import (
    ALLOCATION_TYPE,
    FIELD_TYPE,
    FILE_NAME,
    HEADER_TYPE,
    IMAGE,
    INT,
    JPEG,
    RAW,
    VERSION,
    find_beton,
    metadata_type,
)
from fastlg.data.store.store import Store
from fastlg.errors import RunError, UserError
from fastlg.files.lock import file_lock
from fastlg.files.progress import progress_bar

log = logging.getLogger(__name__)

MODES = {"raw": RAW, "jpeg": JPEG}
PAGE, MAX_PAGE = 1 << 23, 1 << 31  # bytes: FFCV's default and bound
MAX_SIDE = 65535  # pixels
JPEG_QUALITY = 95  # of images that were no JPEG files before
_EXIF_ORIENTATION = 0x0112


def write_beton(
    store: Store,
    path: str | Path | None = None,
    *,
    mode: str = "raw",
    source: Source | None = None,
    quality: int = JPEG_QUALITY,
) -> Path:
    """Write the images and labels of a store as a .beton file, in the store's order, atomically.

    Args:
        store: one split, from ``open_store``.
        path: None is where ``find_beton`` looks: ``images.beton`` in the split's folder.
        mode: "raw" keeps the store's pixels. "jpeg" takes over the source's JPEG files byte for byte where the store
            has their pixels as they are (not shrunk, not turned by EXIF, RGB or grey), and compresses all others.
        source: what the store was made from; without it ``mode="jpeg"`` compresses every image.
        quality: of compressed images, 1 to 100, without chroma subsampling.

    Returns:
        The file's path.

    Raises:
        UserError: an unknown mode, an image FFCV's format has no room for, or ``source`` is not the store's.
        RunError: the disk is full or cannot be written.
    """
    if mode not in MODES:
        raise UserError(f"beton={mode!r} is unknown; choose {' or '.join(MODES)}")
    if (side := store.sizes.max()) > MAX_SIDE:
        raise UserError(f"{store.path}: an image {side} pixels long is above FFCV's {MAX_SIDE}; prepare it smaller")
    path = Path(path) if path is not None else store.path / store.split / FILE_NAME
    read = _raw(store) if mode == "raw" else _jpeg(store, source, quality)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file, progress_bar(f"write {path.name}", len(store)) as advance:
            _write(file, store, MODES[mode], read, advance)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    log.info("%s: %d images, %.1f MiB", path, len(store), path.stat().st_size / 2**20)
    return path


def ensure_beton(store: Store, mode: str, source: Source | None = None) -> Path:
    """Write the .beton file of a store's folder unless it is there already, whole and of this ``mode``.

    Of several processes at once, one writes and the others wait for it. Arguments and errors: as ``write_beton``.
    """
    path = store.path / store.split / FILE_NAME
    try:
        with file_lock(path.with_name(path.name + ".lock"), f"writing {path}"):
            with contextlib.suppress(UserError):
                beton = find_beton(store)
                if beton is not None and mode in MODES and (beton.is_jpeg == (mode == "jpeg")).all():
                    return path
            return write_beton(store, mode=mode, source=source)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; make the store's folder writable") from error


def _raw(store: Store) -> Callable[[int], np.ndarray]:
    return lambda i: store.pixels[store.offsets[i] : store.offsets[i + 1]]


def _jpeg(store: Store, source: Source | None, quality: int) -> Callable[[int], np.ndarray]:
    """What image i of the store is written as: its own JPEG file, or its pixels compressed."""
    rows = None
    if source is not None:
        if source.fingerprint() != store.info["source_fingerprint"]:
            raise UserError(f"{source.where} is not what {store.path} was made from, or changed; prepare it again")
        rows = np.setdiff1d(np.arange(len(source)), [row for row, _, _ in store.info["rejected"]])

    def read(i: int) -> np.ndarray:
        data = source.read(int(rows[i])) if rows is not None else None
        if isinstance(data, bytes) and _holds_the_pixels(data, store.sizes[i]):
            return np.frombuffer(data, np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(store.images(i)).save(buffer, "JPEG", quality=quality, subsampling=0)
        return np.frombuffer(buffer.getvalue(), np.uint8)

    return read


def _holds_the_pixels(data: bytes, size: np.ndarray) -> bool:
    """Whether any JPEG decoder makes the store's image of this file: a plain JPEG of the stored height and width."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format != "JPEG" or image.mode not in ("RGB", "L") or image.size != (size[1], size[0]):
            return False
        return image.getexif().get(_EXIF_ORIENTATION, 1) == 1


def _write(file, store: Store, mode: int, read: Callable[[int], np.ndarray], advance: Callable[[int], None]) -> None:
    count = len(store)
    largest = 3 * int(store.sizes.prod(1).max())
    page = max(PAGE, 1 << (largest - 1).bit_length())
    if page > MAX_PAGE:
        raise UserError(f"{store.path}: an image of {largest} bytes is above FFCV's {MAX_PAGE}; prepare it smaller")
    metadata = np.zeros(count, metadata_type([IMAGE, INT]))
    table = np.zeros(count, ALLOCATION_TYPE)
    position = _whole_pages(HEADER_TYPE.itemsize + 2 * FIELD_TYPE.itemsize + metadata.nbytes, page)
    digest = hashlib.sha256()
    for i in range(count):
        data = read(i)
        if len(data) > page:
            raise UserError(f"{store.path}: image {i} takes {len(data)} bytes as JPEG, more than raw; write it raw")
        if position % page + len(data) > page:
            position = _whole_pages(position, page)
        file.seek(position)
        file.write(data.data)
        digest.update(data.data)
        height, width = store.sizes[i]
        metadata[i] = ((mode, width, height, position), store.labels[i])
        table[i] = (i, position, len(data))
        position += len(data)
        advance(1)
    position = _whole_pages(position, page)
    file.truncate(position)  # FFCV reads whole pages
    file.seek(position)
    file.write(table.tobytes())
    digest.update(metadata.tobytes() + table.tobytes())
    fields = np.zeros(2, FIELD_TYPE)
    fields["type"], fields["name"] = (IMAGE, INT), (b"image", b"label")
    note = json.dumps({"store": store.fingerprint, "sha256": digest.hexdigest()})
    fields["arguments"][1] = np.void(note.encode().ljust(1024, b"\0"))
    header = np.array((VERSION, len(fields), page, count, position), HEADER_TYPE)
    file.seek(0)
    file.write(header.tobytes() + fields.tobytes() + metadata.tobytes())


def _whole_pages(position: int, page: int) -> int:
    return -(-position // page) * page
