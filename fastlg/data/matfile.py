"""Read the plain numeric arrays of a MATLAB 5 file (setid.mat, imagelabels.mat) without SciPy.

Format: MathWorks, "MAT-File Format", level 5: a 128-byte header, then tagged elements, each perhaps zlib-compressed.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from fastlg.errors import UserError

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15


def read_mat(path: Path) -> dict[str, np.ndarray]:
    """All real numeric arrays of the file by name, flattened in MATLAB's column order.

    Raises:
        UserError: the file is not a MATLAB 5 file or is damaged.
    """
    data = path.read_bytes()
    if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
        raise UserError(f"{path}: not a MATLAB 5 file; download it again")
    order = "<" if data[126:128] == b"IM" else ">"
    arrays: dict[str, np.ndarray] = {}
    try:
        for kind, body in _elements(data[128:], order):
            if kind == _COMPRESSED:
                kind, body = next(_elements(zlib.decompress(body), order))
            if kind == _MATRIX:
                parts = list(_elements(body, order))  # flags, dimensions, name, real part
                if len(parts) >= 4 and parts[3][0] in _TYPES:
                    arrays[parts[2][1].decode("ascii")] = np.frombuffer(parts[3][1], order + _TYPES[parts[3][0]])
    except (struct.error, zlib.error, ValueError, StopIteration) as error:
        raise UserError(f"{path}: damaged MATLAB file ({error}); download it again") from None
    return arrays


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
