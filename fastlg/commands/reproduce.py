"""``fastlg reproduce TABLE``: every row of a table of arXiv 2207.10026, or of the neighbouring systems, beside what was
published.

Tables 4 to 7 are numbered as the paper numbers them; its text was not at hand for the numbers of the others.
A row is a shipped config whose ``paper`` names the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fastlg.commands.line.early import expect_possible
from fastlg.commands.many.overlay import NOTHING, Overlay, read_overlay
from fastlg.commands.many.rows import Row, folder_name, group_name, plan, seeds_of
from fastlg.commands.many.table import Table
from fastlg.commands.sweep import without_name
from fastlg.config import Config, PaperRow, dotted, load_config, parse_overrides, shipped_configs
from fastlg.errors import UserError, brief

SYSTEMS = "systems"
TITLES = {
    1: "students on CIFAR-100 without and with guidance, 100 and 300 epochs",
    2: "students on CIFAR-100, Flowers-102 and Chaoyang without and with guidance, 300 epochs",
    3: "T2T-ViT-14 and CvT-13 beside a localisation loss, 100 epochs",
    4: "DeiT-Ti on CIFAR-100 beside logit distillation, 100 epochs",
    6: "depth of the guidance (R of Eq. 8), DeiT-Ti on CIFAR-100, 100 epochs",
    7: "weight of the guidance (beta), DeiT-Ti on CIFAR-100, 100 epochs",
    8: "how features are matched, DeiT-Ti on CIFAR-100, 100 epochs",
    9: "depth of the teacher, DeiT-Ti on CIFAR-100, 100 epochs",
    SYSTEMS: "neighbouring systems by their authors' recipes, and by ours without and with guidance",
}
NO_RUNS = {5: "table5 holds attention distances of the runs of table2, which fastlg analyze RUN measures"}
OF_ANY_RUN = ("run", "data", "engine", "log")  # sections that mean the same for a student and for a CNN


def reproduce(
    name: str,
    overrides: Sequence[str] = (),
    *,
    seeds: str | None = None,
    only: str | None = None,
    jobs: int = 1,
    dry_run: bool = False,
    overlay: Path | None = None,
) -> dict:
    """Trains or resumes all rows of a table, over seeds, and returns its content; see many/go.py.

    name       table1 to table9, or systems
    overrides  ``section.key=value`` for every row: student settings for students alone, and a teacher that is a row
               of its own takes what ``teacher.overrides`` says
    seeds      how many from the configs' own on, or which: "3", "0,5,7"
    only       rows that have this text in their name
    overlay    a file of overrides, of all rows and by student (many/overlay.py); ``overrides`` come after them

    Raises UserError for a table that is not there, before anything is trained.
    """
    number = table_number(name)
    if only is not None and not only.strip():
        raise UserError("--rows is empty, which is in the name of every row; leave it out, or give a part of a name")
    called, overrides = without_name(overrides)
    file = read_overlay(overlay, students()) if overlay is not None else NOTHING
    rows = rows_of(number, overrides, only, file)
    first = rows[0].config
    for row in rows:
        expect_possible(row.config)
    chosen = seeds_of(seeds, first.run.seed)
    group = called or group_name("paper", {**file.as_dict(), **parse_overrides(overrides)})
    entries = plan(rows, chosen, group)
    title = f"{heading(number)}: {TITLES[number]}{f'; rows with {brief(only)} alone' if only else ''}"
    shipped = dict(published())  # by_model goes by the name that a row has before it
    told = [*file.told([shipped[row.source].model.name for row in rows]), *overrides]
    table = Table(title, entries, chosen, told)
    stem = f"{word_of(number)}{'-' + folder_name(only) if only else ''}"
    from fastlg.commands.many.go import run_table  # late: it imports torch

    return run_table(table, first.run.root / group, stem, jobs=jobs, dry_run=dry_run)


def table_number(name: str) -> int | str:
    """Of table7, 7 or "Table 7"; SYSTEMS itself. Raises UserError that names the tables there are."""
    if name.strip().lower() == SYSTEMS:
        return SYSTEMS
    found = re.fullmatch(r"(?:table)?[ _-]?([0-9]{1,3})", name.strip().lower())
    number = int(found[1]) if found else 0
    if number not in TITLES:
        known = "; ".join(f"{word_of(own)} ({title})" for own, title in TITLES.items())
        raise UserError(f"{NO_RUNS.get(number, f'there is no table {brief(name)}')}; tables: {known}")
    return number


def word_of(number: int | str) -> str:
    """What the command line and files call a table."""
    return number if number == SYSTEMS else f"table{number}"


def heading(number: int | str) -> str:
    return "Systems" if number == SYSTEMS else f"Table {number}"


def students() -> list[str]:
    """model.name of every published row."""
    return [config.model.name for _, config in published()]


def published() -> list[tuple[str, Config]]:
    """(name, config) of every shipped config that is a row of a table."""
    return _published(tuple(shipped_configs().items()))


@cache
def _published(files: tuple[tuple[str, Path], ...]) -> list[tuple[str, Config]]:
    configs = ((name, load_config(name)) for name, _ in files)
    return [(name, config) for name, config in configs if config.paper_rows]


def rows_of(
    number: int | str, overrides: Sequence[str], only: str | None = None, overlay: Overlay = NOTHING
) -> list[Row]:
    """Raises UserError for overrides that no row takes, and where ``only`` leaves none."""
    of_table = [(own, name, config) for name, config in published() for own in config.paper_rows if own.table == number]
    places = [place for place in of_table if _matches(place[0].row, only)]
    if not places:
        names = ", ".join(sorted(own.row for own, _, _ in of_table))
        raise UserError(f"--rows {brief(only)} is in the name of no row of {word_of(number)}: {names}")
    places.sort(key=lambda own: natural(own[0].row))
    if any(text.partition("=")[0].partition(".")[0] == "paper" for text in overrides):
        raise UserError(f"paper is which row a config is, and no override of rows; leave it out of {brief(overrides)}")
    return [_row(*place, (*overlay.of(place[2].model.name), *overrides), overlay) for place in places]


def _row(place: PaperRow, name: str, config: Config, overrides: Sequence[str], overlay: Overlay) -> Row:
    own = tuple(overrides_for(config, overrides))
    try:
        return Row({"row": place.row}, name, own, load_config(name, own), name, place.top1)
    except UserError as error:
        raise overlay.told_of(error, config.model.name) from None


def overrides_for(config: Config, overrides: Sequence[str]) -> list[str]:
    """Those of a table's overrides that a row takes: no teacher's where there is none, and a CNN's own."""
    kept = []
    for text in overrides:
        ((key, value),) = parse_overrides([text]).items()
        if config.model.is_cnn and key.startswith("teacher.overrides"):
            prefix = "teacher.overrides."
            own = dotted(value) if key == prefix[:-1] else {key.removeprefix(prefix): value}
            kept += [f"{field}={json.dumps(each, default=str)}" for field, each in own.items()]
        elif config.model.is_cnn:
            kept += [text] if key.partition(".")[0] in OF_ANY_RUN else []
        elif config.teacher is not None or not key.startswith("teacher"):
            kept.append(text)
    return kept


def natural(text: str) -> list:
    """A key by which "beta 10" comes after "beta 2.5"."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?)", text.casefold())
    return [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)]


def _matches(row: str, only: str | None) -> bool:
    return only is None or only.casefold() in row.casefold()
