"""``fastlg bench``: hands over to benchmarks/run.py of the source checkout, which an installed wheel does not hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fastlg.errors import UserError


def run_benchmarks(arguments: list[str], *results: Path) -> int:
    """Runs benchmarks/run.py with this interpreter and returns its exit status.

    Raises UserError outside a checkout, and for ``results`` among the arguments that are not there.
    """
    for path in results:
        if not path.is_file():
            raise UserError(f"there are no results in {path}; benchmarks/results/ holds those that were measured")
    root = Path(__file__).resolve().parents[2]
    script = root / "benchmarks" / "run.py"
    # site-packages may hold somebody else's folder "benchmarks"; only a checkout has this setup.py beside it
    if not script.is_file() or not (root / "kernels" / "torch-ext").is_dir():
        raise UserError(
            f"the benchmarks are not part of the installed package in {root}; clone fastlg's repository and run "
            "`make bench` there"
        )
    return subprocess.run([sys.executable, str(script), *arguments]).returncode
