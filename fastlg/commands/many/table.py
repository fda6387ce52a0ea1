"""A table of runs: mean and spread over seeds beside what was published, and why a run is missing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastlg import __version__
from fastlg.commands.many.rows import Row, Single, shapes
from fastlg.files.provenance import commit

MEASURED = {"top1_last": "last epoch %", "top1_best": "best epoch %"}


class Figures(NamedTuple):
    """Of the seeds of one row. ``std`` is the sample standard deviation (n - 1); None of a single one."""

    mean: float
    std: float | None
    low: float
    high: float
    values: list[float]


def figures(values: Sequence[float]) -> Figures | None:
    """None of no values."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Figures(statistics.fmean(values), std, min(values), max(values), list(values))


@dataclass
class Table:
    """``entries``: a row and its runs, one per seed; a run may stand in several rows."""

    title: str
    entries: list[tuple[Row, list[Single]]]
    seeds: list[int]
    overrides: list[str]  # given on the command line, as typed
    closing: list[list[str]] = field(default_factory=list)  # rows of cells below the others, which are no runs
    findings: list[str] = field(default_factory=list)  # what follows from the table, a line each
    evidence: dict | None = None  # the numbers behind them

    @property
    def has_paper(self) -> bool:
        return any(row.paper is not None for row, _ in self.entries)

    def header(self) -> list[str]:
        """What has to be known to read the table, one line each."""
        several = "; mean ± sample standard deviation (n - 1)" if len(self.seeds) > 1 else ""
        lines = [
            f"seeds {', '.join(map(str, self.seeds))}{several}",
            f"overrides: {' '.join(self.overrides) or 'none'}",
        ]
        if self.has_paper and any(shapes(text.partition("=")[0].strip()) for text in self.overrides):
            lines[-1] += " (what the paper trained is without them)"
        stamps = [f"{s['device']}, torch {s['versions'].get('torch', '?')}, commit {s['commit']}" for s in self._full()]
        by = "; ".join(dict.fromkeys(stamps)) or f"commit {commit()}"
        measured = dict.fromkeys(s["measured_by"] for s in self._summaries() if s.get("measured_by"))
        lines += [f"of runs without labels: top-1 by {name}" for name in measured]
        return [*lines, f"best epoch: {self._chooser()}", f"fastlg {__version__}; {by}"]

    def _chooser(self) -> str:
        """Which split says which epoch is the best."""
        splits = {bool(row.config.data.val) for row, _ in self.entries}
        if splits == {True}:
            return "chosen on the validation split, told on the test split"
        return "that of the test split, as in the paper" + (", but where data.val is set" if True in splits else "")

    def _summaries(self) -> list[dict]:
        return [single.summary for _, singles in self.entries for single in singles if single.summary]

    def _full(self) -> list[dict]:
        found = self._summaries()
        return [s for s in found if {"device", "commit"} <= s.keys() and isinstance(s.get("versions"), dict)]

    def columns(self) -> list[str]:
        names = dict.fromkeys(name for row, _ in self.entries for name in row.cells)
        return [*names, *(["paper %"] if self.has_paper else []), *MEASURED.values(), "seeds"]

    def grid(self) -> list[list[str]]:
        """The cells of each row, as texts, in the order of ``columns``."""
        names = dict.fromkeys(name for row, _ in self.entries for name in row.cells)
        lines = []
        for row, singles in self.entries:
            cells = [row.cells.get(name, "") for name in names]
            if self.has_paper:
                cells.append("" if row.paper is None else f"{row.paper:.2f}")
            cells += [spread(measured(singles, key)) for key in MEASURED]
            lines.append([*cells, f"{len(done(singles))} of {len(singles)}"])
        return [*lines, *self.closing]

    def notes(self) -> list[str]:
        """What the cells cannot say: failed and missing runs, rows that are one run."""
        lines, first = list(self.findings), {}
        for row, singles in self.entries:
            other = first.setdefault(id(singles[0]), row)
            if other is not row:
                lines.append(f"same     {row.label}: with these overrides the same run as {other.label}")
                continue
            for single in singles:
                if single.state != "done":
                    why = f": {single.why}" if single.why else ""
                    lines.append(f"{_STATES[single.state]:8} {row.label}, seed {single.seed}{why}")
        return lines

    def as_json(self) -> dict:
        return {
            "title": self.title,
            "seeds": self.seeds,
            "overrides": self.overrides,
            "fastlg": __version__,
            "rows": [_row_as_json(row, singles) for row, singles in self.entries],
            **({"findings": self.findings, "evidence": self.evidence} if self.findings else {}),
        }


_STATES = {"waiting": "not run", "running": "running", "failed": "failed", "stopped": "stopped"}
OF_RUN = (
    "top1_last",
    "top1_best",
    "top5_last",
    "best_chosen_on",
    "measured_by",
    "images_per_s",
    "wall_s",
    "epochs",
    "device",
    "commit",
    "versions",
)


def done(singles: Sequence[Single]) -> list[dict]:
    """The summaries of the runs that are complete."""
    return [single.summary for single in singles if single.summary is not None]


def measured(singles: Sequence[Single], key: str) -> Figures | None:
    return figures([float(summary[key]) for summary in done(singles)])


def spread(found: Figures | None) -> str:
    """'76.37 ± 0.21', '76.37' of a single seed, '-' of none."""
    if found is None:
        return "-"
    return f"{found.mean:.2f}" if found.std is None else f"{found.mean:.2f} ± {found.std:.2f}"


def _row_as_json(row: Row, singles: Sequence[Single]) -> dict:
    found = {key: measured(singles, key) for key in MEASURED}
    runs = [
        {
            "seed": single.seed,
            "run": str(single.config.run_dir),
            "state": single.state,
            "why": single.why,
            **{key: single.summary[key] for key in OF_RUN if single.summary and key in single.summary},
        }
        for single in singles
    ]
    return {
        **row.cells,
        "config": row.source,
        "paper": row.paper,
        **{key: own._asdict() if own is not None else None for key, own in found.items()},
        "runs": runs,
    }
