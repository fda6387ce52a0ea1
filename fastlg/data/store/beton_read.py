"""Read `.beton` files, the format of FFCV, without FFCV. beton_write.py writes them, data/sources/beton.py takes a
user's own.

Layout (version 2; every number little-endian, pointers are positions in the file):

    header       version u2, fields u2, page size u4, samples u8, position of the allocation table u8
    fields       per field: type u1 (1 int, 2 image, ...), name 16 bytes, 1024 bytes for the field's arguments
    metadata     per sample one C struct of all fields; an image's are mode u1 (0 JPEG, 1 raw), width u2, height u2,
                 pointer u8
    pages        the images; none crosses the border of a page, and pages start at multiples of the page size
    allocations  per image: sample u8, pointer u8, bytes u8

FFCV leaves the arguments of an int field unread: fastlg notes there which store the file was made from, and a digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastlg.data.store.store import Store
from fastlg.errors import UserError
from fastlg.files.reading import check_regular

FILE_NAME = "images.beton"  # beside the split's pixels.bin
VERSION = 2
INT, IMAGE = 1, 2  # field types
TYPE_NAMES = ("float", "int", "image", "bytes", "array", "JSON", "tensor")  # by type
JPEG, RAW = 0, 1  # image modes

HEADER_TYPE = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
FIELD_TYPE = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "V1024")], align=True)
ALLOCATION_TYPE = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("bytes", "<u8")])
_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
_BYTES = np.dtype([("pointer", "<u8"), ("bytes", "<u8")])
# what a field of each type keeps per sample: float, int, image, bytes, array, JSON, tensor
_FIELD_DATA = {0: "<f8", INT: "<i8", IMAGE: _IMAGE, 3: _BYTES, 4: "<u8", 5: _BYTES, 6: "<u8"}


def metadata_type(types: list[int]) -> np.dtype:
    """The struct a file with fields of these types keeps per sample, members f0, f1, ..."""
    return np.dtype([(f"f{i}", _FIELD_DATA[kind]) for i, kind in enumerate(types)], align=True)


@dataclass(frozen=True)
class Beton:
    """An opened .beton file. Row i is sample i.

    sizes   int64 [N, 2]: height, width    labels  int64 [N]    is_jpeg  bool [N]
    data    uint8 [bytes of the file], memory-mapped; private, so that nothing reaches the file
    starts  int64 [N]: first byte of each image in ``data``    lengths  int64 [N]: its bytes
    store   fingerprint of the store it was made from; None in files that other programs wrote
    """

    path: Path
    sizes: np.ndarray
    labels: np.ndarray
    is_jpeg: np.ndarray
    data: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    store: str | None

    def __len__(self) -> int:
        return len(self.labels)

    def stored(self, i: int) -> np.ndarray:
        """The bytes of image i as they lie in the file, uint8 [n]: a JPEG file or raw pixels."""
        return self.data[self.starts[i] : self.starts[i] + self.lengths[i]]


def open_beton(path: str | Path, image_field: str | None = None, label_field: str | None = None) -> Beton:
    """Open a .beton file, of fastlg or of FFCV, after checking that it is whole.

    The digest that fastlg notes is computed again only when the file's size or time changed since the last check.

    Args:
        image_field, label_field: names of the fields with the images and the labels; None takes those named "image"
            and "label", or the only image field and the only int field.

    Raises:
        UserError: no such file, no .beton file, no image or label field or no telling which, no samples, a file that
            was cut short or altered.
    """
    path = Path(path)
    try:
        check_regular(path)
        data = np.memmap(path, dtype=np.uint8, mode="c")
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise UserError(f"{path} cannot be read as .beton ({error}); write it again") from None
    head = _rows(path, data, 0, HEADER_TYPE, 1)[0]
    if head["version"] != VERSION:
        raise UserError(f"{path} is no .beton file of format {VERSION}; write it with fastlg prepare or FFCV")
    fields = _rows(path, data, HEADER_TYPE.itemsize, FIELD_TYPE, int(head["fields"]))
    types = fields["type"].tolist()
    if unknown := [kind for kind in types if kind not in _FIELD_DATA]:
        raise UserError(f"{path} has a field of a custom type ({unknown[0]}); write it with FFCV's own field types")
    names = {kind: _names(fields, kind) for kind in _FIELD_DATA}
    image = _choose(path, names, IMAGE, "image", image_field)
    label = _choose(path, names, INT, "label", label_field)
    if head["samples"] == 0:
        raise UserError(f"{path} holds no samples; write it again")
    start = HEADER_TYPE.itemsize + fields.nbytes
    metadata = _rows(path, data, start, metadata_type(types), int(head["samples"]))
    start = int(head["table"])
    table = _rows(path, data, start, ALLOCATION_TYPE, max(len(data) - start, 0) // ALLOCATION_TYPE.itemsize)
    note = _note(fields["arguments"][min(names[INT].values())])
    beton = _beton(path, data, metadata[f"f{image}"], metadata[f"f{label}"], table, note.get("store"))
    if note and _stamp(path) != _noted_stamp(path):
        _verify(beton, metadata, table, note["sha256"])
    return beton


def _names(fields: np.ndarray, kind: int) -> dict[str, int]:
    """Fields of one type: name -> position."""
    found = np.flatnonzero(fields["type"] == kind).tolist()
    return {fields["name"][i].decode("ascii", "backslashreplace"): i for i in found}


def _choose(path: Path, names: dict[int, dict[str, int]], kind: int, usual: str, wanted: str | None) -> int:
    """Position of the field that holds the images (the labels), by ``data.image_column`` or by its usual name."""
    fits, option = names[kind], f"data.{usual}_column"
    there = ", ".join(f"{name} ({TYPE_NAMES[other]})" for other in names for name in names[other]) or "none"
    if wanted is not None and wanted not in fits:
        raise UserError(f"{option}={wanted}: {path} has no {TYPE_NAMES[kind]} field of that name; its fields: {there}")
    if not fits:
        raise UserError(f"{path} has no {TYPE_NAMES[kind]} field for the {usual}; its fields: {there}; write one")
    if wanted is None and usual not in fits and len(fits) > 1:
        raise UserError(f"{path}: which field is the {usual}? Set {option} to one of {', '.join(fits)}")
    return fits[wanted or (usual if usual in fits else next(iter(fits)))]


def _rows(path: Path, data: np.ndarray, start: int, dtype: np.dtype, count: int) -> np.ndarray:
    stop = start + dtype.itemsize * count
    if stop > len(data):
        raise UserError(f"{path} was cut short: {len(data)} bytes instead of at least {stop}; write it again")
    return np.frombuffer(data[start:stop].tobytes(), dtype)


def _note(arguments: np.void) -> dict:
    """What fastlg noted in the file; empty for files of other programs."""
    try:
        note = json.loads(bytes(arguments).rstrip(b"\0"))
        return note if {"store", "sha256"} <= note.keys() else {}
    except (ValueError, AttributeError, RecursionError):
        return {}


def _beton(
    path: Path, data: np.ndarray, images: np.ndarray, labels: np.ndarray, table: np.ndarray, store: str | None
) -> Beton:
    """The samples, every image's place checked."""
    table = table[np.argsort(table["pointer"], kind="stable")]  # several of FFCV's writers take turns
    slots = np.minimum(np.searchsorted(table["pointer"], images["pointer"]), len(table) - 1)
    if len(table) == 0 or (table["pointer"][slots] != images["pointer"]).any():
        raise UserError(f"{path} was cut short or altered: images and allocation table differ; write it again")
    sizes = np.stack([images["height"], images["width"]], axis=1).astype(np.int64)
    starts, lengths = images["pointer"].astype(np.int64), table["bytes"][slots].astype(np.int64)
    is_jpeg, is_raw = images["mode"] == JPEG, images["mode"] == RAW
    outside = (starts < 0) | (lengths < 0) | (starts > len(data) - lengths)
    if (outside | ~(is_jpeg | is_raw) | (is_raw & (lengths != sizes.prod(1) * 3))).any():
        raise UserError(f"{path} was altered: sizes of images do not match their bytes; write it again")
    return Beton(path, sizes, labels.astype(np.int64), is_jpeg, data, starts, lengths, store)


def _verify(beton: Beton, metadata: np.ndarray, table: np.ndarray, expected: str) -> None:
    stamp = _stamp(beton.path)
    digest = hashlib.sha256()
    for i in range(len(beton)):
        digest.update(beton.stored(i).data)
    digest.update(metadata.tobytes() + table.tobytes())
    if digest.hexdigest() != expected:
        raise UserError(f"{beton.path} was altered: its content does not match its digest; write it again")
    with contextlib.suppress(OSError):  # in a read-only folder it is checked every time
        _stamp_file(beton.path).write_text(json.dumps(stamp))


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _noted_stamp(path: Path) -> list[int] | None:
    """Size and time of the file when its digest was last found right."""
    try:
        return json.loads(_stamp_file(path).read_text())
    except (OSError, ValueError):
        return None


def _stamp_file(path: Path) -> Path:
    return path.with_name(path.name + ".checked.json")


def find_beton(store: Store) -> Beton | None:
    """The .beton file in the store's folder, if there is one.

    Raises:
        UserError: the file is damaged or holds other images.
    """
    path = store.path / store.split / FILE_NAME
    if not path.exists():
        return None
    beton = open_beton(path)
    same = np.array_equal(beton.sizes, store.sizes) and np.array_equal(beton.labels, store.labels)
    if not same or beton.store not in (None, store.fingerprint):
        raise UserError(f"{path} holds other images than its store; delete it and write it again")
    return beton
