"""The GPU script rehearsed on a CPU: rows are there at once, a time-out loses none, and they become one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_images import write_images
from patience import HANG_S, wait_until

from benchmarks import gpu_stages
from benchmarks.harness import collect, report

ROOT = Path(__file__).resolve().parent.parent

TINY_RUN = (
    "optim.epochs=2", "optim.warmup_epochs=1", "optim.global_batch_size=16", "log.tensorboard=false", "data.workers=0",
    "teacher.overrides.optim.epochs=1", "teacher.overrides.optim.global_batch_size=16",
)  # fmt: skip


def stages_of(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess, list[dict]]:
    """scripts/gpu.sh on a CPU: the process, and rows.jsonl."""
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(folder / "out"), "OMP_NUM_THREADS": "1"}
    environment["FASTLG_CACHE"] = str(folder / "cache")
    command = ["bash", str(ROOT / "scripts" / "gpu.sh"), *arguments, "--tiny", "--work", str(folder / "work")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
    rows = [json.loads(line) for line in (folder / "out" / "rows.jsonl").read_text().splitlines()]
    return done, rows


def test_both_commands_come_to_their_end_and_their_results_make_one_file(tmp_path):
    done, rows = stages_of(tmp_path, "first", "--total-s", "1000")
    log = (tmp_path / "out" / "stages.log").read_text()
    assert done.returncode == 0, done.stdout + log
    kinds = {row["extra"].get("kind") for row in rows if row.get("bench") == "first_light"}
    assert kinds == {"agreement", "throughput", "input"}
    assert [row["status"] for row in rows if "stage" in row] == ["done"] * 3
    assert "passed" in log and (tmp_path / "out" / "tests.xml").is_file()
    write_images(tmp_path / "images" / "train", per_class=16, seed=0)
    write_images(tmp_path / "images" / "test", per_class=4, seed=1)
    arguments = ("--recipe", "quickstart", "--source", str(tmp_path / "images"), "--total-s", "1000")
    done, rows = stages_of(tmp_path, "second", *arguments, *TINY_RUN)
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "stages.log").read_text()
    results = collect.collected([tmp_path / "out"], ["made by a test"])
    (tmp_path / "results.json").write_text(json.dumps(results))
    teacher, student = report.load(tmp_path / "results.json")["trained"]
    assert teacher["is_complete"] and student["is_complete"]
    assert [each["epoch"] for each in student["evaluations"]] == [1, 2]
    assert student["evaluations"][-1]["top1"] == student["summary"]["top1_last"]
    assert results["ceilings"]["copy_bytes_per_s"] > 0 and results["left_out"] == []
    text = report.gpu_section(results, "FILE")
    assert "made by a test" in report.markdown(results) and f"{student['summary']['top1_last']:.2f}" in text


def test_a_stage_that_runs_too_long_is_ended_with_all_it_started_and_keeps_its_rows(tmp_path):
    script = tmp_path / "stage.py"
    script.write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[1], 'rows.jsonl').write_text('{\"bench\": 1}\\n')\n"
        "pathlib.Path(sys.argv[1], 'child').write_text(str(child.pid))\n"
        "print('measured', flush=True)\n"
        "time.sleep(600)\n"
    )
    stage = gpu_stages.Stage("slow", 5, [sys.executable, str(script), str(tmp_path)])
    status, seconds = gpu_stages.run(stage, 5, tmp_path)
    gpu_stages.record(tmp_path, stage, status, seconds)
    assert status == "cut short"
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert lines[0] == {"bench": 1} and lines[1]["stage"] == "slow" and lines[1]["status"] == "cut short"
    assert "measured" in (tmp_path / "stages.log").read_text()
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not is_running(child))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_stage_begins_without_time_and_that_is_said(tmp_path):
    done, rows = stages_of(tmp_path, "first", "--total-s", "1")
    assert done.returncode == 1 and "not done: first_light, tests, parts" in done.stdout
    assert {row["status"] for row in rows} == {"not begun: out of time"}


def test_stages_are_chosen_by_name(tmp_path):
    with pytest.raises(SystemExit, match="no stage nothing; there are first_light, tests, parts"):
        gpu_stages.chosen(
            [gpu_stages.Stage(name, 1, []) for name in ("first_light", "tests", "parts")],
            gpu_stages.argparse.Namespace(only="nothing"),
        )
