"""``fastlg sweep CONFIG key=a,b,c``: every combination of some values, over seeds, and one table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from fastlg.commands.line.early import expect_possible
from fastlg.commands.many.rows import Row, Single, content, folder_name, group_name, plan, seeds_of, singles_of
from fastlg.commands.many.table import Table
from fastlg.config import load_config, parse_overrides
from fastlg.data.stores import open_stores
from fastlg.errors import UserError, brief
from fastlg.run.folder import finished, is_compare, refuse_unusable, resume_source

SEED = "run.seed"
MOST_ROWS = 1000
_OPEN, _CLOSED = "[{(", "]})"


def sweep(name: str, settings: Sequence[str], *, jobs: int = 1, dry_run: bool = False) -> dict:
    """Trains or resumes a run per combination of the values given, and returns the table's content; see many/go.py.

    settings  ``section.key=a,b,c``: commas part values, but not in brackets or quotes; with one value it is an
              override of every run. ``run.seed=0,1,2`` are seeds, over which a row is averaged.

    Raises UserError before anything is trained.
    """
    axes, constant = read_settings(settings)
    given = ",".join(axes.pop(SEED, []))
    seeds = seeds_of(f"{given},", 0, f"{SEED}={brief(given)}") if given else None
    called, constant = without_name(constant)
    if (count := math.prod(map(len, axes.values()))) > MOST_ROWS:
        raise UserError(f"{count:,} combinations are too many; at most {MOST_ROWS:,}")
    rows = [_row(name, dict(zip(axes, values, strict=True)), constant) for values in itertools.product(*axes.values())]
    expect_different(rows)
    for row in rows:
        expect_possible(row.config)
    base = rows[0].config
    seeds = seeds or [base.run.seed]
    group = called or group_name(f"{base.run.name}-sweep", parse_overrides(constant))
    table = Table(f"{base.run.name}: {', '.join(axes) or 'seeds'}", plan(rows, seeds, group), seeds, constant)
    stem = folder_name(",".join(axes) or SEED)
    from fastlg.commands.many.go import run_table  # late: it imports torch

    return run_table(table, base.run.root / group, stem, jobs=jobs, dry_run=dry_run)


def without_name(overrides: Sequence[str]) -> tuple[str, list[str]]:
    """(what ``run.name=`` among the overrides calls the folder of all runs, "" without it; the other overrides)."""
    parsed = [(text, parse_overrides([text])) for text in overrides]
    called = [own["run.name"] for _, own in parsed if "run.name" in own]
    return (called or [""])[-1], [text for text, own in parsed if "run.name" not in own]


def compare_seeds(
    name: str,
    overrides: Sequence[str],
    seeds: str | None,
    *,
    jobs: int = 1,
    gpus: int | None = None,
    dry_run: bool = False,
) -> dict:
    """A config without and with its teacher, over seeds, as one table with a verdict (many/judge.py).

    Raises UserError before anything is trained, also where one of the runs cannot begin or go on in its folder.
    """
    if gpus is not None:
        raise UserError("--gpus gives one run several ranks, and --seeds makes several runs: give --jobs N, a GPU each")
    called, overrides = without_name(overrides)
    config = load_config(name, overrides)
    if config.teacher is None:
        raise UserError(f"{config.run.name} has no teacher section; compare needs one to guide with")
    group = called or group_name(f"{config.run.name}-compare", parse_overrides(overrides))
    chosen = seeds_of(seeds, config.run.seed)
    rows = []
    for label, own in (("unguided", [*overrides, "teacher=null"]), ("guided", overrides)):
        rows.append(Row({"row": label}, name, tuple(own), load_config(name, own), label))
    for row in rows:
        expect_possible(row.config)
    table = Table(f"{config.run.name}: without and with guidance", plan(rows, chosen, group), chosen, list(overrides))
    folder = config.run.root / group
    if not dry_run:
        expect_fit(table.entries, folder)
    from fastlg.commands.many.go import run_table  # late: they import torch
    from fastlg.commands.many.judge import try_to_judge

    return run_table(table, folder, "compare", jobs=jobs, dry_run=dry_run, judge=try_to_judge)


def expect_fit(entries: Sequence[tuple[Row, list[Single]]], folder: Path) -> None:
    """Raises UserError for a folder or a run below it that the runs of a comparison do not fit."""
    if (folder / "config.yaml").is_file() or is_compare(folder):
        what = "a comparison of one seed" if is_compare(folder) else "a single run"
        raise UserError(f"{folder} holds {what}; choose another run.name for the comparison over seeds")
    fingerprints = None
    for single in singles_of(entries):
        if finished(single.config.run_dir, single.config) is None and resume_source(single.config.run_dir, "auto"):
            fingerprints = fingerprints or open_stores(single.config.data).fingerprints
            refuse_unusable(single.config, "auto", fingerprints)


def read_settings(settings: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """({key: its values as typed} of those with several and of the seeds, the others as overrides).

    Raises UserError for a key that is given twice, an empty value among others, and where nothing varies.
    """
    axes: dict[str, list[str]] = {}
    constant: list[str] = []
    seen: set[str] = set()
    for text in settings:
        key, equals, rest = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"{brief(text)} is not of the form section.key=a,b,c")
        if key in seen:
            raise UserError(f"{key} is given twice; give its values at once: {key}=a,b,c")
        seen.add(key)
        values = [value.strip() for value in split_values(rest)]
        if key == SEED and (not any(values) or (len(values) == 1 and not values[0].isdecimal())):
            raise UserError(f"{brief(text)} names no seed; give {SEED}=0,1,2")
        if len(values) > 1 and "" in values:
            raise UserError(f"{brief(text)} has an empty value between its commas; leave it out, or write null or ''")
        if len(values) > 1:
            axes[key] = values
        else:
            constant.append(text)
    if not axes:
        raise UserError("there is nothing to sweep: give a key several values, as in guidance.weight=0,1,2.5")
    return axes, constant


def split_values(text: str) -> list[str]:
    """At the commas outside of brackets and quotes: ``[1,2],[3,4]`` are two values."""
    values, start, depth, quote = [], 0, 0, ""
    for index, mark in enumerate(text):
        if quote:
            quote = "" if mark == quote else quote
        elif mark in "'\"" and (depth or not text[start:index].strip()):  # elsewhere it is an apostrophe
            quote = mark
        elif mark in _OPEN:
            depth += 1
        elif mark in _CLOSED:
            depth -= 1
        elif mark == "," and depth <= 0:
            values.append(text[start:index])
            start = index + 1
    return [*values, text[start:]]


def expect_different(rows: Sequence[Row]) -> None:
    """Raises UserError for two rows that are one run, whatever they are called."""
    known: dict[str, Row] = {}
    for row in rows:
        other = known.setdefault(content(row.config), row)
        if other is not row:
            raise UserError(f"{brief(other.label)} and {brief(row.label)} are the same run; drop one of them")


def _row(name: str, values: dict[str, str], constant: Sequence[str]) -> Row:
    own = [f"{key}={value}" for key, value in values.items()]
    if "run.name" in values:
        raise UserError("run.name cannot be swept: a sweep names its runs itself")
    overrides = (*constant, *own)
    return Row(values, name, overrides, load_config(name, overrides), folder_name(",".join(own) or "seeds"))
