"""The fused parts of a block under Triton's interpreter, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FILES = (
    "norm/norm_interpreted.py",
    "attention/attention_interpreted.py",
    "mlp/mlp_interpreted.py",
    "fused_step_interpreted.py",
    "adamw/adamw_interpreted.py",
)
POISON = """
import torch
torch.use_deterministic_algorithms(True)
assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
"""


def test_every_kernel_under_tritons_interpreter():
    pytest.importorskip("triton")
    run_tests = f"{POISON}\nimport sys, pytest\nsys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", run_tests, "-q", "-x", "-p", "no:cacheprovider", *(HERE / name for name in FILES)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
