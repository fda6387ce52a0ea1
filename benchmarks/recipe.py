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
import multiprocessing
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # run by its path: the repository's own modules, whatever lies beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import pyarrow
import torch
from pyarrow import parquet

from benchmarks.harness import plots
from benchmarks.harness.bench import Stamp
from fastlg.config import Config, config_from, load_config
from fastlg.data.stores import open_stores
from fastlg.errors import RunError, Stopped, UserError
from fastlg.run.report import read_metrics
from fastlg.teacher.recipe import teacher_config
from fastlg.train import train

WEAK = {"rand_augment": None, "erase": 0.0}  # crop and flip alone
VIT = {"name": "vit_tiny_patch16_224", "image_size": 48, "blocks": [0, 2, 3], "drop_path": 0.0}
SMALL = {**VIT, "args": {"patch_size": 8, "depth": 4}}
BUDGET = {"warmup_epochs": 1, "warmup_factor": 0.2, "global_batch_size": 32}
TEACHER = {"augment.crop_scale": [0.5, 1.0], "augment.flip": 0.5, "optim.epochs": 6, "optim.global_batch_size": 32}
SETTINGS = {  # data.source is FOLDER/NAME; or a shipped config with overrides
    "quickstart": {"config": "quickstart", "optim.epochs": 4},
    "mini": {  # 10 classes, 1,500 images; a DeiT of 4 blocks and 36 tokens
        "data": {"source": "cifar100-mini", "label_column": "label", "workers": 0},
        "augment": WEAK,
        "model": SMALL,
        "teacher": {"recipe": "quickstart_teacher", "overrides": TEACHER},
        "optim": {**BUDGET, "epochs": 10},
    },
    "slice": {  # of CIFAR-100: all 100 classes, 5,000 training and 2,000 test images; 25 tokens
        "data": {"source": "cifar100", "label_column": "fine_label", "workers": 0},
        "augment": WEAK,
        "model": {**SMALL, "image_size": 40},
        "teacher": {"recipe": "quickstart_teacher", "overrides": TEACHER},
        "optim": {**BUDGET, "epochs": 5},
    },
    "flowers17": {  # 17 classes, 680 training and 340 test images; every class is one kind of flower
        "data": {"source": "flowers17", "label_column": "label", "workers": 0},
        "augment": WEAK,
        "model": SMALL,
        "teacher": {"recipe": "quickstart_teacher", "overrides": {**TEACHER, "optim.epochs": 12}},
        "optim": {**BUDGET, "epochs": 15},
    },
}
SLICES = {"slice": (50, 20)}  # training and test images of each class
FEWER_RATES = {"quickstart": 3, "slice": 3, "flowers17": 3}  # of RATES, the first
RATES = {  # as many for each optimizer and side, likely bests first; a setting may try the first of them alone
    ("adamw", True): (2e-3, 1e-3, 4e-3, 5e-4, 8e-3, 2.5e-4),
    ("adamw", False): (5e-4, 1e-3, 2.5e-4, 2e-3, 4e-3, 8e-3),
    ("muon", True): (8e-3, 4e-3, 1.6e-2, 2e-3, 1e-3, 5e-4),
    ("muon", False): (4e-3, 8e-3, 2e-3, 1.6e-2, 1e-3, 5e-4),
}
TIMES = "rate times"  # of a lever that changes the rate by a factor
LEVERS: dict[str, dict] = {
    "alternating flips": {"augment.flip": "alternating"},
    "linear": {"optim.schedule": "linear"},
    "flat, then linear": {"optim.schedule": "linear", "optim.flat": 0.5},
    "smoothed labels": {"optim.label_smoothing": 0.1},
    "EMA 0.99": {"optim.ema": 0.99},
    "flat, EMA 0.99": {"optim.ema": 0.99, "optim.flat": 0.9},
    "guidance ends at 0.5": {"guidance.until": 0.5},
    "guidance fades": {"guidance.schedule": "cosine"},
    "24, 32, 48 px": {"model.resolution": [[0.0, 24], [0.3, 32], [0.6, 48]]},
    "5 epochs": {"optim.epochs": 5},
    "batch 64": {"optim.global_batch_size": 64},
    "batch 64, rate x 1.4": {"optim.global_batch_size": 64, TIMES: 1.4},
    "RandAugment, erasing": {"augment.rand_augment": "rand-m9-mstd0.5-inc1", "augment.erase": 0.25},
}
LONG = {"30 epochs": {"optim.epochs": 30}}  # of AdamW, at the paper's rate and at its best one
PAPER_RATE = 5e-4
TEACHERS = {("sgd", 6): (0.05, 0.1, 0.2), ("sgd", 2): (0.05, 0.1, 0.2), ("muon", 2): (4e-3, 8e-3, 1.6e-2)}  # epochs
TEACHER_LEVER = "teacher, "
GUIDED_ONLY = "guidance."  # levers of such keys have no unguided side


class Cell(NamedTuple):
    """One training: ``lever`` names an entry of LEVERS, or "teacher, N epochs"; "" is a student without any."""

    setting: str
    optimizer: str
    lr: float
    guided: bool
    lever: str
    seed: int

    def overrides(self) -> dict:
        lever = dict(LEVERS.get(self.lever) or LONG.get(self.lever) or {})
        rate = self.lr * lever.pop(TIMES, 1)
        own = {"optim.name": self.optimizer, "optim.lr": rate, "optim.min_lr": rate / 100, "run.seed": self.seed}
        if self.epochs:
            return {**own, "optim.epochs": self.epochs}
        return {**own, **({} if self.guided else {"teacher": None}), **lever}

    @property
    def epochs(self) -> int:
        """Of a teacher's training; 0 of a student's."""
        return int(self.lever.split()[1]) if self.lever.startswith(TEACHER_LEVER) else 0


class Book:
    """The rows of one setting, on disk as they come."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.rows = [json.loads(line) for line in lines]

    def has(self, cell: Cell) -> bool:
        return any(row["cell"] == cell._asdict() for row in self.rows)

    def add(self, row: dict) -> None:
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def best_rate(self, optimizer: str, guided: bool, lever: str = "") -> float:
        """The one with the highest top-1 at seed 0, which tries them all."""
        rows = (row for row in self.rows if {"seed": 0, "lever": lever}.items() <= row["cell"].items())
        own = {"optimizer": optimizer, "guided": guided}
        found = {row["cell"]["lr"]: row["top1_last"] for row in rows if own.items() <= row["cell"].items()}
        if not found:
            raise SystemExit(f"{self.path} has no rates of {optimizer} yet; run rates first")
        return max(found, key=found.get)

    def best_rates(self) -> list[float]:
        return [self.best_rate(optimizer, guided) for optimizer, guided in RATES]


def rate_cells(setting: str, seed: int, book: Book) -> Iterator[Cell]:
    """Seed 0 tries every rate; the others are trained at the best of them."""
    tried = list(zip(*RATES.values(), strict=True))[: FEWER_RATES.get(setting)]
    for rates in [book.best_rates()] if seed else tried:
        for (optimizer, guided), lr in zip(RATES, rates, strict=True):
            yield Cell(setting, optimizer, lr, guided, "", seed)


def teacher_cells(setting: str, seed: int, book: Book) -> Iterator[Cell]:
    for (optimizer, epochs), rates in TEACHERS.items():
        lever = f"{TEACHER_LEVER}{epochs} epochs"
        for lr in [book.best_rate(optimizer, False, lever)] if seed else rates:
            yield Cell(setting, optimizer, lr, False, lever, seed)


def lever_cells(setting: str, seed: int, book: Book) -> Iterator[Cell]:
    for lever, overrides in LEVERS.items():
        for guided in (True, False):
            if guided or not any(key.startswith(GUIDED_ONLY) for key in overrides):
                yield Cell(setting, "muon", book.best_rate("muon", guided), guided, lever, seed)


def long_cells(setting: str, seed: int, book: Book) -> Iterator[Cell]:
    for lever in LONG:
        for guided in (True, False):
            for lr in sorted({PAPER_RATE, book.best_rate("adamw", guided)}):
                yield Cell(setting, "adamw", lr, guided, lever, seed)


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
    tree = json.loads(json.dumps(SETTINGS[setting]))
    place = {"run.root": str(out / "work"), "run.name": setting, "log.tensorboard": False}
    if name := tree.pop("config", None):
        return load_config(name).replace({**tree, **place})
    if images is None:
        raise UserError(f"{setting} needs images: give --images, the folder that holds {tree['data']['source']}")
    source = images / tree["data"]["source"]
    if setting in SLICES:
        source = slice_of(source, out / "images" / setting, *SLICES[setting])
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
    shutil.rmtree(config.run_dir, ignore_errors=True)
    arguments = ["FOLDER" if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    stamp = asdict(Stamp.of(torch.device("cpu"), " ".join(["python benchmarks/recipe.py", *arguments])))
    start = time.process_time()
    summary = train(config)
    spent = time.process_time() - start
    curve = [[row["epoch"], row["top1"]] for row in read_metrics(config.run_dir) if row["kind"] == "eval"]
    shutil.rmtree(config.run_dir)
    return {
        "cell": cell._asdict(),
        "overrides": overrides,
        **{key: summary[key] for key in ("top1_last", "top1_best", "top5_last", "epochs", "wall_s")},
        "processor_s": spent,
        "curve": curve,
        "teacher_top1": teacher_top1 if cell.guided else None,
        **stamp,
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
        side = "teacher" if lever.startswith(TEACHER_LEVER) else "guided" if guided else "unguided"
        cells = (lever or "none", side, optimizer, f"{lr:g}", len(own))
        lines.append(f"| {' | '.join(map(str, cells))} | {statistics.fmean(top1):.1f} | {spread} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="recipe.py", description=__doc__.splitlines()[0])
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("what", choices=("rates", "levers", "long", "teachers", "all", "table"))
    parser.add_argument("--images", type=Path, help="the folder that holds the settings' images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="cells trained at once")
    parser.add_argument("--only", nargs="*", metavar="LEVER", help="of the levers, these")
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
        path.write_text(json.dumps({"setting": SETTINGS[options.setting], "rows": book.rows}, indent=1) + "\n")
        plots.recipe(book.rows, path.with_suffix(".png"))
    return 0


def phases(options: argparse.Namespace, book: Book) -> Iterator[list[Cell]]:
    """Cells that need no row of one another: what the next phase trains is chosen by the rows before it."""
    if options.what in ("rates", "all"):
        for seeds in ([0], range(1, options.seeds)):
            yield [cell for seed in seeds for cell in rate_cells(options.setting, seed, book)]
    if options.what in ("levers", "all"):
        cells = (cell for seed in range(options.seeds) for cell in lever_cells(options.setting, seed, book))
        yield [cell for cell in cells if not options.only or cell.lever in options.only]
    if options.what in ("long", "all"):
        yield [cell for seed in range(options.seeds) for cell in long_cells(options.setting, seed, book)]
    if options.what in ("teachers", "all"):
        for seeds in ([0], range(1, options.seeds)):
            yield [cell for seed in seeds for cell in teacher_cells(options.setting, seed, book)]


def measured(cells: list[Cell], bases: Bases, jobs: int) -> Iterator[dict]:
    """The row of each cell, as they come; with ``jobs`` above 1 each in a process of its own with one thread."""
    tasks = [(cell, cell.overrides(), bases.of(cell), bases.teacher_top1) for cell in cells]
    if jobs == 1:
        yield from (measure(*task) for task in tasks)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(measure, *task) for task in tasks]):
            yield future.result()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, RunError) as error:
        print(f"recipe.py: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:  # within a cell, which the next call begins anew
        sys.exit(stopped.status)
