"""Walk folders of images: what is an image, what is not, and what is left out and why. The one place that does."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from fastlg.data.sources.base import IMAGE_SUFFIXES
from fastlg.files.kinds import kind_of_file

# made by archivers, systems and tools; never classes, though copies of images may lie in them
_TOOL_FOLDERS = frozenset(("__macosx", "__pycache__", "@eadir", "lost+found", "$recycle.bin"))


class LeftOut:
    """What a walk left out: reason -> paths. ``notes`` gives a line per reason."""

    def __init__(self, root: Path):
        self.root = root
        self._found: dict[str, list[Path]] = defaultdict(list)

    def add(self, reason: str, path: Path) -> None:
        self._found[reason].append(path)

    def notes(self) -> list[str]:
        return [
            f"left out: {reason} ({len(paths):,}: {paths[0].relative_to(self.root)}{' ...' if len(paths) > 1 else ''})"
            for reason, paths in self._found.items()
        ]


def is_image(path: Path) -> bool:
    """Whether a file is an image by its own name; what a link points to may be called anything."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def visible_folders(folder: Path, left: LeftOut | None = None) -> list[Path]:
    """The folders in ``folder``, links to folders too, sorted; hidden ones and those of tools are left out, with a word
    where they hold images. Raises OSError where it cannot be read."""
    found = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            if left is not None and path.is_symlink() and not path.exists() and not is_image(path):
                left.add("broken links", path)
            continue
        if not _is_skipped(path.name):
            found.append(path)
        elif left is not None and _holds_anything_like_an_image(path):
            left.add("hidden folders and folders of tools with images", path)
    return found


def loose_images(folder: Path, left: LeftOut) -> None:
    """Note the images that lie in ``folder`` itself."""
    for path in sorted(folder.iterdir()):
        if is_image(path) and not path.is_dir():
            left.add("images beside the class folders" if not path.name.startswith(".") else "hidden files", path)


def images_below(folder: Path, left: LeftOut) -> list[Path]:
    """Image files below ``folder``, sorted; links to folders are followed, each real folder once.

    A link to a folder that ``folder`` lies in would bring the images of other classes: it is left out.
    """
    found: list[Path] = []
    for path in _files_below(folder, left):
        if path.name.startswith("."):
            if is_image(path):
                left.add("hidden files", path)
        elif is_image(path):
            found.append(path)
        else:
            left.add("files without an image extension", path)
    return sorted(found)


def holds_image(folder: Path) -> bool:
    """Whether an image lies somewhere below ``folder``."""
    return any(is_image(path) and not path.name.startswith(".") for path in _files_below(folder))


def holds_loose_image(folder: Path) -> bool:
    """Whether an image lies in ``folder`` itself."""
    return any(is_image(path) and not path.name.startswith(".") and not path.is_dir() for path in folder.iterdir())


def files_below(root: Path, suffix: str) -> list[Path]:
    """All files below ``root`` with this ``suffix`` in any case, sorted, links followed, hidden ones left out."""
    found = (path for path in _files_below(root) if path.suffix.lower() == suffix)
    return sorted(path for path in found if not path.name.startswith("."))


def only_files(folder: Path) -> str:
    """What lies in a folder that holds no images as they should be: the first file, what it is and how it becomes data.

    Raises OSError where the folder cannot be read.
    """
    files = [path for path in _files_below(folder) if not path.name.startswith(".") and path.is_file()]
    if (folder / "config.yaml").is_file():
        return "it is a run folder, which fastlg eval takes"
    if not files:
        return "it is empty"
    if images := [path for path in files if is_image(path)]:
        return f"only images without a folder for each class ({images[0].relative_to(folder)})"
    first = min(files)
    kind, more = kind_of_file(first), " and the like" if len(files) > 1 else ""
    return f"only {first.relative_to(folder)}{f' ({kind.what})' if kind.what else ''}{more}; {kind.fix}"


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name.lower() in _TOOL_FOLDERS


def _files_below(folder: Path, left: LeftOut | None = None) -> Iterator[Path]:
    """Files, and broken links. Raises OSError for a folder that cannot be read."""
    here = os.path.realpath(folder)
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(parent)
        if real in seen or (real != here and here.startswith(os.path.join(real, ""))):
            if left is not None and real != here and real not in seen:
                left.add("links to a folder around them", Path(parent))
            folders.clear()
            continue
        seen.add(real)
        for name in filter(_is_skipped, sorted(folders)) if left is not None else ():
            if _holds_anything_like_an_image(Path(parent, name)):
                left.add("hidden folders and folders of tools with images", Path(parent, name))
        folders[:] = sorted(name for name in folders if not _is_skipped(name))
        for name in sorted(names):
            yield Path(parent, name)


def _holds_anything_like_an_image(folder: Path) -> bool:
    below = os.walk(folder)  # links are not followed, and what cannot be read is not told
    return any(is_image(Path(name)) for _, _, names in below for name in names)


def _raise(error: OSError) -> None:
    raise error
