"""Every loader on made images of 32 px, with and without augmentation: rows of loader_rates.py for ``fastlg bench``.

It runs as a process of its own, on a folder of the layout that it expects; by itself it measures more cases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.bench import Bench
from benchmarks.harness.images import make_source

SCRIPT = Path(__file__).with_name("loader_rates.py")
OWN = ("workers", "augment", "images_per_core_s", "core_ratio")  # what its rows have and others have not


def rows(bench: Bench) -> None:
    count = 8192 if bench.gpu else 384
    if not bench.fits(f"{count} images", 15):
        return
    data = bench.folder / "loading" / "data"
    make_source(data / "cifar100-mini", count)
    out = bench.folder / "loading" / "rows.json"
    workers = len(os.sched_getaffinity(0)) if bench.gpu else 1
    command = [sys.executable, str(SCRIPT), "--shared", str(data.parent), "--cases", "cifar100", "--json", str(out)]
    command += ["--workers", str(workers), "--repeats", "2", "--device", bench.device.type]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=bench.left() + 20)
    except subprocess.TimeoutExpired:
        bench.left_out.append("loaders (out of time)")
        return
    if answer.returncode:
        raise RuntimeError(f"loader_rates.py failed: {answer.stderr.strip().splitlines()[-1]}")
    bench.left_out += [f"loaders: {line}" for line in answer.stdout.splitlines() if line.startswith("skipped")]
    found = json.loads(out.read_text(encoding="utf-8"))
    for row in found:
        base = next(other for other in found if other["augment"] == row["augment"])
        bench.add(
            "32 px, cut and resized" if row["augment"] == "none" else "32 px, with augmentation",
            row["provider"],
            [row["images"] / row["images_per_s"]],
            images=row["images"],
            base=[base["images"] / base["images_per_s"]],
            peak_mib=row["memory_mib"],
            measured=(row["spread"], 2),
            **{name: row[name] for name in OWN if name in row},
        )
