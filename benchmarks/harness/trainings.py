"""Whole trainings that are measured, one by one or several at once, and the book of their rows."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.harness.bench import Stamp
from fastlg.config import Config
from fastlg.run.report import read_metrics
from fastlg.train import train


class Book:
    """Rows on disk as they come, each with the ``cell`` that it is of."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.rows = [json.loads(line) for line in lines]

    def has(self, cell: NamedTuple) -> bool:
        return any(row["cell"] == cell._asdict() for row in self.rows)

    def add(self, row: dict) -> None:
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def train_measured(config: Config, script: str, keep: bool = False) -> dict[str, Any]:
    """Trains it from its start: its accuracies, seconds, curve and stamp. Its folder is gone afterwards, or kept.

    Seconds are processor time of the whole training, evaluations included: a shared machine's wall clock says little.
    """
    shutil.rmtree(config.run_dir, ignore_errors=True)
    arguments = ["FOLDER" if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    stamp = asdict(Stamp.of(torch.device("cpu"), " ".join([f"python {script}", *arguments])))
    start = time.process_time()
    summary = train(config)
    spent = time.process_time() - start
    curve = [[row["epoch"], row["top1"]] for row in read_metrics(config.run_dir) if row["kind"] == "eval"]
    if not keep:
        shutil.rmtree(config.run_dir)
    return {
        **{key: summary[key] for key in ("top1_last", "top1_best", "top5_last", "epochs", "wall_s")},
        "processor_s": spent,
        "curve": curve,
        **stamp,
    }


def each(measure: Callable[..., dict], tasks: list[tuple], jobs: int) -> Iterator[dict]:
    """The row of each task, as they come; with ``jobs`` above 1 each in a process of its own with one thread."""
    if jobs == 1:
        yield from (measure(*task) for task in tasks)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(measure, *task) for task in tasks]):
            yield future.result()
