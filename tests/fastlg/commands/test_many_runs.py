"""Many runs in processes of their own: killed, resumed, side by side, one of them failing; nothing is trained twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from refusals import refused
from resuming import assert_same_run, finish, wait_for_rows
from tiny_project import STUDENT

from fastlg.commands.many.pool import Pool
from fastlg.commands.many.rows import Row, plan, singles_of
from fastlg.config import load_config

TINY = ("data.workers=0", "log.tensorboard=false", "engine.device=cpu", "optim.global_batch_size=16")
SMALL = (  # a row of the paper's tables as small as the tiny project's student
    *TINY,
    "model.image_size=32",
    "model.blocks=[0,1,2]",
    f"model.args={json.dumps(STUDENT['model']['args'])}",
    "optim.epochs=1",
    "teacher.overrides={model.name: resnet20, model.image_size: 16, optim.epochs: 1, optim.global_batch_size: 16}",
)


def test_one_that_fails_stops_no_other_and_the_table_says_why(project, fastlg, forked_runs):
    arguments = ("sweep", "student.yaml", "model.args.depth=2,3", "teacher.overrides.optim.epochs=1", "--jobs", "2")
    refused(fastlg(*arguments), "1 of 2 runs failed", "model.args.depth=2", "no block 2", status=1)
    (group,) = project.glob("runs/student-sweep-*")
    bad, good = json.loads((group / "model.args.depth.json").read_text())["rows"]
    assert bad["runs"][0]["state"] == "failed" and "no block 2" in bad["runs"][0]["why"] and bad["top1_last"] is None
    summary = json.loads((group / "model.args.depth=3" / "seed3" / "summary.json").read_text())
    assert good["top1_last"]["values"] == [summary["top1_last"]] and summary["epochs"] == 2
    markdown = (group / "model.args.depth.md").read_text()
    assert "| 2 | - | - | 0 of 1 |" in markdown and "no block 2" in markdown
    logs = {path.name: path.read_text() for path in (group / "logs").iterdir()}
    assert len(logs) == 2 and sum("no block 2" in text for text in logs.values()) == 1


def test_killed_in_the_middle_it_goes_on_to_the_bits_of_runs_that_were_not(project, fastlg, forked_runs):
    shared = ("teacher=null", "optim.epochs=10", "run.name=group")
    command = [sys.executable, "-m", "fastlg", "sweep", "student.yaml", "optim.lr=1e-3,2e-3", *shared]
    first, second = (project / "runs" / "group" / f"optim.lr={rate}" / "seed3" for rate in ("1e-3", "2e-3"))
    for number, stop in (("TERM", signal.SIGTERM), ("KILL", signal.SIGKILL)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for_rows(first, 4 if number == "TERM" else 16, process)
        os.kill(process.pid, stop)
        status, out, err = finish(process)
        assert not (first / "summary.json").exists() and not second.exists()
        if number == "TERM":
            assert status == 143 and "stopped by SIGTERM" in err and "Traceback" not in err
            (row, other) = json.loads((project / "runs" / "group" / "optim.lr.json").read_text())["rows"]
            assert (row["runs"][0]["state"], other["runs"][0]["state"]) == ("stopped", "waiting")
    # What the killed process left behind stops by itself: the next one waits for the run's lock.
    status, out, err = fastlg("sweep", "student.yaml", "optim.lr=1e-3,2e-3", *shared)
    assert status == 0 and "resumed" in out, err
    for rate, folder in (("1e-3", first), ("2e-3", second)):
        alone = ("teacher=null", "optim.epochs=10", f"optim.lr={rate}", f"run.name=alone{rate}")
        assert fastlg("train", "student.yaml", *alone)[0] == 0
        assert_same_run(folder, project / "runs" / f"alone{rate}")
    before = {path: path.stat().st_mtime_ns for path in (first, second)}
    status, out, _ = fastlg("sweep", "student.yaml", "optim.lr=1e-3,2e-3", *shared)
    assert status == 0 and "epoch" not in out.split("last epoch")[0], "what is complete is not trained again"
    assert before == {path: path.stat().st_mtime_ns for path in (first, second)}


def test_no_two_runs_have_one_gpu_at_the_same_time(project, tmp_path, monkeypatch):
    """Told by a program in the place of Python, which takes what it is given to be its own."""
    seen = tmp_path / "seen"
    seen.mkdir()
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/sh\ncd {seen}\nmkdir $CUDA_VISIBLE_DEVICES.now || touch clash\nsleep 0.2\n"
        "rmdir $CUDA_VISIBLE_DEVICES.now\necho $CUDA_VISIBLE_DEVICES $RANK $* >> runs\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("RANK", "5")
    config = load_config("student.yaml")
    rows = [Row({"row": str(n)}, "student.yaml", (), config.replace({"optim.lr": n + 1.0}), str(n)) for n in range(7)]
    singles = singles_of(plan(rows, [3], "group"))
    ended = []
    pool = Pool([{"CUDA_VISIBLE_DEVICES": name} for name in ("GPU-a", "MIG-b")], tmp_path / "logs")
    pool.run(singles, lambda: ended.append([single.state for single in singles].count("failed")))
    told = [line.split(" ", 1) for line in (seen / "runs").read_text().splitlines()]
    assert not (seen / "clash").exists() and {name for name, _ in told} == {"GPU-a", "MIG-b"}
    commands = [f"-m fastlg train student.yaml run.seed=3 run.name=group/{n}/seed3" for n in range(7)]
    assert sorted(command.strip() for _, command in told) == commands, "each once, and none is a rank of this process"
    assert ended == list(range(1, 8)) and all(single.why for single in singles)


def content(project, pattern: str) -> dict:
    (path,) = project.glob(f"runs/group/{pattern}")
    return json.loads(path.read_text())


def test_rows_of_a_table_share_their_teacher_which_is_a_row_itself(project, fastlg, forked_runs, image_folder):
    images = f"data.source={image_folder}"
    table = ("reproduce", "table2", images, *SMALL, "run.name=group")
    status, out, err = fastlg(*table, "--rows", "CIFAR-100: DeiT-Ti, guided")
    assert status == 0, (out, err)
    (teacher,) = (project / "runs" / "teachers").iterdir()
    top1 = json.loads((teacher / "summary.json").read_text())["top1_last"]
    run = project / "runs" / "group" / "cifar100" / "deit_tiny" / "seed1"
    guided, teachers = "table2-*guided-*.json", "table2-*ResNet-56-*.json"
    (row,) = content(project, guided)["rows"]
    assert (row["row"], row["paper"]) == ("CIFAR-100: DeiT-Ti, guided", 78.15)
    assert row["top1_last"]["mean"] == json.loads((run / "summary.json").read_text())["top1_last"]

    status, out, err = fastlg(*table, "--rows", "CIFAR-100: ResNet-56")
    assert status == 0 and list((project / "runs" / "teachers").iterdir()) == [teacher], (out, err)
    (row,) = content(project, teachers)["rows"]
    assert row["paper"] == 70.43 and row["top1_last"]["mean"] == top1 and row["runs"][0]["run"].endswith(teacher.name)


def test_compare_over_seeds_is_one_table_of_both(project, fastlg):
    status, out, err = fastlg("compare", "student.yaml", "run.name=both", "--seeds", "2", "--dry-run")
    assert status == 0, (out, err)
    runs = [line.split(":")[0].strip() for line in out.splitlines() if "to train" in line]
    assert runs == [f"{part}, seed {seed}" for part in ("unguided", "guided") for seed in (3, 4)]
    assert "4 runs, 8 epochs left; 2 teachers, 2 epochs" in out and out.count("for 1 of the runs") == 2
