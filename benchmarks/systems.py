"""Neighbouring systems on the same images, by the same budget: each alone and guided, over seeds.

    python benchmarks/systems.py train --images FOLDER [--seeds 3] [--only SYSTEM ...] [--out runs/systems]
    python benchmarks/systems.py table [--out runs/systems] [--results benchmarks/results]

What all share (images, size, epochs, batch, optimizer, rate, teacher) is systems.yaml; what a system changes is in
SYSTEMS. A training's row is appended to OUT/systems.jsonl as soon as it is there and is not trained again: the same
command goes on. One teacher, seed 0, guides all, so the spread is the students' own. ``table`` prints what there is and
writes it to systems-mini.json, with a plot.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # run by its path: the repository's own modules, whatever lies beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.harness import plots
from benchmarks.harness.trainings import Book, each, train_measured
from fastlg.commands.pretrain import unlabelled
from fastlg.config import Config, load_config
from fastlg.data.stores import open_stores
from fastlg.errors import RunError, Stopped, UserError
from fastlg.models import new_model
from fastlg.teacher.recipe import teacher_config
from fastlg.train import train

CONFIG = Path(__file__).with_name("systems.yaml")
CLASSES = 10
PLAIN, LABEL_FREE = "ViT", "start without labels"
START = f"the {LABEL_FREE} itself"
SYSTEMS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "LIFE": {"model.args.life": True},
    "SPT": {"model.args.spt": True},
    "LSA": {"model.args.lsa": True},
    "SPT and LSA": {"model.args.spt": True, "model.args.lsa": True},
    "DHVT": {
        "model.name": "dhvt_tiny_cifar_patch4",
        "model.args": {"embed_dim": 96, "depth": 4, "num_heads": 3},
    },
    "PoorViT, low-rank q, 2 class tokens": {  # its MLPs are half as wide, so that it has two blocks more
        "model.name": "poorvit",
        "model.args": {
            "patch_size": 4,
            "embed_dim": 96,
            "depth": 6,
            "num_heads": 6,
            "latent_mode": "q",
            "latent_dim": 32,
            "num_cls_token": 2,
        },
        "model.blocks": [0, 3, 5],
    },
    "FCViT": {  # at 64 px: of 32 its last stage would keep one place
        "model.name": "fcvit_tiny",
        "model.image_size": 64,
        "model.args": {"embed_dims": [16, 32, 64, 128], "depths": [1, 1, 2, 1], "mlp_ratios": [4, 4, 4, 4]},
        "model.blocks": [0, 1, 3],
    },
    "mimetic start": {"model.init": "mimetic"},
    "impulse start": {"model.init": "impulse_closed"},
    "whitening start": {"model.init": "whitening"},
    LABEL_FREE: {},
    "SAM": {"optim.sam_rho": 0.05},
    "dense relative localization": {"drloc.weight": 0.1},
}


class Cell(NamedTuple):
    """One training: of one system, or of the start without labels that both of its sides begin from."""

    system: str
    guided: bool
    seed: int

    def overrides(self) -> dict[str, Any]:
        return {"run.seed": self.seed, **({} if self.guided else {"teacher": None}), **SYSTEMS.get(self.system, {})}

    @property
    def run(self) -> str:
        words = "".join(letter if letter.isalnum() else "_" for letter in self.system)
        return f"{words}-{'guided' if self.guided else 'alone'}-{self.seed}"


def cells(seeds: int, only: list[str] | None) -> Iterator[Cell]:
    """Every system at one seed before the next seed, so that a cut leaves a whole comparison."""
    for seed in range(seeds):
        for system in only or SYSTEMS:
            if system == LABEL_FREE:
                yield Cell(START, False, seed)
            yield from (Cell(system, guided, seed) for guided in (False, True))


def measure(cell: Cell, base: Config, teacher: Path) -> dict:
    """The row of one cell, trained from its start."""
    place = {"run.name": cell.run, "run.root": str(base.run.root), "data.source": base.data.source}
    if cell.system == START:
        config = unlabelled(str(CONFIG), [])[0].replace({**place, "run.seed": cell.seed})
    else:
        config = base.replace({**cell.overrides(), **place})
    if cell.guided:
        config = config.replace({"teacher.weights": str(teacher)})
    if cell.system == LABEL_FREE:
        config = config.replace({"model.weights": str(base.run.root / Cell(START, False, cell.seed).run)})
    student = new_model(config.model, config.teacher, CLASSES)
    return {
        "cell": cell._asdict(),
        "overrides": cell.overrides(),
        "parameters": sum(parameter.numel() for parameter in student.parameters()) / 1e6,
        **train_measured(config, "benchmarks/systems.py", keep=cell.system == START),
    }


def table(rows: list[dict]) -> str:
    """One line per system: parameters, top-1 of the last epoch (mean, least and most), what guidance adds, seconds."""
    found: dict[tuple[str, bool], list[dict]] = {}
    for row in rows:
        found.setdefault((row["cell"]["system"], row["cell"]["guided"]), []).append(row)
    lines = [
        "| system | parameters, M | alone, % | guided, % | guidance | seeds | processor s, alone | guided |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for system in SYSTEMS:
        alone, guided = (found.get((system, side), []) for side in (False, True))
        if not alone or not guided:
            continue
        start = seconds(found[START, False]) if system == LABEL_FREE else 0.0
        lines.append(
            f"| {system} | {alone[0]['parameters']:.2f} | {spread(alone)} | {spread(guided)} "
            f"| {mean(guided) - mean(alone):+.1f} | {min(len(alone), len(guided))} "
            f"| {start + seconds(alone):.0f} | {start + seconds(guided):.0f} |"
        )
    return "\n".join(lines)


def mean(rows: list[dict]) -> float:
    return statistics.fmean(row["top1_last"] for row in rows)


def spread(rows: list[dict]) -> str:
    top1 = [row["top1_last"] for row in rows]
    return f"{mean(rows):.1f} ({min(top1):.1f} - {max(top1):.1f})"


def seconds(rows: list[dict]) -> float:
    return statistics.median(row["processor_s"] for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="systems.py", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("--images", type=Path, help="the folder that holds cifar100-mini")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--only", nargs="*", metavar="SYSTEM", choices=SYSTEMS, help="of the systems, these")
    parser.add_argument("--out", type=Path, default=Path("runs/systems"))
    parser.add_argument("--results", type=Path, help="where systems-mini.json is written")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    book = Book(options.out / "systems.jsonl")
    if options.what == "train":
        for row in trained(options, book):
            book.add(row)
            print(f"systems {row['top1_last']:.1f} % {Cell(**row['cell'])}", flush=True)
    print(table(book.rows))
    if options.results:
        path = options.results / "systems-mini.json"
        path.write_text(json.dumps({"config": CONFIG.read_text("utf-8"), "rows": book.rows}, indent=1) + "\n", "utf-8")
        plots.levers([row for row in book.rows if row["cell"]["system"] != START], path.with_suffix(".png"))
    return 0


def trained(options: argparse.Namespace, book: Book) -> Iterator[dict]:
    if options.images is None:
        raise UserError("give --images, the folder that holds cifar100-mini")
    base = load_config(str(CONFIG))
    source = str(options.images / str(base.data.source))
    base = base.replace({"data.source": source, "run.root": str(options.out / "work")})
    teacher = teacher_config(base, open_stores(base.data).fingerprints)
    train(teacher, waits=True)
    left = [cell for cell in cells(options.seeds, options.only) if not book.has(cell)]
    starts = [cell for cell in left if cell.system == START]  # before what begins from them
    for some in (starts, [cell for cell in left if cell.system != START]) if options.jobs > 1 else (left,):
        yield from each(measure, [(cell, base, teacher.run_dir) for cell in some], options.jobs)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, RunError) as error:
        print(f"systems.py: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:  # within a training, which the next call begins anew
        sys.exit(stopped.status)
