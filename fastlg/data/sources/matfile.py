"""Read the plain numeric arrays of a MATLAB 5 file (setid.mat, imagelabels.mat) without SciPy.

scipy.io.loadmat unpacks whatever a file says (512 MiB from one of 255 KiB), and would be a dependency for two files.
Format: MathWorks, "MAT-File Format", level 5: a 128-byte header, then tagged elements, each perhaps zlib-compressed.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from fastlg.errors import UserError
from fastlg.files.reading import read_regular

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
MAX_BYTES = 64 << 20  # of the file, and of what it unpacks to; the official files have less than 20 KiB


def read_mat(path: Path) -> dict[str, np.ndarray]:
    """All real numeric arrays of the file by name, flattened in MATLAB's column order.

    Raises:
        UserError: the file cannot be read, is not a MATLAB 5 file, is damaged, or holds more than ``MAX_BYTES``.
    """
    try:
        data = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); download it again") from None
    if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
        raise UserError(f"{path}: not a MATLAB 5 file; download it again")
    order = "<" if data[126:128] == b"IM" else ">"
    arrays: dict[str, np.ndarray] = {}
    try:
        for kind, body in _elements(data[128:], order):
            if kind == _COMPRESSED:
                kind, body = next(_elements(_inflated(body), order))
            if kind == _MATRIX:
                parts = list(_elements(body, order))  # flags, dimensions, name, real part
                if len(parts) >= 4 and parts[3][0] in _TYPES:
                    arrays[parts[2][1].decode("ascii")] = np.frombuffer(parts[3][1], order + _TYPES[parts[3][0]])
    except (struct.error, zlib.error, ValueError, StopIteration) as error:
        raise UserError(f"{path}: damaged MATLAB file ({error}); download it again") from None
    return arrays


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    result = inflater.decompress(data, MAX_BYTES)
    if inflater.unconsumed_tail:
        raise ValueError(f"unpacks to more than {MAX_BYTES >> 20} MiB")
    if not inflater.eof:
        raise ValueError("cut short")
    return result


def _elements(data: bytes, order: str):
    """Yield (type, payload) of each element; small elements keep type and size in one 4-byte word."""
    position = 0
    while position + 8 <= len(data):
        (word,) = struct.unpack_from(order + "I", data, position)
        if word >> 16:
            kind, size, start, step = word & 0xFFFF, word >> 16, position + 4, 8
        else:
            kind = word
            (size,) = struct.unpack_from(order + "I", data, position + 4)
            start, step = position + 8, 8 + size
            if kind != _COMPRESSED:
                step += -size % 8
        if start + size > len(data):
            raise ValueError("cut short")
        yield kind, data[start : start + size]
        position += step
