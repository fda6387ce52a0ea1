"""``fastlg bench``: finds the device, measures what it can in the time there is, writes results, table and plots.

    python benchmarks/run.py [NAME ...] [--quick] [--compare OLD.json] [--profile] [--readme RESULTS.json]

Writes benchmarks/results/DATE-DEVICE-COMMIT.json, .md and .png. A benchmark that fails is named and the others go on;
the exit status is then 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":  # the root, not this folder, whose names could hide installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.harness.bench import Bench, Row, Stamp, append_line, timed
from benchmarks.harness.counting import measure_ceilings
from benchmarks.harness.ours import store_of
from benchmarks.harness.report import ROOT, compare, comparison_text, load, number, results_name, save, write_readme
from fastlg.ranks import say

# Seconds of each benchmark: (CPU quick, CPU, GPU quick, GPU). 0 leaves it out of a run that names none. What comes
# before switches fits into a whole run; the last get the time that is left, or are said to be left out.
SECONDS = {
    "training": (22, 95, 35, 230),
    "step": (7, 20, 15, 45),
    "guidance": (3, 10, 3, 20),
    "augment": (4, 15, 3, 20),
    "teacher": (2, 8, 2, 15),
    "optimizer": (4, 8, 2, 5),
    "evaluation": (3, 8, 4, 12),
    "checkpoint": (2, 5, 3, 8),
    "loaders": (0, 45, 0, 35),
    "cache": (0, 30, 0, 20),
    "coldstart": (0, 25, 0, 45),
    "switches": (0, 100, 0, 100),
    "scaling": (0, 110, 0, 110),
    "blocks": (0, 30, 0, 40),
    "first_light": (0, 60, 0, 170),
    "students": (0, 90, 0, 150),
    "cpu": (0, 600, 0, 5),
    "systems": (0, 400, 0, 90),
}
MODULES = {  # below benchmarks/: the file whose rows(bench) it is
    "training": "cases.training.end_to_end",
    "step": "cases.training.step_parts",
    "guidance": "cases.kernels.guidance",
    "blocks": "cases.kernels.block_parts",
    "augment": "cases.kernels.augment",
    "teacher": "cases.training.teacher",
    "optimizer": "cases.training.optimizer",
    "evaluation": "cases.evaluation",
    "checkpoint": "cases.checkpoint",
    "loaders": "cases.input.loaders",
    "cache": "cases.training.feature_cache",
    "coldstart": "cases.coldstart",
    "switches": "cases.training.switches",
    "scaling": "scaling.study",
    "first_light": "cases.first_light",
    "students": "cases.training.students",
    "cpu": "cases.training.cpu_ladder",
    "systems": "cases.training.systems",
}
TOTAL = (52, 285, 70, 460)  # seconds of a whole run; nothing new starts when the rest is too short for it


def main() -> int:
    began = time.monotonic()
    options = arguments()
    console = Console(highlight=False, soft_wrap=True)
    say.console.quiet = True  # what a training says of itself
    if options.readme:
        console.print(f"wrote {write_readme(options.readme).relative_to(ROOT)}")
        return 0
    old = load(options.compare) if options.compare else None
    device = torch.device(options.device)
    if device.type == "cpu":
        use_threads_that_help()
    command = " ".join(["fastlg bench", *sys.argv[1:]])
    place = 2 * (device.type == "cuda") + (not options.quick)
    names = options.names or [name for name, seconds in SECONDS.items() if seconds[place]]
    total = TOTAL[place] if not options.names else 20 + sum(budget(name, place) for name in names)
    with scratch_folder(options.folder) as scratch:
        os.environ["FASTLG_CACHE"] = f"{scratch}/cache"
        bench = Bench(
            device,
            quick=options.quick,
            folder=Path(scratch),
            ceilings=measure_ceilings(device, timed, options.quick),
            stamp=Stamp.of(device, command),
            profile=options.out / "profile" if options.profile else None,
            log=options.rows,
            overrides=tuple(options.set),
        )
        if options.rows is not None:
            append_line(options.rows, {"ceilings": asdict(bench.ceilings), **asdict(bench.stamp)})
        store_of(bench)  # before any benchmark's time begins
        failed = run_all(bench, names, place, began + total, console)
    if not bench.rows:
        console.print("\n".join(["fastlg bench: nothing was measured", *bench.left_out]), markup=False)
        return 1
    return finish(bench, options, old, failed, console, time.monotonic() - began)


def scratch_folder(kept: Path | None):
    """The folder that was named, which stays, or one that is gone afterwards."""
    if kept is None:
        return tempfile.TemporaryDirectory(prefix="fastlg-bench-")
    kept.mkdir(parents=True, exist_ok=True)
    return nullcontext(str(kept))


def use_threads_that_help() -> None:
    """On a CPU that other programs keep busy, several threads wait for each other and are slower than one: take one."""
    many, a = torch.get_num_threads(), torch.ones(512, 512)
    took = {}
    for threads in (1, many):
        torch.set_num_threads(threads)
        took[threads] = sum(timed(lambda: [a @ a for _ in range(10)], torch.device("cpu")) for _ in range(6))
    torch.set_num_threads(many if took[many] < took[1] else 1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fastlg bench", description="Measure what this machine can do.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SECONDS)}; default: what fits")
    parser.add_argument("--quick", action="store_true", help="less of everything, below a minute")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="print ratios to an earlier results file")
    parser.add_argument("--profile", action="store_true", help="torch.profiler traces of the steps, below the results")
    parser.add_argument("--readme", type=Path, metavar="RESULTS.json", help="fill README's section, measure nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--rows", type=Path, metavar="FILE.jsonl", help="append every row there at once, too")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="of every config")
    parser.add_argument(
        "--folder", type=Path, help="scratch space that stays, so that a next run finds its images there"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in SECONDS]:
        raise ValueError(f"there is no benchmark {unknown[0]}; choose from {', '.join(SECONDS)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch sees no CUDA device")
    return options


def budget(name: str, place: int) -> float:
    """A benchmark that a quick run leaves out gets its full time when it is named."""
    return SECONDS[name][place] or SECONDS[name][place + 1]


def run_all(bench: Bench, names: list[str], place: int, ends: float, console: Console) -> list[str]:
    """Every benchmark in its time; returns the names of those that failed."""
    failed: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(names))
        threads = torch.get_num_threads()
        for name in names:
            seconds = min(budget(name, place), ends - time.monotonic())
            bench.begin(name, seconds)
            shown = len(bench.rows)
            bench.notice = lambda what, name=name: progress.update(task, description=f"{name}: {what}")
            bench.notice("starts")
            if seconds < budget(name, place) / 2:
                bench.left_out.append(f"{name} (out of time)")
                continue
            try:
                importlib.import_module(f"benchmarks.{MODULES[name]}").rows(bench)
            except Exception as error:
                failed.append(name)
                bench.left_out.append(f"{name}: failed with {type(error).__name__}: {error}")
                console.print(traceback.format_exc(), markup=False)
            torch.set_num_threads(threads)
            for row in bench.rows[shown:]:
                console.print(line(row), markup=False)
            progress.advance(task)
    return failed


def free(path: Path) -> Path:
    """``path``, numbered where a results file has that name already: measured numbers are never overwritten."""
    number, found = 2, path
    while found.exists():
        found, number = path.with_name(f"{path.stem}-{number}.json"), number + 1
    return found


def line(row: Row) -> str:
    """A row for a terminal."""
    what = f"{row.case}, {row.provider}" + (f", batch {row.batch}" if row.batch else "")
    rate = f"{number(row.images_per_s):>9} images/s" if row.images_per_s else " " * 18
    ratio = f"{row.ratio:>6.2f}x" if row.ratio else " " * 7
    share = f"{row.bound_share:>5.0%} of the bound" if row.bound_share else ""
    return f"{row.bench:<11}{what:<62}{number(row.median_ms):>9} ms ±{row.spread:>4.0%}{rate}{ratio}{share}".rstrip()


def finish(bench: Bench, options: argparse.Namespace, old: dict | None, failed: list, console, took: float) -> int:
    """Writes everything, prints where it lies; returns the exit status."""
    first = bench.rows[0].as_json()
    named = ("-" + "-".join(options.names) if options.names else "") + ("-quick" if options.quick else "")
    path = free(options.out / f"{results_name(first)}{named}.json")
    conditions = {"ceilings": asdict(bench.ceilings), "seconds": round(took, 1), "left_out": bench.left_out}
    results = save(path, bench.rows, conditions)
    try:
        from benchmarks.harness.plots import draw

        pictures = draw(results, path.with_suffix(""))
    except ImportError:
        pictures = []
        console.print("matplotlib is not installed; no plots (pip install 'fastlg[plots]')", markup=False)
    for left in bench.left_out:
        console.print(f"left out   {left}", markup=False)
    if bench.stamp.others and bench.stamp.others > 0.5:
        console.print(
            f"not quiet  {bench.stamp.others:g} threads of other programs ran at the start: times are too long"
        )
    if old is not None:
        console.print(comparison_text(compare(old["rows"], results["rows"])), markup=False)
    console.print(f"{len(bench.rows)} rows in {took:.0f} s: {path} (.md, {len(pictures)} plots)", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"fastlg: {error}", file=sys.stderr)
        sys.exit(2)
