"""Seconds from typing a command to its first training step, in a fresh process: imports, store, model, compiling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # the root, not this folder, whose names could hide installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from benchmarks.harness.bench import Bench
from benchmarks.harness.ours import Ours, config_of
from fastlg.config import load_config, save_config

STEPS = ("imports", "parts", "first step")


def rows(bench: Bench) -> None:
    """The second start finds what the first one compiled, as every later start of a user does."""
    batch = 128 if bench.gpu else 8
    path = bench.folder / "coldstart.yaml"
    save_config(config_of(bench, "deit_tiny", batch), path)
    cases = {"first start": str(bench.folder / "inductor"), "later start": str(bench.folder / "inductor")}
    for provider, cache in cases.items():
        if not bench.fits(provider, 20 if bench.gpu else 6):
            continue
        begun = time.time()
        command = [sys.executable, __file__, str(path)]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        try:
            limit = bench.left() + 60
            answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=limit)
        except subprocess.TimeoutExpired:
            bench.left_out.append(f"coldstart: {provider} (took longer than {limit:.0f} s)")
            return
        times = dict(zip(STEPS, json.loads(answer.stdout.splitlines()[-1]), strict=True))
        ends = [begun, *times.values()]
        parts = {name: round(end - before, 2) for name, before, end in zip(STEPS, ends, ends[1:], strict=False)}
        bench.add("guided DeiT-Ti", provider, [ends[-1] - begun], batch=batch, images=0, seconds=parts)


def start(path: str) -> None:
    """Runs in the fresh process: prints the times at which each of STEPS was done."""
    config = load_config(path)
    imported = time.time()
    ours = Ours(config)
    built = time.time()
    ours.open()
    ours.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(json.dumps([imported, built, time.time()]))


if __name__ == "__main__":
    start(sys.argv[1])
