"""The rows of a table, and the single runs that fill them: one for each seed, one for rows that are alike."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastlg.config import Config, dotted
from fastlg.data.stores import open_stores
from fastlg.derived import derived
from fastlg.errors import RunError, UserError, brief
from fastlg.run.folder import finished, may_differ, refuse_other_images
from fastlg.teacher.recipe import as_teacher

LONGEST_NAME = 100  # characters of a folder that is named by values
MOST_RUNS = 10_000
OF_PLACE = ("data.store", "data.download", "data.loader", "data.workers")  # of data: what no number depends on


@dataclass(frozen=True)
class Row:
    """One line of a table: what it trains, whatever the seed."""

    cells: dict[str, str]  # column -> text
    source: str  # the config, as ``fastlg train`` takes it
    overrides: tuple[str, ...]  # likewise
    config: Config  # both of them read
    folder: str  # of its runs, below that of the table
    paper: float | None = None  # published top-1, %

    @property
    def label(self) -> str:
        cells = ", ".join(text if name == "row" else f"{name}={text}" for name, text in self.cells.items())
        return cells or self.config.run.name  # of a sweep over seeds alone


@dataclass
class Single:
    """One training: a row's, with one seed. ``state`` is waiting, running, done, failed or stopped."""

    label: str
    config: Config
    command: tuple[str, ...]  # arguments of fastlg
    state: str = "waiting"
    summary: dict | None = None
    why: str = ""  # it failed or was stopped

    @property
    def seed(self) -> int:
        return self.config.run.seed

    def settle(self) -> None:
        """Finds its place, and takes its summary if it is complete. Raises UserError for another run in its folder.

        A CNN alone is put among the teachers: the runs that it guides find it there, or have trained it.
        """
        if self.config.model.is_cnn and self.config.teacher is None:
            stores = open_stores(self.config.data)
            root = self.config.run.root / "teachers"
            self.config = as_teacher(self.config.replace({"run.root": str(root)}), stores.fingerprints)
            self.command = (*self.command, f"run.root={root}", f"run.name={self.config.run.name}")
        self.take()

    def take(self) -> None:
        """Its summary, if it is complete."""
        self.summary = finished(self.config.run_dir, self.config)
        if self.summary is not None:
            self.state = "done"


def plan(rows: Sequence[Row], seeds: Sequence[int], group: str) -> list[tuple[Row, list[Single]]]:
    """The runs of each row. Rows of the same content, under the overrides given, share their runs.

    Raises UserError for two rows of one name, and for more runs than anybody means.
    """
    if len(rows) * len(seeds) > MOST_RUNS:
        raise UserError(f"{len(rows):,} rows with {len(seeds):,} seeds are too many runs; at most {MOST_RUNS:,}")
    named: dict[str, Row] = {}
    for row in rows:
        other = named.setdefault(row.folder, row)
        if other is not row:
            raise UserError(
                f"rows {brief(other.label)} and {brief(row.label)} have one run name, {row.folder}; drop one"
            )
    known: dict[tuple[str, int], Single] = {}
    return [(row, [_single(row, seed, group, known) for seed in seeds]) for row in rows]


def _single(row: Row, seed: int, group: str, known: dict[tuple[str, int], Single]) -> Single:
    key = content(row.config), seed
    if key not in known:
        name = f"{group}/{row.folder}/seed{seed}"
        placed = derived(row.config.replace({"run.seed": seed, "run.name": name}), is_told=False)
        command = ("train", row.source, *row.overrides, f"run.seed={seed}", f"run.name={name}")
        known[key] = Single(row.label, placed, command)
    return known[key]


def content(config: Config) -> str:
    """All that a number depends on, but for the seed."""
    fields = dotted(config.model_dump(mode="json"))
    return json.dumps({key: value for key, value in fields.items() if shapes(key)}, sort_keys=True, default=str)


def shapes(key: str) -> bool:
    """Whether the results of a run depend on a field of its config; its seed is left out."""
    if key.startswith(("data.", "teacher.weights", "teacher.cache")):
        return key not in OF_PLACE
    return not may_differ(key) and not key.startswith("run.")


def group_name(stem: str, overrides: dict) -> str:
    """Folder of a table's runs: the same overrides find the same runs again, others make their own.

    overrides: dotted key -> value, of all rows alike.
    """
    shaping = {key: value for key, value in dotted(overrides).items() if shapes(key)}
    return f"{stem}-{_digest(json.dumps(shaping, sort_keys=True, default=str))}" if shaping else stem


def folder_name(text: str) -> str:
    """``text`` as the name of a folder, told apart from that of any other text."""
    name = re.sub(r"[^\w.=,+-]", "-", text)
    return name if name == text and len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def seeds_of(text: str | None, first: int, said: str = "") -> list[int]:
    """``--seeds 3``: three, from ``first`` on; ``--seeds 0,5,7``: these. None: ``first`` alone. Raises UserError.

    ``said``: as they were given, where that was not by --seeds.
    """
    if text is None:
        return [first]
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(re.fullmatch(r"[0-9]{1,10}", word) for word in words):
        if said:
            raise UserError(f"{said} is no list of seeds; give whole numbers")
        raise UserError(f"--seeds is {brief(text)}; give how many (--seeds 3) or which (--seeds 0,5,7)")
    seeds = [int(word) for word in words]
    if "," not in text and seeds:
        count = seeds[0]
        if count > MOST_RUNS:
            raise UserError(f"--seeds is {brief(text)}; that are too many, give at most {MOST_RUNS:,}")
        seeds = list(range(first, first + count))
    if not seeds:
        raise UserError(f"--seeds is {brief(text) or 'empty'}, which names no seed; give --seeds 3 or --seeds 0,5,7")
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        what = f"{said} names" if said else f"--seeds is {brief(text)}, which names"
        raise UserError(f"{what} seed {twice[0]} twice; name each once")
    return seeds


def expect_same_images(singles: Sequence[Single]) -> None:
    """Raises UserError for a run, complete or not, that saw other images than its table is trained on now: a mean of
    both would mean nothing."""
    now: dict[str, list[str] | None] = {}
    for config in [single.config for single in singles]:
        if not (config.run_dir / "config.yaml").is_file():
            continue
        key = json.dumps(config.data.model_dump(mode="json"), sort_keys=True)
        if key not in now:
            now[key] = None
            with contextlib.suppress(UserError, RunError):  # they are gone: the run that needs them says so
                now[key] = open_stores(config.data).fingerprints
        if now[key] is not None:
            refuse_other_images(config, now[key])


def singles_of(entries: Iterable[tuple[Row, list[Single]]]) -> list[Single]:
    """Every run once, in the order of the rows."""
    found: dict[int, Single] = {}
    for _, singles in entries:
        found |= {id(single): single for single in singles}
    return list(found.values())
