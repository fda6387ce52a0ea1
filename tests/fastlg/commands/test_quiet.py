"""A run that goes well leaves the error output empty: no library's warning reaches a user's terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from patience import HANG_S
from rank_processes import Ranks

ROOT = Path(__file__).resolve().parents[3]
CPU = "engine.device=cpu"
# One interpreter for many commands: each of a library's warnings is shown where it is met first.
MANY = f"""
import sys
from fastlg.cli import main
for line in sys.argv[1:]:
    sys.argv = ["fastlg", *line.split()]
    try:
        main()
    except SystemExit as leave:
        assert not leave.code, (line, leave.code)
sys.path.insert(0, {str(ROOT)!r})
from benchmarks import run
run.SECONDS["optimizer"] = ({HANG_S},) * 4
sys.argv = ["run.py", "optimizer", "--quick", "--out=results"]
sys.exit(run.main())
"""
ALONE = (
    f"train student.yaml {CPU} run.name=one log.tensorboard=true",
    "export runs/one exported",
    "eval runs/one",
    "analyze runs/one --views",
    f"compare student.yaml {CPU} run.name=both",
    "doctor",
    f"train student.yaml {CPU} run.name=zero1 engine.kind=deepspeed engine.zero_stage=1",
)


def test_commands_that_go_well_print_nothing_to_the_error_output(shared_project, tmp_path, monkeypatch):
    with Ranks(shared_project, tmp_path) as start:
        for variable in ("PYTHONWARNINGS", "TORCH_CPP_LOG_LEVEL"):
            monkeypatch.delenv(variable, raising=False)
        process = start.real("-c", MANY, *ALONE)
        _, err = process.communicate(timeout=HANG_S)
        assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize("engine", [(), ("engine.kind=deepspeed", "engine.zero_stage=3")], ids=["plain", "zero3"])
def test_ranks_that_go_well_print_nothing_to_the_error_output(shared_project, tmp_path, monkeypatch, engine):
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    with Ranks(shared_project, tmp_path) as start:
        process = start.one("train", "student.yaml", CPU, "--gpus", "2", f"run.name=two{len(engine)}", *engine)
        status, _, err = process.finish()
        assert (status, err) == (0, "")
