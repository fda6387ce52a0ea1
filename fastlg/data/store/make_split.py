"""Decode, check and write one split of a store, in parts that survive a kill.

Pixels are appended to pixels.bin; after every part (about 32 MiB) one line of parts.jsonl records what it holds. A
later call keeps the parts whose bytes still match their hash and goes on behind them.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from fastlg.data.sources.base import Source
from fastlg.data.store.decode import BadImage, decode_image
from fastlg.data.store.store import ARRAYS, hash_range, write_stamp
from fastlg.errors import RunError, UserError
from fastlg.files.atomic import sync

PART_BYTES = 32 << 20
PART_ROWS = 4096  # also the most samples whose decoding a kill can cost
_TASK_ROWS = 16  # rows per work item: small images decode in less time than a queue takes to hand them over


@dataclass(frozen=True)
class Shrink:
    """How images are reduced (Lanczos, never enlarged): longest or shortest side in pixels; both None keeps all."""

    max_side: int | None = None
    short_side: int | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        if self.max_side is not None:
            factor = self.max_side / max(height, width)
        elif self.short_side is not None:
            factor = self.short_side / min(height, width)
        else:
            return pixels
        if factor >= 1:
            return pixels
        size = max(1, round(width * factor)), max(1, round(height * factor))
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def write_split(
    source: Source, folder: Path, shrink: Shrink, workers: int, advance: Callable[[int], None]
) -> list[dict]:
    """Write ``folder``/pixels.bin from all images of ``source``, going on behind the parts already there.

    Args:
        workers: decoding processes; 1 decodes in this one.
        advance: called with the number of images done since the last call.

    Returns:
        The parts in order: rows (source rows: first, end), kept (rows), sizes, digests (of pixels and shape, hex),
        rejected ([row, name, reason]), sum and square (per channel over all pixels), bytes, sha256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = _finished_parts(folder)
    done = parts[-1]["rows"][1] if parts else 0
    advance(done)
    with open(folder / "pixels.bin", "ab") as pixels, open(folder / "parts.jsonl", "w", encoding="utf-8") as record:
        pixels.truncate(sum(part["bytes"] for part in parts))
        pixels.seek(0, os.SEEK_END)
        for part in parts:
            record.write(json.dumps(part) + "\n")
        for part in _parts(source, done, shrink, workers, pixels):
            pixels.flush()
            record.write(json.dumps(part) + "\n")
            record.flush()
            parts.append(part)
            advance(part["rows"][1] - part["rows"][0])
        os.fsync(pixels.fileno())
    return parts


def flat(parts: list[dict], name: str) -> list:
    return [item for part in parts for item in part[name]]


def finish_split(source: Source, folder: Path, parts: list[dict]) -> dict:
    """Write offsets, sizes and labels; return the split's manifest entry. The record of parts is no longer needed."""
    rows = np.array(flat(parts, "kept"), dtype=np.int64)
    sizes = np.array(flat(parts, "sizes"), dtype=np.int64).reshape(-1, 2)
    labels = source.labels[rows]
    lost = np.setdiff1d(source.labels, labels)
    if len(lost):
        names = ", ".join(repr(source.class_names[label]) for label in lost[:5])
        raise UserError(f"{source.where}: no usable image is left of class {names}; mend the files or remove the class")
    offsets = np.concatenate([[0], np.cumsum(sizes.prod(1) * 3)]).astype(np.int64)
    hashes = {}
    for name, array in zip(ARRAYS, (offsets, sizes, labels), strict=True):
        np.save(folder / f"{name}.npy", array)
        sync(folder / f"{name}.npy")
        hashes[name] = hashlib.sha256((folder / f"{name}.npy").read_bytes()).hexdigest()
    pixels = int(sizes.prod(1).sum())
    total = np.sum([part["sum"] for part in parts], axis=0) / (255 * pixels)
    square = np.sum([part["square"] for part in parts], axis=0) / (255 * 255 * pixels)
    (folder / "parts.jsonl").unlink()
    write_stamp(folder)
    return {
        "count": len(rows),
        "bytes": pixels * 3,
        "class_counts": np.bincount(labels, minlength=len(source.class_names)).tolist(),
        "mean": total.tolist(),
        "std": np.sqrt(square - total**2).tolist(),
        "source_fingerprint": source.fingerprint(),
        "rejected": flat(parts, "rejected"),
        "arrays": hashes,
        "parts": [{"bytes": part["bytes"], "sha256": part["sha256"]} for part in parts],
    }


def _finished_parts(folder: Path) -> list[dict]:
    """The recorded parts whose pixels are on disk unchanged."""
    parts: list[dict] = []
    try:
        lines = (folder / "parts.jsonl").read_text(encoding="utf-8").splitlines()
        with open(folder / "pixels.bin", "rb") as pixels:
            start = 0
            for line in lines:
                part = json.loads(line)
                if hash_range(pixels, start, part["bytes"]) != part["sha256"]:
                    break
                parts.append(part)
                start += part["bytes"]
    except (OSError, ValueError):  # nothing there yet, or a last line that a kill cut short
        pass
    return parts


def _parts(source: Source, start: int, shrink: Shrink, workers: int, pixels) -> Iterator[dict]:
    """Append the images from row ``start`` on to the open file ``pixels``; yield each part when it is full."""
    part, digest = _new_part(start), hashlib.sha256()
    for row, result in _decoded(source, start, shrink, workers):
        if isinstance(result, BadImage):
            part["rejected"].append([row, result.name, result.reason])
        else:
            image, fingerprint, total, square = result
            pixels.write(image.data)
            digest.update(image.data)
            part["kept"].append(row)
            part["sizes"].append(list(image.shape[:2]))
            part["digests"].append(fingerprint)
            part["sum"] = [a + int(b) for a, b in zip(part["sum"], total, strict=True)]
            part["square"] = [a + int(b) for a, b in zip(part["square"], square, strict=True)]
            part["bytes"] += image.nbytes
        full = part["bytes"] >= PART_BYTES or row + 1 - part["rows"][0] >= PART_ROWS
        if full or row + 1 == len(source):
            part["rows"][1] = row + 1
            part["sha256"] = digest.hexdigest()
            yield part
            part, digest = _new_part(row + 1), hashlib.sha256()


def _new_part(row: int) -> dict:
    lists = {name: [] for name in ("kept", "sizes", "digests", "rejected")}
    return {"rows": [row, row], **lists, "sum": [0, 0, 0], "square": [0, 0, 0], "bytes": 0}


def _decoded(source: Source, start: int, shrink: Shrink, workers: int) -> Iterator[tuple[int, object]]:
    """(row, decoded image or BadImage) in row order, decoded ahead by ``workers`` processes."""
    tasks = range(start, len(source), _TASK_ROWS)
    if workers <= 1 or len(tasks) <= 4:
        for row in range(start, len(source)):
            yield row, _decode_one(_read(source, row), source.name(row), shrink)
        return
    # Forked, so that a plain script without a __main__ guard works; the children only decode bytes they are sent.
    pool = ProcessPoolExecutor(workers, get_context("fork"), initializer=_end_with, initargs=(os.getpid(),))
    ahead: deque[tuple[int, Future]] = deque()
    unsent = iter(tasks)
    try:
        while True:
            while len(ahead) < 2 * workers and (first := next(unsent, None)) is not None:
                rows = range(first, min(first + _TASK_ROWS, len(source)))
                items = [(_read(source, row), source.name(row)) for row in rows]
                ahead.append((first, pool.submit(_decode_many, items, shrink)))
            if not ahead:
                return
            first, future = ahead.popleft()
            for offset, result in enumerate(future.result()):
                yield first + offset, result
    except BrokenExecutor:
        raise RunError("a decoding process was killed (out of memory?); go on with fewer workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _read(source: Source, row: int) -> bytes | np.ndarray | BadImage:
    try:
        return source.read(row)
    except BadImage as error:
        return error


def _end_with(parent: int) -> None:
    """In a worker: leave when the parent is gone. A killed parent cannot tell its workers to stop."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _decode_many(items: list[tuple[bytes | np.ndarray | BadImage, str]], shrink: Shrink) -> list:
    return [_decode_one(data, name, shrink) for data, name in items]


def _decode_one(data: bytes | np.ndarray | BadImage, name: str, shrink: Shrink):
    """(pixels, digest, sum, sum of squares per channel), or the BadImage that says why not."""
    if isinstance(data, BadImage):
        return data
    try:
        image = shrink(decode_image(data, name))
    except BadImage as error:
        return error
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image.data)
    # along rows first: one contiguous pass each, and 32 bits hold any column
    total = image.sum(0, dtype=np.uint32).sum(0, dtype=np.uint64)
    square = np.square(image, dtype=np.uint16).sum(0, dtype=np.uint64).sum(0)
    return image, digest.hexdigest(), total, square
