"""Levers of the recipe on real images: top-1 against epochs and seconds, guided and unguided, over seeds.

    python benchmarks/recipe.py SETTING rates|levers|long|teachers|all --images FOLDER [--seeds 3] [--only LEVER ...]
    python benchmarks/recipe.py SETTING table [--out runs/recipe] [--results benchmarks/results]

Every cell is one ``fastlg train`` of a setting below with overrides. Its row is appended to OUT/SETTING.jsonl as soon
as it is there, and a cell whose row is there already is not trained again: stop it when you like, the same command goes
on. ``rates`` gives each optimizer the same learning rates, for a comparison at one rate flatters whoever it suits;
and the best of each is trained with the other seeds; ``levers`` then adds one lever at a time to Muon, guided and
unguided each at its own best rate so far; ``teachers`` trains the teacher itself with few epochs. ``table`` prints what
there is and writes it to recipe-SETTING.json.

One teacher, seed 0, guides all seeds of a setting, so the spread is the students' own. Seconds are processor time of
the whole training, evaluations included: a shared machine's wall clock says little. ``--jobs`` trains several cells at
once, each on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # run by its path: the repository's own modules, whatever lies beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import pyarrow
from pyarrow import parquet

from benchmarks.harness import ladder, plots
from benchmarks.harness.ladder import Book, Cell
from benchmarks.harness.trainings import each, train_measured
from fastlg.config import Config, config_from, load_config
from fastlg.data.stores import open_stores
from fastlg.errors import RunError, Stopped, UserError
from fastlg.teacher.recipe import teacher_config
from fastlg.train import train


def slice_of(source: Path, out: Path, train: int, test: int) -> Path:
    """A folder of parquet files like ``source``'s, with the first images of each class alone."""
    for split, most in (("train", train), ("test", test)):
        rows = pyarrow.concat_tables([parquet.read_table(path) for path in sorted(source.glob(f"{split}-*.parquet"))])
        seen: dict[int, int] = {}
        keep = []
        for index, label in enumerate(rows["fine_label"].to_pylist()):
            seen[label] = seen.get(label, 0) + 1
            if seen[label] <= most:
                keep.append(index)
        out.mkdir(parents=True, exist_ok=True)
        parquet.write_table(rows.take(keep), out / f"{split}-00000-of-00001.parquet")
    return out


def base(setting: str, images: Path | None, out: Path) -> Config:
    tree = json.loads(json.dumps(ladder.SETTINGS[setting]))
    place = {"run.root": str(out / "work"), "run.name": setting, "log.tensorboard": False}
    if name := tree.pop("config", None):
        return load_config(name).replace({**tree, **place})
    if images is None:
        raise UserError(f"{setting} needs images: give --images, the folder that holds {tree['data']['source']}")
    source = images / tree["data"]["source"]
    if setting in ladder.SLICES:
        source = slice_of(source, out / "images" / setting, *ladder.SLICES[setting])
    tree["data"]["source"] = str(source)
    return config_from(tree, setting).replace(place)


class Bases:
    """What the cells of a setting override: a student's config with one trained teacher for all seeds, and that
    teacher's own."""

    def __init__(self, config: Config):
        self.teacher = teacher_config(config, open_stores(config.data).fingerprints)
        self.teacher_top1 = train(self.teacher, waits=True)["top1_last"]
        self.student = config.replace({"teacher.weights": str(self.teacher.run_dir)})

    def of(self, cell: Cell) -> Config:
        """The config of ``cell``, by the name of its run."""
        name = "-".join(map(str, cell)).replace(".", "_").replace(",", "").replace(" ", "_")
        own = {"run.root": str(self.student.run.root), "run.name": name}
        return (self.teacher if cell.epochs else self.student).replace({**cell.overrides(), **own})


def measure(cell: Cell, overrides: dict, config: Config, teacher_top1: float) -> dict:
    """Trains one cell, from its start; its folder is gone afterwards."""
    return {
        "cell": cell._asdict(),
        "overrides": overrides,
        "teacher_top1": teacher_top1 if cell.guided and "teacher.weights" not in overrides else None,
        **train_measured(config, "benchmarks/recipe.py"),
    }


def table(rows: list[dict]) -> str:
    """One line per cell over its seeds: mean, smallest and largest top-1 of the last epoch, processor seconds."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        cell = row["cell"]
        groups.setdefault((cell["lever"], cell["guided"], cell["optimizer"], cell["lr"]), []).append(row)
    lines = ["| lever | side | optimizer | rate | seeds | top-1 % | from - to | processor s |"]
    lines.append("|---|---|---|---:|---:|---:|---:|---:|")
    for (lever, guided, optimizer, lr), own in sorted(groups.items()):
        top1 = [row["top1_last"] for row in own]
        seconds = statistics.median(row["processor_s"] for row in own)
        spread = f"{min(top1):.1f} - {max(top1):.1f}"
        side = "teacher" if lever.startswith(ladder.TEACHER_LEVER) else "guided" if guided else "unguided"
        cells = (lever or "none", side, optimizer, f"{lr:g}", len(own))
        lines.append(f"| {' | '.join(map(str, cells))} | {statistics.fmean(top1):.1f} | {spread} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="recipe.py", description=__doc__.splitlines()[0])
    parser.add_argument("setting", choices=ladder.SETTINGS)
    parser.add_argument("what", choices=("rates", "levers", "long", "teachers", "all", "table"))
    parser.add_argument("--images", type=Path, help="the folder that holds the settings' images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="cells trained at once")
    parser.add_argument("--only", nargs="*", metavar="LEVER", help="of the levers, these; of rates: with each of these")
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--results", type=Path, help="where recipe-SETTING.json is written")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    book = Book(options.out / f"{options.setting}.jsonl")
    if options.what != "table":
        bases = Bases(base(options.setting, options.images, options.out))
        for cells in phases(options, book):
            for row in measured([cell for cell in cells if not book.has(cell)], bases, options.jobs):
                book.add(row)
                print(f"recipe {row['top1_last']:.1f} % {Cell(**row['cell'])}", flush=True)
    print(table(book.rows))
    if options.results:
        path = options.results / f"recipe-{options.setting}.json"
        path.write_text(json.dumps({"setting": ladder.SETTINGS[options.setting], "rows": book.rows}, indent=1) + "\n")
        plots.recipe(book.rows, path.with_suffix(".png"))
        rungs = list(ladder.rungs(book))
        if any(row["cell"]["lever"] for row in rungs):
            plots.levers(rungs, path.with_name(f"{path.stem}-levers.png"))
    return 0


def phases(options: argparse.Namespace, book: Book) -> Iterator[list[Cell]]:
    """Cells that need no row of one another: what the next phase trains is chosen by the rows before it."""
    if options.what in ("rates", "all"):
        levers = options.only if options.what == "rates" and options.only else [""]
        for seeds in ([0], range(1, options.seeds)):
            yield [
                cell
                for seed in seeds
                for lever in levers
                for cell in ladder.rate_cells(options.setting, seed, book, lever)
            ]
    if options.what in ("levers", "all"):
        cells = (cell for seed in range(options.seeds) for cell in ladder.lever_cells(options.setting, seed, book))
        yield [cell for cell in cells if not options.only or cell.lever in options.only]
    if options.what in ("long", "all"):
        yield [cell for seed in range(options.seeds) for cell in ladder.long_cells(options.setting, seed, book)]
    if options.what in ("teachers", "all"):
        for seeds in ([0], range(1, options.seeds)):
            yield [cell for seed in seeds for cell in ladder.teacher_cells(options.setting, seed, book)]


def measured(cells: list[Cell], bases: Bases, jobs: int) -> Iterator[dict]:
    return each(measure, [(cell, cell.overrides(), bases.of(cell), bases.teacher_top1) for cell in cells], jobs)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, RunError) as error:
        print(f"recipe.py: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:  # within a cell, which the next call begins anew
        sys.exit(stopped.status)
