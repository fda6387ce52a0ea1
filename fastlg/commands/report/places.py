"""Which folders a report can be of, and where it is put. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastlg.commands.line import early
from fastlg.errors import UserError, brief
from fastlg.files.reading import is_file, what_is
from fastlg.run.folder import PARTS_OF_COMPARE, REPORT, expect_run, is_compare, runs_of

Pair = tuple[Path | None, Path | None]


def pairs_of(folder: Path) -> list[tuple[str, Pair]]:
    """(name, (unguided, guided)) of a comparison's runs, one pair per seed; a side without a run is None.

    [] of a folder that holds no comparison.
    """
    if is_file(folder / "config.yaml"):
        return []
    if is_compare(folder):
        sides = [folder / part for part in PARTS_OF_COMPARE]
        return [("", tuple(side if is_file(side / "config.yaml") else None for side in sides))]
    found = [{run.name: run for run in runs_of(folder / part)} for part in PARTS_OF_COMPARE]
    names = sorted(found[0].keys() | found[1].keys(), key=lambda name: (len(name), name))
    return [(name, (found[0].get(name), found[1].get(name))) for name in names]


FIXED = "report cannot change {}: it is part of the trained run; data.* and engine.* may differ"


def expect_drawable(which: str, overrides: Mapping[str, Any]) -> None:
    """Raises UserError for options that cannot be, and without matplotlib."""
    early.expect_which(which)
    if foreign := [key for key in overrides if not key.startswith(("data.", "engine."))]:
        raise UserError(FIXED.format(foreign[0]))
    if not early.is_installed("matplotlib"):
        raise UserError("report draws with matplotlib, which is not installed: pip install 'fastlg[plots]'")


def expect_reportable(folder: Path) -> None:
    """Raises UserError for what is neither a run nor a comparison."""
    if not is_file(folder / "config.yaml") and is_file(folder / "model.safetensors"):
        raise UserError(f"{folder} is an exported model, which has no record of its training; give its run folder")
    if not pairs_of(folder):
        expect_run(folder)


def out_path(folder: Path, out: Path | None) -> Path:
    """Where the page goes. Raises UserError for what cannot be it, before anything is computed."""
    path = folder / REPORT if out is None else out.expanduser()
    try:
        kind = what_is(path)
    except OSError as error:
        raise UserError(f"--out {brief(out, 200)}: {error.strerror}; give another file") from None
    if kind not in ("", "a file"):
        raise UserError(f"--out {path} is {kind}; give a file, as {path / REPORT}")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {brief(path, 200)} is no HTML file by its name; call it {path.stem}.html")
    if what_is(path.parent) != "a folder" or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: choose a file in a folder that exists and is writable (--out)")
    return path
