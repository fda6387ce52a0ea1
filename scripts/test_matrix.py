#!/usr/bin/env python3
"""The kernels' tests and a training on every stack that fastlg claims, each in an environment of its own.

    make test-matrix [STACKS="oldest newest-3.13"]      or  python scripts/test_matrix.py [STACK ...]

An interpreter is ``python3.12`` on PATH, or what the variable PYTHON3_12 names; one that is not there is a line of the
table. Environments lie in .venv-matrix/ and are brought up to date by the next call, with their logs beside them.
The exit status is 0 if every stack passed, 1 if one failed, 2 if none failed but an interpreter was not there: what was
not tried does not pass.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = Path(os.environ.get("FASTLG_MATRIX", ROOT / ".venv-matrix"))
EXTRAS = "parquet,plots,demo"
HEAVY = ("fastlg", "deepspeed", "nvidia-dali", "torchdistill", "ruff")  # of the extra dev; no test here needs them
TRAINING = ("optim.epochs=6", "teacher.overrides.optim.epochs=1", "log.tensorboard=false", "engine.device=cpu")
CHANCE = 10.0  # percent, of ten digits: whoever learnt has far more
SHOWN = ("torch", "triton", "numpy")


@dataclass(frozen=True)
class Stack:
    """``pins`` hold besides pyproject.toml's bounds; what is not pinned is the newest that can be had."""

    python: str
    pins: tuple[str, ...] = ()


STACKS = {
    # Triton 3.6's interpreter takes int() of arrays [1], which NumPy has refused since 2.4.
    "oldest": Stack("3.12", ("torch==2.11.0", "triton==3.6.0", "numpy<2.4")),
    "newest-3.11": Stack("3.11"),
    "newest-3.12": Stack("3.12"),
    "newest-3.13": Stack("3.13"),
}


@dataclass
class Row:
    stack: str
    python: str
    torch: str = ""
    triton: str = ""
    numpy: str = ""
    kernels: str = ""
    training: str = ""
    seconds: str = ""
    status: str = "failed"  # passed, failed, not had


class Failed(Exception):
    """One line: what went wrong."""


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in STACKS]:
        print(f"test-matrix: no stack {unknown[0]}; there are {', '.join(STACKS)}", file=sys.stderr)
        return 2
    PLACE.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names or STACKS:
        print(f"test-matrix: {name}", flush=True)
        rows.append(tried(name, STACKS[name]))
    print(table(rows))
    statuses = {row.status for row in rows}
    return 1 if "failed" in statuses else 2 if "not had" in statuses else 0


def tried(name: str, stack: Stack) -> Row:
    row, start = Row(name, stack.python), time.monotonic()
    python = interpreter(stack.python)
    if python is None:
        row.kernels, row.status = f"not had: no python{stack.python}, name it in {variable(stack.python)}", "not had"
        return row
    log = PLACE / f"{name}.log"
    log.unlink(missing_ok=True)
    try:
        mine = made(python, PLACE / name, stack, log)
        found = versions(mine, log)
        row.python, row.torch, row.triton, row.numpy = found["python"], *(found[package] for package in SHOWN)
        row.kernels, is_good = kernels_tests(mine, PLACE / name, log)
        row.training, has_learnt = training(mine, PLACE / name, log)
        row.status = "passed" if is_good and has_learnt else "failed"
    except Failed as error:
        row.kernels = row.kernels or str(error)
    row.seconds = f"{time.monotonic() - start:.0f}"
    return row


def variable(version: str) -> str:
    return f"PYTHON{version.replace('.', '_')}"


def interpreter(version: str) -> str | None:
    """An interpreter of ``version`` that runs and is of it: a version manager's shim may be on PATH and do neither."""
    named = os.environ.get(variable(version)) or f"python{version}"
    if (path := shutil.which(named)) is None:
        return None
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    answer = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    return path if answer.stdout.strip() == version else None


def made(python: str, folder: Path, stack: Stack, log: Path) -> str:
    """The interpreter of an environment in ``folder`` that holds fastlg and what its kernels' tests need."""
    mine = folder / "bin" / "python"
    if not mine.exists() and run([python, "-m", "venv", "--clear", str(folder)], log) != 0:
        raise Failed(f"no environment could be made: {last_line(log)}")
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{pin}\n" for pin in stack.pins))
    wanted = ["--upgrade", "--upgrade-strategy", "eager", "--constraint", str(pins), "-e", f"{ROOT}[{EXTRAS}]"]
    if run([str(mine), "-m", "pip", "install", "--quiet", *wanted, *test_tools()], log) != 0:
        raise Failed(f"set-up failed: {last_line(log)}")
    return str(mine)


def test_tools() -> list[str]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        needs = tomllib.load(file)["project"]["optional-dependencies"]["dev"]
    return [need for need in needs if not need.startswith(HEAVY)]


def versions(python: str, log: Path) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json, platform; found = {'python': platform.python_version()}\n"
        f"found.update({{name: m.version(name) for name in {SHOWN}}}); print(json.dumps(found))"
    )
    if run([python, "-c", code], log) != 0:
        raise Failed(f"set-up failed: {last_line(log)}")
    return json.loads(last_line(log))


def kernels_tests(python: str, folder: Path, log: Path) -> tuple[str, bool]:
    report = folder / "tests.xml"
    report.unlink(missing_ok=True)
    command = [
        "-m",
        "pytest",
        "-q",
        "-n",
        "auto",
        "--maxprocesses",
        "4",
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",
        "-p",
        "no:cacheprovider",
    ]
    status = run([python, *command, f"--junitxml={report}", str(ROOT / "tests" / "kernels")], log)
    if not report.is_file():
        raise Failed(f"the tests did not run: {last_line(log)}")
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        for key in counts:
            counts[key] += int(suite.get(key, 0))
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    text = f"{passed} passed, {failed} failed, {counts['skipped']} skipped"
    return text, status == 0 and passed > 0 and failed == 0


def training(python: str, folder: Path, log: Path) -> tuple[str, bool]:
    """Teacher and guided student on 4,000 digits, from nothing; its top-1."""
    shutil.rmtree(folder / "trained", ignore_errors=True)
    place = {"FASTLG_CACHE": str(folder / "trained" / "cache")}
    overrides = (*TRAINING, f"run.root={folder / 'trained'}", "run.name=matrix")
    if run([python, "-m", "fastlg", "train", "quickstart", *overrides], log, place) != 0:
        return f"failed: {last_line(log)}", False
    top1 = json.loads((folder / "trained" / "matrix" / "summary.json").read_text())["top1_last"]
    return f"top-1 {top1:.2f} %", top1 > 3 * CHANCE


def run(command: list[str], log: Path, variables: dict[str, str] | None = None) -> int:
    """Exit status of ``command``, with the packages of its environment alone; its output goes to ``log``."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment.update({"OMP_NUM_THREADS": "1", **(variables or {})})
    with open(log, "a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        return subprocess.run(command, env=environment, cwd=ROOT, stdout=file, stderr=file, check=False).returncode


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1]


def table(rows: list[Row]) -> str:
    heads = [field.name for field in fields(Row)]
    lines = [heads, *([getattr(row, head) for head in heads] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
