"""An evaluation as tables: on a terminal, as markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table as Drawn

from fastlg.commands.many.forms import in_cell, on_line
from fastlg.commands.testing.files import PAGE
from fastlg.commands.testing.outcome import Evaluation, Side
from fastlg.errors import printable
from fastlg.ranks.say import console, say

SHOWN = 5  # classes of either end on the terminal
SCORES = {  # key -> (title, digits)
    "top1": ("top-1 %", 2),
    "top5": ("top-5 %", 2),
    "calibration_error": ("calibration error %", 2),
    "nll": ("NLL", 4),
    "brier": ("Brier", 4),
}


class Sheet(NamedTuple):
    """``rows``: texts, the first of each its name. ``numbers``: the same and more as a CSV's columns and rows."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    numbers: tuple[Sequence[str], Sequence[Sequence[Any]]]


def sheets_of(found: Evaluation) -> list[Sheet]:
    return [_scores(found), _classes(found), *([_corruptions(found)] if found.names else [])]


def _scores(found: Evaluation) -> Sheet:
    sides, known = found.sides, [side.scores for side in found.sides]
    rows = []
    for key, (title, digits) in SCORES.items():
        values = [own[key] for own in known]
        row = [title, *(f"{value:.{digits}f}" for value in values)]
        rows.append([*row, f"{values[0] - values[1]:+.{digits}f}"] if len(values) > 1 else row)
    title = f"{found.accuracy.count:,} test images; calibration error over {len(found.own.calibration.images)} bins"
    difference = ["difference"] if len(sides) > 1 else []
    columns = ["", *(side.name for side in sides), *difference]
    numbers = ["run", *SCORES], [[side.name, *own.values()] for side, own in zip(sides, known, strict=True)]
    return Sheet("scores", title, columns, rows, numbers)


def _classes(found: Evaluation) -> Sheet:
    """Worst first; of two runs by what the first has more."""
    rows = [row for row in found.classes if row["images"]]
    key = "accuracy" if found.against is None else "difference"
    rows = sorted(rows, key=lambda row: row[key])
    columns = {"class": "class", "images": "images", "accuracy": "accuracy %", "precision": "precision %"}
    title = "Classes, the worst first"
    if found.against is not None:
        columns |= {"accuracy": f"{found.own.name} %", "against": f"{found.against.name} %", "difference": "difference"}
        del columns["precision"]
        title = f"Classes, by what {found.own.name} has less and more than {found.against.name}"
    cells = [[_text(key, row[key]) for key in columns] for row in rows]
    numbers = list(found.classes[0]), [list(row.values()) for row in found.classes]
    return Sheet("classes", title, list(columns.values()), cells, numbers)


def _corruptions(found: Evaluation) -> Sheet:
    own, relative = found.own.corrupted, found.relative
    rows = []
    for name in found.names:
        errors = own.errors(name, found.severities)
        row = [name, *(f"{value:.1f}" for value in errors), f"{sum(errors) / len(errors):.1f}"]
        if relative is not None:
            other = found.against.corrupted.errors(name, found.severities)
            row += [f"{sum(other) / len(other):.1f}", _share(relative.of[name]), _share(relative.relative_of[name])]
        rows.append(row)
    means = [_mean(own.errors(name, [severity])[0] for name in found.names) for severity in found.severities]
    last = ["mean", *means, f"{found.mean_error(found.own):.1f}"]
    columns = ["corruption", *map(str, found.severities), "error %"]
    if relative is not None:
        last += [f"{found.mean_error(found.against):.1f}", _share(relative.mce), _share(relative.relative_mce)]
        columns += [f"{found.against.name} %", "CE %", "rel. CE %"]
    title = f"Top-1 error of {found.own.name} by severity, in %; corrupted at {own.side} px as {own.set} is"
    numbers = list(found.corruptions[0]), [list(row.values()) for row in found.corruptions]
    return Sheet("corruptions", title, columns, [*rows, last], numbers)


def _mean(values: Any) -> str:
    values = list(values)
    return f"{sum(values) / len(values):.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _text(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:+.1f}" if key == "difference" else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(sheet: Sheet, rows: Sequence[Sequence[str]] | None = None) -> None:
    """On the terminal; ``rows`` in place of all of them."""
    is_wide = len(sheet.columns) > 6  # 80 characters hold it without lines between the columns
    drawn = Drawn(show_edge=False, **({"box": None, "padding": (0, 1, 0, 0)} if is_wide else {}))
    for number, title in enumerate(sheet.columns):
        drawn.add_column(escape(printable(title)), justify="right" if number else "left", overflow="fold")
    for cells in sheet.rows if rows is None else rows:
        drawn.add_row(*(escape(printable(cell)) for cell in cells))
    say("")
    say(sheet.title)
    console.print(drawn)


def ends(rows: list[list[str]]) -> list[list[str]]:
    """The first and the last few of many rows."""
    if len(rows) <= 2 * SHOWN:
        return rows
    return [*rows[:SHOWN], ["..."] + [""] * (len(rows[0]) - 1), *rows[-SHOWN:]]


def markdown(title: str, sheets: Sequence[Sheet], lines: Sequence[str]) -> str:
    parts = [f"# {on_line(title)}", "", *(f"* {on_line(line)}" for line in lines), ""]
    for sheet in sheets:
        marks = ["---", *["---:"] * (len(sheet.columns) - 1)]
        grid = [f"| {' | '.join(map(in_cell, cells))} |" for cells in (sheet.columns, marks, *sheet.rows)]
        parts += [f"**{on_line(sheet.title)}**", "", *grid, ""]
    return "\n".join(parts)


def texts_of(found: Evaluation, lines: Sequence[str]) -> dict[str, str]:
    """File name -> content: a page with all tables and the ``lines``, a CSV per table and confusion matrix."""
    sheets = sheets_of(found)
    texts = {
        PAGE: markdown(" against ".join(str(side.tested.folder) for side in found.sides), sheets, lines),
        **{f"{sheet.name}.csv": as_csv(*sheet.numbers) for sheet in sheets},
        "confusion.csv": confusion_csv(found.own),
    }
    if found.against is not None:
        texts["confusion_against.csv"] = confusion_csv(found.against)
    return texts


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    for cells in (columns, *rows):
        write([printable(cell) if isinstance(cell, str) else cell for cell in cells])
    return out.getvalue()


def confusion_csv(side: Side) -> str:
    """A row per true class, a column per class that it is taken for."""
    names = side.tested.class_names
    return as_csv(["class", *names], [[name, *row] for name, row in zip(names, side.confusion.tolist(), strict=True)])
