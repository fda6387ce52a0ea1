"""Class folders: one folder of images per class, in folders of splits or without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastlg.data.sources.base import Dataset, Source
from fastlg.data.sources.layout.labels import distinct_names
from fastlg.data.sources.layout.paths import file_source
from fastlg.data.sources.layout.split_names import SplitName, fold_of, split_of
from fastlg.data.sources.layout.walk import (
    LeftOut,
    holds_image,
    holds_loose_image,
    images_below,
    loose_images,
    only_files,
    visible_folders,
)
from fastlg.errors import UserError


def class_folders(root: Path, wanted: Sequence[str]) -> Dataset:
    """ROOT/train/CLASS/**/image and ROOT/test/CLASS/**/image, the splits under any usual name (Training, test_set,
    seg_train/seg_train, val); or ROOT/CLASS/**/image, which are images without a split.

    Classes are the folder names, sorted. Hidden files and folders and files without an image extension are left out.

    Args:
        wanted: which splits to look into; without splits all images are given whatever is wanted.

    Raises:
        UserError: no telling splits and classes apart, a class folder without images, no class folder.
        OSError: a folder cannot be read.
    """
    left, notes = LeftOut(root), []
    folders = _split_folders(root, left, notes, wanted)
    if not folders:
        source = _classes(root, root, left, is_test=False)
        return Dataset("class folders", {"all": source}, {}, notes + _same_inside(root) + left.notes())
    loose_images(root, left)
    called = {split: f"{folder.relative_to(root)}/" for split, folder in folders.items()}
    splits = {
        split: _classes(root, folder, left, is_test=split != "train")
        for split, folder in folders.items()
        if split in wanted
    }
    return Dataset("class folders", splits, called, notes + left.notes())


def classes_with_images(root: Path) -> list[Path]:
    """The folders below ``root`` that look like class folders, in folders of splits or without, and hold an image."""
    folders = visible_folders(root)
    names = {path: name for path in folders if (name := split_of(path.name)) and name.is_plain}
    splits = sorted(names, key=lambda path: names[path].split == "test")
    inner = [path for split in splits for path in visible_folders(split)]
    return [path for path in (inner if splits else folders) if holds_image(path)]


def _split_folders(root: Path, left: LeftOut, notes: list[str], wanted: Sequence[str]) -> dict[str, Path]:
    """{"train": folder, "test": folder}, those that there are, and "val" if it is ``wanted`` and there beside a test
    split; empty where the folders of ``root`` are classes.

    A split holds class folders; a folder named like one that holds images itself is a class among others (train, of a
    set of vehicles), or it is refused.
    """
    folders = visible_folders(root, left)
    named = {path: name for path in folders if (name := split_of(path.name))}
    splits = [path for path in named if any(holds_image(inner) for inner in visible_folders(path))]
    others = [path for path in folders if path not in named and holds_image(path)]
    flat = [path for path in named if path not in splits and holds_loose_image(path)]
    if not splits:
        is_class = len(others) >= 2 and all(named[path].split == "train" or not named[path].is_plain for path in flat)
        if flat and not (is_class and len({named[path].split for path in flat}) == 1):
            raise _ambiguous(root, flat, others, "hold images without class folders")
        if flat:
            notes.append(f"{_listed(flat, root)} holds images itself and is taken for a class")
        elif not others and any(name.is_plain for name in named.values()):
            raise UserError(
                f"{_listed(named, root)} in {root}: no class folders; {only_files(min(named))}; expected one folder of "
                "images per class"
            )
        return {}
    chosen = _choose(root, {path: named[path] for path in splits}, left, wanted)
    _refuse_one_folder_twice(root, list(chosen.values()))
    is_sure = {"train", "test"} <= chosen.keys() and all(named[path].is_plain for path in chosen.values())
    if others and not is_sure:
        raise _ambiguous(root, splits, others, "hold folders of images")
    for path in (*flat, *others):
        left.add("folders that are no split of class folders", path)
    return {split: _inner(path) for split, path in chosen.items()}


def _choose(root: Path, named: dict[Path, SplitName], left: LeftOut, wanted: Sequence[str]) -> dict[str, Path]:
    """The best folder of each split."""
    chosen = {}
    for split in ("train", "test"):
        of_split = sorted((path for path in named if named[path].split == split), key=lambda path: named[path].rank)
        if not of_split:
            continue
        best, *rest = of_split
        if rest and named[rest[0]].rank == named[best].rank:
            raise UserError(
                f"{root}: {_listed([best, rest[0]], root)} are both the {split} split; put them together or move one "
                "away"
            )
        chosen[split] = best
        for path in rest:
            if "val" in wanted and "val" not in chosen and named[path].is_validation:
                chosen["val"] = path
                continue
            left.add(f"other splits, as {best.name}/ is used for testing", path)
    return chosen


def _inner(folder: Path) -> Path:
    """The folder of class folders: some archives hold seg_train/seg_train/CLASS."""
    inner = visible_folders(folder)
    if len(inner) == 1 and split_of(inner[0].name) and split_of(inner[0].name) == split_of(folder.name):
        return inner[0] if any(holds_image(path) for path in visible_folders(inner[0])) else folder
    return folder


def _classes(root: Path, folder: Path, left: LeftOut, *, is_test: bool) -> Source:
    classes = visible_folders(folder, left)
    if not classes:
        raise UserError(
            f"{folder}: no class folders; {only_files(folder)}; expected one folder of images per class, or a parquet "
            "file"
        )
    loose_images(folder, left)
    _refuse_one_folder_twice(folder, classes)
    _refuse_folds(folder, classes)
    if not is_test:
        _refuse_wrapper(folder, classes)
    _refuse_splits_inside(folder, classes)
    names = distinct_names([path.name for path in classes], str(folder))
    found = {}
    for name, class_folder in zip(names, classes, strict=True):
        found[name] = images_below(class_folder, left)
        if not found[name] and not is_test:
            raise UserError(
                f"{class_folder}: no image in this class folder, {only_files(class_folder)}; add images or remove the "
                "folder"
            )
        if not found[name]:
            left.add("class folders without an image", class_folder)
    names = sorted(found)
    files = [path for name in names for path in found[name]]
    labels = [label for label, name in enumerate(names) for _ in found[name]]
    return file_source(str(root), root, files, labels, names)


def _same_inside(root: Path) -> list[str]:
    """A note where the folders taken for classes hold the same folders, as folds and years of one dataset do."""
    same = _folders_in_each([path for path in visible_folders(root) if not holds_loose_image(path)])
    if not same:
        return []
    return [f"every one of these holds the folders {', '.join(same[:4])}: if those are the classes, put them together"]


def _folders_in_each(folders: list[Path]) -> tuple[str, ...]:
    """The names of the folders with images that every one of ``folders`` holds; () where they differ, or are one."""
    inner = {tuple(inner.name for inner in visible_folders(path) if holds_image(inner)) for path in folders}
    return min(inner) if len(folders) > 1 and len(inner) == 1 and len(min(inner)) > 1 else ()


def _refuse_folds(folder: Path, classes: list[Path]) -> None:
    """Folds of a cross-validation are not classes: each holds some images of all of them.

    All folders named fold1, fold2 and nothing else are folds, and so are those of names that say less
    (cats_fold1, split1, numbers in a folder folds/) where they hold the same folders. One fold* among other names is a
    class.
    """
    if len(classes) == 1 and not holds_loose_image(classes[0]):
        folder, classes = classes[0], visible_folders(classes[0])
    names = {path: fold_of(path.name) for path in classes}
    folds = [path for path, name in names.items() if name and name.number]
    is_sure = len(folds) == len(classes) and all(names[path].is_plain for path in folds)
    if not folds and fold_of(folder.name):
        folds = [path for path in classes if path.name.isdigit()]
    if len(folds) < 2 or not (is_sure or _folders_in_each(folds)):
        return
    fix = f"put the images of each class together, {folder.name}/CLASS/*, and one fold as a test split, test/CLASS/*"
    if any(split_of(inner.name) for inner in visible_folders(folds[0])):
        fix = f"point data.source at one of them, {folds[0]}"
    raise UserError(
        f"{folder}: {_listed(folds, folder)} are named like the folds of a cross-validation, not like classes; {fix}, "
        "or rename what is a class"
    )


def _refuse_wrapper(folder: Path, classes: list[Path]) -> None:
    """A single folder that holds the classes, or the splits: an archive's own name."""
    if len(classes) == 1 and not holds_loose_image(classes[0]):
        inner = [path for path in visible_folders(classes[0]) if holds_image(path)]
        if len(inner) > 1:
            raise UserError(
                f"{folder}: all images are of one class ({classes[0].name!r}), which holds {_listed(inner, folder)}; "
                f"if these are the classes or the splits, point data.source at {classes[0]} or move them up"
            )


def _refuse_splits_inside(folder: Path, classes: list[Path]) -> None:
    """CLASS/train and CLASS/test would mix the splits."""
    for class_folder in classes:
        inner = {
            path: name for path in visible_folders(class_folder) if (name := split_of(path.name)) and name.is_plain
        }
        if len({name.split for name in inner.values()}) == 2:
            raise UserError(
                f"{folder}: {_listed(inner, folder)} are splits inside a class; put them the other way round, "
                "train/CLASS and test/CLASS"
            )


def _refuse_one_folder_twice(root: Path, folders: list[Path]) -> None:
    """Links may give one folder two names."""
    seen: dict[Path, Path] = {}
    for path in folders:
        if (other := seen.setdefault(path.resolve(), path)) is not path:
            raise UserError(f"{root}: {_listed([other, path], root)} are one folder under two names; remove a link")


def _ambiguous(root: Path, named: Sequence[Path], others: Sequence[Path], what: str) -> UserError:
    beside = f", beside {_listed(others, root)}" if others else ""
    return UserError(
        f"{root}: {_listed(named, root)} named like splits {what}{beside}; are these splits or classes? Put splits as "
        "train/CLASS and test/CLASS with nothing else beside them, or rename what is a class"
    )


def _listed(paths, root: Path) -> str:
    names = [f"{path.relative_to(root)}/" for path in paths]
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
