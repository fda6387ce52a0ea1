"""A table on a terminal and as markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

from rich.markup import escape
from rich.table import Table as Drawn

from fastlg.commands.many.table import MEASURED, Table, done, measured
from fastlg.errors import printable, writing
from fastlg.files.atomic import write_whole
from fastlg.ranks.say import console, say

_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
}


def write(table: Table, folder: Path, name: str) -> None:
    """NAME.md, .tex, .csv and .json in ``folder``, each whole or not at all. Raises RunError on a full disk."""
    content = {
        "md": markdown(table),
        "tex": latex(table),
        "csv": as_csv(table),
        "json": json.dumps(table.as_json(), indent=1, ensure_ascii=False) + "\n",
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in content.items():
        path = folder / f"{name}.{suffix}"
        with writing(path):
            write_whole(path, text.encode("utf-8", "backslashreplace"))


def show(table: Table) -> None:
    drawn = Drawn(show_edge=False)
    first = len(table.columns()) - len(MEASURED) - 1
    for index, title in enumerate(table.columns()):
        drawn.add_column(escape(title), justify="right" if index >= first else "left", overflow="fold")
    for cells in table.grid():
        drawn.add_row(*(escape(printable(cell)) for cell in cells))
    say("")
    say(table.title)
    console.print(drawn)
    for line in (*table.header(), *table.notes()):
        say(line)


def markdown(table: Table) -> str:
    columns, marks = table.columns(), []
    for title in columns:
        marks.append("---:" if title in (*MEASURED.values(), "paper %", "seeds") else "---")
    rows = [columns, marks, *table.grid()]
    lines = [f"| {' | '.join(in_cell(cell) for cell in cells)} |" for cells in rows]
    notes = [f"* {on_line(line)}" for line in (*table.header(), *table.notes())]
    return "\n".join([f"**{on_line(table.title)}**", "", *lines, "", *notes, ""])


def on_line(text: str) -> str:
    return re.sub(r"([\\`*_<|\[\]])", r"\\\1", printable(text))


def in_cell(text: str) -> str:
    return text if set(text) <= {"-", ":"} else on_line(text)


def latex(table: Table) -> str:
    """A tabular of booktabs; what else is to be said about it stands in comments above."""
    columns = table.columns()
    first = len(columns) - len(MEASURED) - 1 - table.has_paper
    lines = [f"% {printable(line)}" for line in (table.title, *table.header(), *table.notes())]
    lines += [rf"\begin{{tabular}}{{{'l' * first}{'r' * (len(columns) - first)}}}", r"\toprule"]
    lines += [rf"{' & '.join(map(_in_latex, columns))} \\", r"\midrule"]
    lines += [rf"{' & '.join(map(_in_latex, cells))} \\" for cells in table.grid()]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in printable(text))


def as_csv(table: Table) -> str:
    """Numbers as numbers, a row per row; the header's lines come first, behind #."""
    out = io.StringIO()
    for line in (table.title, *table.header()):
        out.write(f"# {printable(line)}\n")
    names = list(dict.fromkeys(name for row, _ in table.entries for name in row.cells))
    parts = ("mean", "std", "low", "high")
    write_row = csv.writer(out, lineterminator="\n").writerow
    write_row([*names, "paper", *(f"{key}_{part}" for key in MEASURED for part in parts), "seeds_done", "seeds", "why"])
    for row, singles in table.entries:
        cells = [row.cells.get(name, "") for name in names] + [row.paper]
        for key in MEASURED:
            found = measured(singles, key)
            cells += [getattr(found, part) for part in parts] if found is not None else [None] * len(parts)
        why = "; ".join(f"seed {single.seed}: {single.why}" for single in singles if single.why)
        write_row([*cells, len(done(singles)), len(singles), printable(why)])
    return out.getvalue()
