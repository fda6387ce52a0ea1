"""The raw store: every image of a dataset decoded once, uint8 pixels back to back, read through a memory map.

STORE/manifest.json            what it was made from, counts, statistics, hashes, refused files, duplicates
STORE/train/pixels.bin         uint8, image after image, each [h, w, 3]
STORE/train/offsets.npy        int64 [N + 1], first byte of each image, then the end
STORE/train/sizes.npy          int64 [N, 2], height and width in pixels
STORE/train/labels.npy         int64 [N]
STORE/test/...                 the same
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np

from fastlg.errors import UserError
from fastlg.files.reading import read_regular
from fastlg.files.verify import Digested

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST = 64 << 20  # bytes; it grows by a line for each image that is left out
ARRAYS = ("offsets", "sizes", "labels")


class Store:
    """One split of a store, read-only. Row i is the sample whose ``sample_id`` is i.

    pixels   uint8 [bytes], memory-mapped
    offsets  int64 [N + 1]    sizes  int64 [N, 2] (height, width)    labels  int64 [N]
    """

    def __init__(self, path: Path, split: str, manifest: dict):
        """Use ``open_store``, which checks the files first."""
        self.path = path
        self.split = split
        self.manifest = manifest
        folder = path / split
        self.offsets, self.sizes, self.labels = (np.load(folder / f"{name}.npy") for name in ARRAYS)
        self.pixels = np.memmap(folder / "pixels.bin", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self):
        return Store, (self.path, self.split, self.manifest)  # workers map the file; pixels are never pickled

    @property
    def class_names(self) -> list[str]:
        return self.manifest["class_names"]

    @property
    def info(self) -> dict:
        """The split's part of the manifest: count, mean, std (RGB, of 0..1), class_counts, rejected, duplicates."""
        return self.manifest["splits"][self.split]

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of pixels, sizes, labels and class names: the same wherever and whenever the store was made."""
        return fingerprint_of(self.manifest, self.split)

    def digested(self) -> Digested:
        """For a ``Verification``: pixels alone, the arrays were hashed when they were read."""
        parts = [(part["bytes"], part["sha256"]) for part in self.info["parts"]]
        return Digested(
            self.path / self.split / "pixels.bin", parts, lambda reason: _broken(self.path, f"{self.split}/{reason}")
        )

    def images(self, i: int) -> np.ndarray:
        """Image i, uint8 [h, w, 3], a view of the map."""
        height, width = self.sizes[i]
        return self.pixels[self.offsets[i] : self.offsets[i + 1]].reshape(height, width, 3)


def is_store(path: Path) -> bool:
    """Whether a store's manifest lies at ``path`` (its files are not checked)."""
    try:
        return json.loads(read_regular(path / MANIFEST, MAX_MANIFEST)).get("kind") == "fastlg store"
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def open_store(path: str | Path, split: str, *, verify: bool | None = None) -> Store:
    """Open one split of a store after checking that it is whole.

    Sizes and the hashes of manifest, offsets, sizes and labels are always checked. Pixels are hashed when the file's
    modification time is not the one noted at the last check (``verify=None``), always (True) or never (False).

    Raises:
        UserError: no store there, no such split, a newer format, or a file that was cut short or altered.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if split not in manifest["splits"]:
        raise UserError(f"store {path} has no split {split!r}, only {', '.join(manifest['splits'])}; prepare it again")
    info, folder = manifest["splits"][split], path / split
    for name in ARRAYS:
        data = _bytes(path, folder / f"{name}.npy")
        if hashlib.sha256(data).hexdigest() != info["arrays"][name]:
            raise _broken(path, f"{split}/{name}.npy was altered or cut short")
    _check_pixels(path, split, info, verify)
    return Store(path, split, manifest)


def read_manifest(path: Path) -> dict:
    """The manifest, its own digest checked.

    Raises:
        UserError: no store there, a newer format, or an altered manifest.
    """
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path} is no fastlg store (no {MANIFEST}); make one with fastlg prepare SOURCE {path}")
    if not is_store(path):
        raise _broken(path, f"{MANIFEST} cannot be read")
    manifest = json.loads(read_regular(path / MANIFEST, MAX_MANIFEST))
    if manifest.get("format") != FORMAT:
        found = manifest.get("format")
        raise UserError(f"store {path} has format {found}, this fastlg reads {FORMAT}; prepare it again")
    if manifest.pop("sha256", None) != manifest_digest(manifest):
        raise _broken(path, f"{MANIFEST} was altered")
    return manifest


def fingerprint_of(manifest: dict, split: str) -> str:
    """What the content of one split hashes to, see ``Store.fingerprint``."""
    info = manifest["splits"][split]
    return hashlib.sha256(json.dumps([info["parts"], info["arrays"], manifest["class_names"]]).encode()).hexdigest()


def manifest_digest(manifest: dict) -> str:
    """SHA-256 of a manifest without its own ``sha256`` entry."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def write_stamp(folder: Path) -> None:
    """Note that ``pixels.bin`` in ``folder`` was found whole as it is now; a read-only store goes without."""
    with contextlib.suppress(OSError):
        status = (folder / "pixels.bin").stat()
        (folder / "checked.json").write_text(json.dumps([status.st_size, status.st_mtime_ns]))


def hash_range(file, start: int, count: int) -> str:
    """SHA-256 of ``count`` bytes of an open binary file from ``start``."""
    file.seek(start)
    digest = hashlib.sha256()
    while count > 0:
        block = file.read(min(count, 1 << 22))
        if not block:
            break
        digest.update(block)
        count -= len(block)
    return digest.hexdigest()


def _check_pixels(path: Path, split: str, info: dict, verify: bool | None) -> None:
    file = path / split / "pixels.bin"
    try:
        status = file.stat()
    except OSError:
        raise _broken(path, f"{split}/pixels.bin is missing") from None
    if status.st_size != info["bytes"]:
        raise _broken(path, f"{split}/pixels.bin has {status.st_size} bytes instead of {info['bytes']}")
    if verify is False or (verify is None and _stamp(path / split) == [status.st_size, status.st_mtime_ns]):
        return
    start = 0
    with open(file, "rb") as pixels:
        for part in info["parts"]:
            if hash_range(pixels, start, part["bytes"]) != part["sha256"]:
                raise _broken(path, f"{split}/pixels.bin was altered between bytes {start} and {start + part['bytes']}")
            start += part["bytes"]
    write_stamp(path / split)


def _stamp(folder: Path) -> list[int] | None:
    try:
        return json.loads((folder / "checked.json").read_text())
    except (OSError, ValueError):
        return None


def _bytes(path: Path, file: Path) -> bytes:
    try:
        return read_regular(file)
    except OSError as error:
        raise _broken(path, f"{os.path.relpath(file, path)} cannot be read ({error.strerror})") from None


def _broken(path: Path, reason: str) -> UserError:
    return UserError(f"store {path} is damaged: {reason}; delete it and prepare it again")
