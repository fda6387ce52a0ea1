"""The image files that arguments of a command mean, and their pixels. Needs no torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fastlg.data.sources.layout.walk import is_image
from fastlg.data.store.decode import BadImage, decode_image
from fastlg.errors import UserError, first_line, printable
from fastlg.files.reading import read_regular


def image_files(arguments: Sequence[str]) -> list[Path]:
    """The files that paths, folders (with all below them) and patterns mean, each once, in the order given.

    A folder gives the files with an image's suffix that are not hidden; a file that is named is taken whatever it is
    called. Raises UserError for an argument that means none.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        if not argument.strip():
            raise UserError("an image's path is empty; give images, folders or patterns")
        path = Path(argument).expanduser()
        if path.is_dir():
            own = _images_below(path)
            nothing = f"{argument} holds no images; give a folder of .jpg, .png or other image files"
        elif path.exists() or path.is_symlink():
            own, nothing = [path], ""
        else:
            matched = sorted(map(Path, glob.glob(os.path.expanduser(argument), recursive=True)))
            own = [match for match in matched if match.is_file()]
            what = "matches no file" if glob.has_magic(argument) else "does not exist"
            nothing = f"{argument} {what}; give images, folders or patterns"
        if not own:
            raise UserError(nothing)
        found |= dict.fromkeys(own)
    return list(found)


def _images_below(folder: Path) -> list[Path]:
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in sorted(files) if not name.startswith(".") and is_image(Path(name))]
    return found


def readable(paths: Sequence[Path], skipped: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, pixels) of each file that can be decoded; what is said of the others is added to ``skipped``."""
    for path in paths:
        try:
            yield str(path), decode_image(read_regular(path), str(path))
        except BadImage as error:
            skipped.append(str(error))
        except OSError as error:
            skipped.append(f"{printable(path)}: {error.strerror or first_line(error)}")
