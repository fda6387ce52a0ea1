"""Files and folders of a source: found, told apart, listed and read, with one line for each way they may not be."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fastlg.data.sources.base import Source
from fastlg.data.store.decode import BadImage
from fastlg.errors import UserError
from fastlg.files.reading import expanded, kind_of, read_regular

MAX_IMAGE_FILE = 1 << 30  # bytes; the most pixels that are decoded have half as many


def existing_path(spec: str) -> Path:
    """``spec`` as the absolute path of a file or folder; a folder's links are resolved, a file keeps its name.

    Raises:
        UserError: there is none, or something else; names that look alike in the deepest folder that exists are
            suggested.
    """
    path = Path(os.path.abspath(expanded(spec, "data.source")))
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"data.source={spec}: a {kind_of(mode)}; give a file or folder of images")
        return path.resolve() if stat.S_ISDIR(mode) else path
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        pass
    except OSError as error:
        raise UserError(f"data.source={spec[:200]}: cannot be read ({error.strerror}); mend the path") from None
    parent, missing = path.parent, path.name
    while not os.path.lexists(parent) and parent != parent.parent:
        parent, missing = parent.parent, parent.name
    try:
        entries = [entry.name for entry in parent.iterdir()]
    except (OSError, ValueError):
        entries = []
    near = difflib.get_close_matches(missing, entries, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(str(parent / name) for name in near)}?" if near else f"{parent} has no {missing}"
    if os.path.islink(path):
        hint = f"it is a link to {os.readlink(path)}, which is not there"
    raise UserError(f"data.source={spec}: no such file or folder; {hint}")


def file_stamps(paths: Iterable[Path], root: Path) -> list[tuple[str, int, int]]:
    """(path relative to ``root``, bytes, modification time in ns) of every file; of a broken link, of the link."""
    stamps = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            status = path.lstat()
        stamps.append((str(path.relative_to(root)), status.st_size, status.st_mtime_ns))
    return stamps


def read_image(path: Path, name: str) -> bytes:
    """The bytes of an image file.

    Raises:
        BadImage: it cannot be read: a broken link, no permission, a device, ...
    """
    try:
        return read_regular(path, MAX_IMAGE_FILE)
    except OSError as error:
        is_broken = path.is_symlink() and not path.exists()
        reason = "a broken link" if is_broken else error.strerror or str(error)
        raise BadImage(name, f"cannot be read ({reason})") from None


def path_inside(root: Path, name: str) -> Path | None:
    """``root / name``; None where ``name`` is absolute or leads out of ``root``."""
    inside = os.path.normpath(name)
    if not name or "\0" in name or os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir:
        return None
    return root / inside


def read_listing(path: Path, limit: int) -> bytes:
    """The bytes of a small file that describes a dataset.

    Raises:
        UserError: it cannot be read or has more than ``limit`` bytes.
    """
    try:
        return read_regular(path, limit)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); mend it or download it again") from None


def file_source(
    where: str,
    root: Path,
    files: Sequence[Path],
    labels: np.ndarray | Sequence[int],
    class_names: Sequence[str],
) -> Source:
    """A source of one image file per sample; names are paths relative to ``root``."""

    def name(i: int) -> str:
        return str(files[i].relative_to(root))

    return Source(
        where=where,
        labels=labels,
        class_names=class_names,
        read=lambda i: read_image(files[i], name(i)),
        name=name,
        stamp=[str(root), file_stamps(files, root)],
    )


def listed_files(where: str, root: Path, names: Sequence[str]) -> list[Path]:
    """The files that a dataset's own list names, all of which are there.

    Raises:
        UserError: one is missing, or lies outside of ``root``.
    """
    files = []
    for name in names:
        path = path_inside(root, name)
        if path is None:
            raise UserError(f"{where}: {name[:200]!r} in its list leads out of the folder; mend the list")
        if not path.is_file():
            raise UserError(f"{where}: {path} is listed but missing; complete the download or unpack it again")
        files.append(path)
    return files
