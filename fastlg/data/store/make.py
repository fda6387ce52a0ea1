"""Make a store from a source: every image decoded and checked once, atomically, resumable, one builder at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from fastlg.config.sections import scheme_of
from fastlg.data.sources.base import Source
from fastlg.data.sources.choose import open_splits, open_to_measure
from fastlg.data.store.beton_write import ensure_beton
from fastlg.data.store.duplicates import duplicate_report
from fastlg.data.store.make_split import Shrink, finish_split, flat, write_split
from fastlg.data.store.store import FORMAT, MANIFEST, Store, is_store, manifest_digest, open_store, read_manifest
from fastlg.errors import RunError, UserError, is_unwritable
from fastlg.files.atomic import write_whole
from fastlg.files.lock import file_lock
from fastlg.files.places import cache_root as default_cache_root
from fastlg.files.progress import progress_bar
from fastlg.files.reading import expanded

__all__ = ["Store", "find_or_prepare", "find_or_prepare_test", "open_store", "prepare"]

log = logging.getLogger(__name__)

_KEY_LETTERS = 12  # of a store's key, in the names of cached stores
_STEM_LETTERS = 100  # of the source's own name in them: file systems allow 255 in all


def prepare(
    spec: str,
    out_dir: str | Path,
    *,
    splits: tuple[str, ...] = ("train", "test"),
    on_bad: str = "fail",
    max_side: int | None = None,
    short_side: int | None = None,
    workers: int | None = None,
    beton: str | None = None,
    **source_options,
) -> Path:
    """Decode every image of ``spec`` once and write the store ``out_dir`` (its files: see data/store/store.py).

    A call that was killed goes on where it stopped. A store already made from the same data with the same settings is
    kept as it is. Of two processes at once, one builds and the other waits for it.

    Args:
        spec: as for ``open_source``; ``source_options`` are the keyword arguments of ``open_splits``.
        splits: which splits to write.
        on_bad: "fail" refuses the dataset when any image cannot be used, after looking at all of them; "skip" leaves
            such images out. Either way each is listed with its reason.
        max_side, short_side: shrink images until the longest (shortest) side is this many pixels; give at most one.
        workers: decoding processes; None takes one per core.
        beton: "raw" or "jpeg" also writes every split as an FFCV file (beton_write.py).

    Returns:
        The store's path.

    Raises:
        UserError: unusable source, images or settings, or ``out_dir`` holds something else or cannot be written.
        RunError: the disk is full.
    """
    sources = open_splits(spec, splits, **source_options)
    out_dir = expanded(out_dir, "the store's folder")
    with _writing(out_dir, "choose another folder"):
        path = _build(spec, sources, out_dir, on_bad, _shrink(max_side, short_side), workers)
    if beton is not None:
        for split, source in sources.items():
            ensure_beton(open_store(path, split), beton, source)
    return path


def find_or_prepare(
    spec: str,
    cache_root: str | Path | None = None,
    *,
    on_bad: str = "fail",
    max_side: int | None = None,
    short_side: int | None = None,
    workers: int | None = None,
    **source_options,
) -> Path:
    """The store of ``spec``: itself if it is one, else the one below ``cache_root``, made first if need be.

    Stores are kept by what they were made from (paths, sizes, modification times, labels) and the settings.

    Args:
        cache_root: folder of stores; None is $FASTLG_CACHE/stores or ~/.cache/fastlg/stores.
        others: as in ``prepare``.

    Raises:
        UserError, RunError: as in ``prepare``.
    """
    if (store := _as_store(spec)) is not None:
        given = sorted(name for name in ("holdout", "label_column", "image_column", "val") if source_options.get(name))
        if given == ["val"] and source_options["val"] == "split" and "val" in read_manifest(store)["splits"]:
            return store
        if given:
            raise UserError(f"data.{given[0]}: {spec} is a store, which is split and labelled already; drop the option")
        return store
    sources = open_splits(spec, **source_options)
    return in_cache(spec, sources, cache_root, on_bad, _shrink(max_side, short_side), workers)


def find_or_prepare_test(
    spec: str,
    class_names: list[str],
    cache_root: str | Path | None = None,
    *,
    on_bad: str = "fail",
    workers: int | None = None,
    **source_options,
) -> Path:
    """A store whose test split holds the images of ``spec`` on which a model of these classes is measured.

    Args:
        class_names: the model's, which become the store's; see ``open_to_measure``, whose keyword arguments
            ``source_options`` are.
        others: as in ``find_or_prepare``.

    Raises:
        UserError, RunError: as in ``open_to_measure`` and ``prepare``.
    """
    store = _as_store(spec)
    if store is not None and read_manifest(store)["class_names"] == class_names:
        return store
    sources = {"test": open_to_measure(spec, class_names, **source_options)}
    return in_cache(spec, sources, cache_root, on_bad, _shrink(None, None), workers)


def _as_store(spec: str) -> Path | None:
    """``spec`` as a path where a store lies there."""
    if scheme_of(spec):
        return None
    path = expanded(spec, "data.source")
    return path if is_store(path) else None


def find_made(spec: str, cache_root: str | Path | None = None, **source_options) -> Path | None:
    """The store that ``find_or_prepare`` would return, where it is there already: no image is read. None where it
    would have to be made. Raises UserError as that does."""
    if (store := _as_store(spec)) is not None:
        return store
    path, _ = _place(spec, open_splits(spec, **source_options), cache_root, _shrink(None, None))
    return path if is_store(path) else None


def in_cache(
    spec: str,
    sources: dict[str, Source],
    cache_root: str | Path | None,
    on_bad: str,
    shrink: Shrink,
    workers: int | None,
) -> Path:
    """The store of opened ``sources`` below ``cache_root``, made first if need be; ``spec`` is what it is called."""
    out_dir, stem = _place(spec, sources, cache_root, shrink)
    with contextlib.suppress(OSError):  # a folder that cannot be written is said where it matters
        _remove_abandoned(out_dir.parent, stem, out_dir)
    setting = "data.store" if cache_root is not None else "FASTLG_CACHE (or data.store)"
    with _writing(out_dir, f"set {setting} to another folder"):
        return _build(spec, sources, out_dir, on_bad, shrink, workers)


def _place(spec: str, sources: dict[str, Source], cache_root: str | Path | None, shrink: Shrink) -> tuple[Path, str]:
    """(where a store of opened ``sources`` is kept, what it has of the name of ``spec``)."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", spec.rstrip("/").rpartition("/")[2])
    stem = name[:_STEM_LETTERS].strip("-") or "data"
    return stores_root(cache_root) / f"{stem}-{_key(sources, shrink)[:_KEY_LETTERS]}", stem


def stores_root(cache_root: str | Path | None) -> Path:
    """The folder below which stores are kept, of ``data.store`` or by itself. Raises UserError."""
    return expanded(cache_root, "data.store") if cache_root is not None else default_cache_root() / "stores"


def _remove_abandoned(root: Path, stem: str, wanted: Path) -> None:
    """Delete half-made stores of ``stem`` that nobody will finish: other data or settings have another name.

    ``wanted`` is kept to go on with, and so is one that has a lock file: it is being made, or its maker was killed.
    """
    for work in root.glob(f".{stem}-{'[0-9a-f]' * _KEY_LETTERS}.partial"):
        out_dir = root / work.name[1:].removesuffix(".partial")
        lock = out_dir.with_name(out_dir.name + ".lock")
        if out_dir != wanted and not lock.exists():
            with file_lock(lock, f"preparing {out_dir}"):
                shutil.rmtree(work, ignore_errors=True)


def _shrink(max_side: int | None, short_side: int | None) -> Shrink:
    for name, side in (("max_side", max_side), ("short_side", short_side)):
        if side is not None and side < 1:
            raise UserError(f"{name}={side} must be at least 1 pixel")
    if max_side is not None and short_side is not None:
        raise UserError(f"max_side={max_side} and short_side={short_side} exclude each other; give one of them")
    return Shrink(max_side, short_side)


def _key(sources: dict[str, Source], shrink: Shrink) -> str:
    prints = {split: source.fingerprint() for split, source in sources.items()}
    text = json.dumps([FORMAT, prints, shrink.max_side, shrink.short_side], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _build(
    spec: str, sources: dict[str, Source], out_dir: Path, on_bad: str, shrink: Shrink, workers: int | None
) -> Path:
    if on_bad not in ("fail", "skip"):
        raise UserError(f"on_bad={on_bad} is unknown; choose fail or skip")
    key = _key(sources, shrink)
    if not _already_there(out_dir, key):
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(out_dir.with_name(out_dir.name + ".lock"), f"preparing {out_dir}"):
            if not _already_there(out_dir, key):  # made by the process that this one waited for
                _write(spec, sources, out_dir, on_bad, shrink, workers or os.cpu_count() or 1, key)
                return out_dir
    _refuse_bad(spec, _rejected(read_manifest(out_dir)), on_bad, out_dir)
    return out_dir


@contextlib.contextmanager
def _writing(out_dir: Path, elsewhere: str) -> Iterator[None]:
    """Turns a failed write of the store into one line; ``elsewhere`` says how to put it into another folder."""
    try:
        yield
    except OSError as error:
        failed = f"cannot write the store {out_dir}: {error.strerror or error}"
        if is_unwritable(error):
            raise UserError(f"{failed}; {out_dir.parent} is not writable, {elsewhere}") from None
        raise RunError(f"{failed}; free some space or {elsewhere}, then run again to go on") from error


def _already_there(out_dir: Path, key: str) -> bool:
    """Whether the wanted store exists. Raises UserError when something else does."""
    if is_store(out_dir):
        if read_manifest(out_dir)["key"] == key:
            return True
        raise UserError(f"{out_dir} holds a store of other data or settings; delete it or choose another folder")
    if out_dir.is_file() or (out_dir.is_dir() and any(out_dir.iterdir())):
        raise UserError(f"{out_dir} exists and is no store; choose another folder")
    return False


def _write(
    spec: str, sources: dict[str, Source], out_dir: Path, on_bad: str, shrink: Shrink, workers: int, key: str
) -> None:
    work = out_dir.with_name(f".{out_dir.name}.partial")
    if work.is_dir() and _noted_key(work) != key:
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    (work / "key").write_text(key)
    log.info("preparing %s in %s", spec, out_dir)
    parts: dict[str, list[dict]] = {}
    for split, source in sources.items():
        with progress_bar(f"decode {split}", len(source)) as advance:
            parts[split] = write_split(source, work / split, shrink, workers, advance)
    rejected = {split: flat(split_parts, "rejected") for split, split_parts in parts.items()}
    _refuse_bad(spec, rejected, on_bad, out_dir)
    manifest = {
        "kind": "fastlg store",
        "format": FORMAT,
        "key": key,
        "source": spec,
        "max_side": shrink.max_side,
        "short_side": shrink.short_side,
        "class_names": next(iter(sources.values())).class_names,
        "splits": {split: finish_split(sources[split], work / split, parts[split]) for split in sources},
        "duplicates": duplicate_report(sources, parts),
    }
    manifest["sha256"] = manifest_digest(manifest)
    write_whole(work / MANIFEST, json.dumps(manifest, indent=1))
    (work / "key").unlink()
    if out_dir.is_dir():
        out_dir.rmdir()  # it is empty: _already_there looked
    work.rename(out_dir)
    _rejected_list(out_dir).unlink(missing_ok=True)
    for split in sources:
        info = manifest["splits"][split]
        size_mib = info["bytes"] / 2**20
        log.info("%s: %d images, %d left out, %.1f MiB", split, info["count"], len(rejected[split]), size_mib)


def _noted_key(work: Path) -> str | None:
    try:
        return (work / "key").read_text()
    except OSError:
        return None


def _rejected(manifest: dict) -> dict[str, list]:
    return {split: info["rejected"] for split, info in manifest["splits"].items()}


def _rejected_list(out_dir: Path) -> Path:
    return out_dir.with_name(out_dir.name + ".rejected.txt")


def _refuse_bad(spec: str, rejected: dict[str, list], on_bad: str, out_dir: Path) -> None:
    """Raise UserError that names the images that cannot be used; with on_bad=skip only warn."""
    lines = [f"{name}: {reason}" for rows in rejected.values() for _, name, reason in rows]
    if not lines:
        return
    if on_bad == "skip":
        for line in lines:
            log.warning("left out: %s", line)
        return
    more = ""
    if len(lines) > 5:
        _rejected_list(out_dir).write_text("\n".join(lines) + "\n", encoding="utf-8")
        more = f"; ... all of them in {_rejected_list(out_dir)}"
    raise UserError(
        f"{spec}: {len(lines)} of the images cannot be used: {'; '.join(lines[:5])}{more}; "
        "mend or remove them, or leave them out with data.on_bad=skip"
    )
