"""The augmentation's GPU path without a GPU: interpreted against the torch path, and compiled for two GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def test_the_gpu_path_under_tritons_interpreter_gives_the_torch_paths_pixels():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", HERE / "augment_interpreted.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus_and_keep_everything_in_registers(capability, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    import augment_aot

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for launch in augment_aot.record(monkeypatch, thorough=False) + augment_aot.record_gather(monkeypatch):
        found = augment_aot.usage(launch, capability)
        assert found.stack_bytes == 0 and found.registers <= 168, found
