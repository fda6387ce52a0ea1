"""Kill it anywhere, resume to the same bits. These tests really kill processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from patience import HANG_S, wait_until
from rank_processes import Ranks
from resuming import assert_same_run, finish, wait_for_rows

from fastlg.run.checkpoint import load_checkpoint

STEPS = 19  # an epoch: 78 images in batches of 4, the last partial one dropped


def words_of(name, *overrides):
    return [
        "train",
        "student.yaml",
        f"run.name={name}",
        "optim.epochs=3",
        "optim.global_batch_size=4",
        "log.checkpoint_steps=1",
        "log.every_steps=1",
        *overrides,
    ]


@pytest.fixture(scope="module")
def processes(shared_project, tmp_path_factory):
    with Ranks(shared_project, tmp_path_factory.mktemp("prints")) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def start(processes):
    """Starts a training in a process of its own."""
    return lambda *overrides, name: processes.one(*words_of(name, *overrides))


@pytest.fixture(scope="module")
def uninterrupted(shared_project, start):
    """The run nobody disturbed; its teacher is shared by the others."""
    status, out, err = start(name="whole").finish()
    assert status == 0, err
    return shared_project / "runs" / "whole"


def test_sigkill_at_random_places_and_resume_end_in_the_same_bits(shared_project, start, uninterrupted):
    generator = random.Random(os.environ.get("FASTLG_TEST_SEED", time.time_ns()))
    run = shared_project / "runs" / "killed"
    kills, after = 0, 0
    for _ in range(3):
        process = start(name="killed")
        after += generator.randint(1, 16)
        wait_for_rows(run, after, process)
        time.sleep(generator.random() * 0.02)  # anywhere inside a step or a save
        process.kill()
        status, _, _ = process.finish()
        kills += status == -signal.SIGKILL
    assert kills >= 1
    status, out, err = start(name="killed").finish()
    assert status == 0, err
    assert_same_run(uninterrupted, run)


LEVERS = (
    "optim.schedule=linear",
    "optim.flat=0.5",
    "optim.label_smoothing=0.1",
    "optim.ema=0.9",
    "optim.sam_rho=0.05",
    "augment.flip=alternating",
    "guidance.schedule=cosine",
    "guidance.until=0.8",
    "model.resolution=[[0, 16], [0.5, 32]]",
)


@pytest.mark.parametrize("levers", [(), LEVERS], ids=["muon", "muon and every lever"])
def test_killed_in_its_second_epoch_a_run_resumes_to_the_same_bits(shared_project, start, levers):
    muon = ("optim.name=muon", "optim.clip_norm=1.0", "optim.epochs=2", *levers)
    runs, whole, killed = shared_project / "runs", f"muon{len(levers)}", f"muon{len(levers)}-killed"
    status, _, err = start(*muon, name=whole).finish()
    assert status == 0, err
    process = start(*muon, name=killed)
    wait_for_rows(runs / killed, STEPS + 5, process)
    process.kill()
    assert process.finish()[0] == -signal.SIGKILL
    status, out, err = start(*muon, name=killed).finish()
    assert status == 0 and "resumed" in out, err
    assert_same_run(runs / whole, runs / killed)
    saved = load_checkpoint(runs / whole / "checkpoints" / "last.pt")["engine"]["optimizer"]
    assert {key for own in saved.values() for key in own} == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_saves_leaves_with_its_status_and_the_same_command_goes_on(
    shared_project, start, uninterrupted, number, status
):
    name = f"stopped{number}"
    run = shared_project / "runs" / name
    process = start("log.checkpoint_steps=0", name=name)
    wait_for_rows(run, 3, process)
    process.send_signal(number)
    code, out, err = process.finish()
    assert code == status and err.startswith("fastlg: stopped by"), (code, err)
    position = load_checkpoint(run / "checkpoints" / "last.pt")["position"]
    assert 0 < position["epoch"] * STEPS + position["batch"] < 3 * STEPS
    code, out, err = start("log.checkpoint_steps=0", name=name).finish()
    assert code == 0 and "resumed" in out, err
    assert_same_run(uninterrupted, run)


AT_A_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.parametrize("hang_up", ["SIG_DFL", "SIG_IGN"], ids=["alone", "below nohup"])
def test_a_terminal_that_is_closed_loses_nothing(shared_project, start, uninterrupted, hang_up):
    name, overrides = f"closed-{hang_up}", ("log.checkpoint_steps=0", "data.workers=2")
    run, command = shared_project / "runs" / name, ["-m", "fastlg", *words_of(name, *overrides)]
    terminal, side = os.openpty()
    at_it = [sys.executable, "-c", AT_A_TERMINAL, hang_up, *command]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), side)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FASTLG_CACHE": str(shared_project / "cache")}
    process = subprocess.Popen(at_it, cwd=shared_project, env=environment, **streams, start_new_session=True)
    os.close(side)
    wait_until(lambda: b"epoch 2/" in os.read(terminal, 1 << 16), lambda: process.poll() is None)
    os.close(terminal)
    assert process.wait(HANG_S) == (129 if hang_up == "SIG_DFL" else 0)  # 128 + SIGHUP
    if hang_up == "SIG_DFL":
        position = load_checkpoint(run / "checkpoints" / "last.pt")["position"]
        assert 0 < position["epoch"] * STEPS + position["batch"] < 3 * STEPS
        code, out, err = start("log.checkpoint_steps=0", name=name).finish()
        assert code == 0 and "resumed" in out, err
    assert_same_run(uninterrupted, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_saves_though_workers_hear_it_too(
    shared_project, processes, start, uninterrupted, number
):
    name = f"group{number}"
    run = shared_project / "runs" / name
    command = ("-m", "fastlg", *words_of(name, "data.workers=2"))
    process = processes.real(*command)
    wait_for_rows(run, 3, process)
    os.killpg(process.pid, number)
    code, out, err = finish(process)
    assert code == 128 + number and err.startswith("fastlg: stopped by"), (code, err)
    code, out, err = finish(processes.real(*command)) if number == signal.SIGTERM else start(name=name).finish()
    assert code == 0 and "resumed" in out, err
    assert_same_run(uninterrupted, run)
