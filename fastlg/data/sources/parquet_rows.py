"""Random access to the image column of parquet files, a few row groups in memory."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from fastlg.data.sources.layout.paths import path_inside, read_image
from fastlg.data.store.decode import BadImage
from fastlg.errors import UserError, first_line

_CACHED_GROUPS = 2  # reading runs forward


class Rows:
    """Row i of all ``files``, (path, ParquetFile) one after the other; image paths are relative to ``folder``."""

    def __init__(self, files: list[tuple[Path, Any]], column: str, folder: Path):
        self._files = files
        self._column = column
        self._folder = folder
        groups = [
            (f, g, file.metadata.row_group(g).num_rows)
            for f, (_, file) in enumerate(files)
            for g in range(file.metadata.num_row_groups)
        ]
        self._groups = [(f, g) for f, g, _ in groups]
        self._starts = np.cumsum([0] + [rows for _, _, rows in groups])
        self._cache: OrderedDict[int, Any] = OrderedDict()

    def read(self, i: int) -> bytes:
        """The bytes of an image file; empty where the row has neither bytes nor a path.

        Raises:
            BadImage: the row's path cannot be read, or leads out of the folder.
            UserError: the parquet file is damaged.
        """
        data, path = self._cell(i)
        if data is not None or path is None:
            return data or b""  # the decoder refuses an empty one by name
        inside = path_inside(self._folder, path)
        if inside is None:
            raise BadImage(self.name(i), "its path leads out of the folder of the dataset")
        return read_image(inside, self.name(i))

    def name(self, i: int) -> str:
        path = self._cell(i)[1]
        return f"row {i} ({path})" if path else f"row {i}"

    def _cell(self, i: int) -> tuple[bytes | None, str | None]:
        group = int(np.searchsorted(self._starts, i, side="right")) - 1
        file = self._files[self._groups[group][0]][0]
        try:
            cell = self._group(group)[i - int(self._starts[group])].as_py()
        except Exception as error:  # Arrow's own errors, OSError, MemoryError, text that is none, ...
            raise UserError(f"{file}: damaged at row {i} ({first_line(error)}); download it again") from None
        if not isinstance(cell, dict):
            return cell, None
        path = cell.get("path")
        return cell.get("bytes"), path if isinstance(path, str) else None

    def _group(self, group: int) -> Any:
        if group not in self._cache:
            file, index = self._groups[group]
            reader = self._files[file][1]
            self._cache[group] = reader.read_row_group(index, columns=[self._column]).column(self._column)
            while len(self._cache) > _CACHED_GROUPS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]
