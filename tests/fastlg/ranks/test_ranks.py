"""Who a process is among many, and the mistakes that are refused before any process has to wait for another."""

from __future__ import annotations

import os

import pytest
import torch

from fastlg.engine.protocol import share_batch
from fastlg.errors import UserError
from fastlg.ranks import launch
from fastlg.ranks import place as places
from fastlg.ranks.launch import check_count
from fastlg.ranks.place import Place, drop_shell, expect_no_tasks, first_host, ignored, is_first_by_environment, place

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29400"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[003-004,7]",
    "SLURM_JOB_ID": "1234567",
}


def test_a_lone_process_needs_no_environment():
    assert place({}) == Place(0, 1, 0, "")


def test_torchrun_and_the_deepspeed_launcher_say_it_by_rank_and_world_size():
    assert place(TORCHRUN) == Place(rank=5, world_size=8, local_rank=1, address="node0:29400")
    bare = {"RANK": "1", "WORLD_SIZE": "2"}  # set by hand
    assert place(bare) == Place(1, 2, 0, "127.0.0.1:29500")


def test_srun_says_it_by_its_step_and_all_tasks_of_a_job_find_the_same_address():
    found = place(SRUN)
    assert found[:3] == (5, 8, 1)
    host, port = found.address.split(":")
    assert host == "gpu003" and 1024 < int(port) < 65536
    assert place({**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).address == found.address
    other = place({**SRUN, "SLURM_JOB_ID": "1234568"}).address
    assert other != found.address  # two jobs may share a node
    named = place({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert named.address == "10.0.0.1:4000"


def test_a_batch_script_itself_and_torchrun_below_srun_are_no_tasks():
    batch = {key: value for key, value in SRUN.items() if not key.startswith("SLURM_STEP")}
    assert place(batch) == Place()
    assert place({**SRUN, **TORCHRUN}) == place(TORCHRUN)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[003-007,9],cpu1", "gpu003"),
        ("gpu[12]", "gpu12"),
        ("a-b-[01,05-09].site", "a-b-01"),
        ("rack1-gpu[0-3]", "rack1-gpu0"),
    ],
)
def test_the_first_host_of_a_slurm_node_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({**TORCHRUN, "RANK": "five"}, "RANK is 'five'"),
        ({**TORCHRUN, "WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({**TORCHRUN, "LOCAL_RANK": "1.0"}, "LOCAL_RANK is '1.0'"),
        ({**TORCHRUN, "MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({**TORCHRUN, "RANK": "8"}, "RANK=8 does not fit WORLD_SIZE=8"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK=-1 does not fit WORLD_SIZE=8"),
        ({**SRUN, "SLURM_PROCID": "9"}, "SLURM_PROCID=9 does not fit SLURM_STEP_NUM_TASKS=8"),
        ({**SRUN, "SLURM_JOB_ID": "x"}, "SLURM_JOB_ID is 'x'"),
        ({**TORCHRUN, "LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 is negative"),
        ({**TORCHRUN, "RANK": "9" * 5000}, f"RANK is '{'9' * 40}'"),
        *(
            ({**TORCHRUN, "MASTER_PORT": port}, f"MASTER_PORT is {port}; a port is 1 to 65535")
            for port in ("0", "-1", "65536", "99999")
        ),
        ({**SRUN, "MASTER_PORT": "70000"}, "MASTER_PORT is 70000"),
    ],
)
def test_a_place_that_cannot_be_is_one_line_with_the_variable(environ, says):
    with pytest.raises(UserError) as error:
        place(environ)
    assert says in str(error.value) and "\n" not in str(error.value)
    is_shared = "MASTER_PORT" in says or "JOB_ID" in says  # all ranks find it: rank 0 speaks
    assert is_first_by_environment(environ) is not is_shared


SHELL = {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "7"}
SALLOC = {**SHELL, "SLURM_STEP_ID": "4294967290"}  # the interactive step
PTY = {**SHELL, "SLURM_PTY_PORT": "40000", "SLURM_PTY_WIN_COL": "80"}  # srun --pty


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, ""),
        ({"RANK": "0"}, ""),
        ({"RANK": "1"}, "RANK=1: without WORLD_SIZE"),
        ({"RANK": "a"}, "RANK=a: without WORLD_SIZE"),
        ({"WORLD_SIZE": "8", "LOCAL_RANK": "3"}, "WORLD_SIZE=8: without RANK"),
        ({"SLURM_PROCID": "1"}, "SLURM_PROCID=1: without SLURM_STEP_ID"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, ""),  # a batch script
        (SALLOC, "SLURM_STEP_NUM_TASKS=4: an interactive shell is one process"),
        (PTY, "SLURM_STEP_NUM_TASKS=4: an interactive shell is one process"),
    ],
)
def test_a_lone_process_is_rank_0_and_says_what_it_ignores(environ, says, monkeypatch):
    monkeypatch.setattr(places, "_is_terminal", lambda descriptor: True)
    assert place(environ) == Place() and is_first_by_environment(environ)
    assert ignored(environ).startswith(says) and bool(ignored(environ)) is bool(says)


def test_a_job_submitted_from_an_interactive_shell_keeps_its_ranks(monkeypatch):
    """It inherits the shell's variables, but no terminal; nor does a task that is not the first belong to a shell."""
    monkeypatch.setattr(places, "_is_terminal", lambda descriptor: False)
    assert place(PTY).world_size == 4 and ignored(PTY) == ""
    monkeypatch.setattr(places, "_is_terminal", lambda descriptor: True)
    assert place({**PTY, "SLURM_PROCID": "3"}).rank == 3


@pytest.mark.parametrize(
    ("environ", "starts"), [({}, True), (PTY, True), (SALLOC, True), (SHELL, False), (TORCHRUN, True)]
)
def test_gpus_starts_ranks_from_a_shell_and_is_refused_among_the_tasks_of_srun(environ, starts, monkeypatch):
    monkeypatch.setattr(places, "_is_terminal", lambda descriptor: False)
    own = dict(environ)
    drop_shell(own)
    if starts:
        expect_no_tasks(own)
        assert place(own) == (place(TORCHRUN) if environ == TORCHRUN else Place())
        return
    with pytest.raises(UserError, match="SLURM_STEP_NUM_TASKS=4: srun has started as many; leave --gpus out"):
        expect_no_tasks(own)


def test_ranks_of_gpus_know_nothing_of_a_torchrun_above_them(monkeypatch):
    """Whose agent would serve the store that they meet at."""
    given = []
    monkeypatch.setattr(launch.subprocess, "Popen", lambda command, *, env, **_: given.append(env))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("KEPT", "1")
    launch.Ranks().start(2, ["train"])
    assert [(env["RANK"], env["KEPT"], "TORCHELASTIC_USE_AGENT_STORE" in env) for env in given] == [
        ("0", "1", False),
        ("1", "1", False),
    ]


@pytest.mark.parametrize(
    ("environ", "status", "says"),
    [
        ({"RANK": "1"}, 0, "ignored  RANK=1: without WORLD_SIZE"),
        ({"SLURM_PROCID": "3"}, 0, "ignored  SLURM_PROCID=3"),
        ({"RANK": "a", "WORLD_SIZE": "2"}, 2, "fastlg: RANK is 'a'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, 2, "fastlg: RANK=2 does not fit WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "99999"}, 2, "fastlg: MASTER_PORT is 99999"),
    ],
)
def test_a_stray_place_trains_aloud_or_is_one_line(project, fastlg, monkeypatch, environ, status, says):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    code, out, err = fastlg("train", "student.yaml", "teacher=null", "optim.epochs=1", "optim.global_batch_size=40")
    assert code == status, (out, err)
    assert says in (err if status else out) and err.count("\n") == (1 if status else 0)
    assert (project / "runs" / "student" / "summary.json").is_file() is (status == 0)


@pytest.mark.parametrize(
    ("size", "ranks", "micro", "expected"),
    [(128, 8, None, (16, 1)), (128, 8, 4, (16, 4)), (6, 2, 8, (3, 1)), (7, 1, None, (7, 1))],
)
def test_a_global_batch_is_shared_equally(size, ranks, micro, expected):
    assert tuple(share_batch(size, ranks, micro)) == expected


@pytest.mark.parametrize(
    ("size", "ranks", "micro", "near"),
    [(100, 8, None, (96, 104)), (3, 8, None, (8,)), (100, 2, 16, (96, 128)), (12, 1, 8, (8, 16))],
)
def test_a_batch_that_cannot_be_shared_is_refused_with_the_nearest_sizes_that_can(size, ranks, micro, near):
    with pytest.raises(UserError) as error:
        share_batch(size, ranks, micro)
    line = str(error.value)
    assert f"optim.global_batch_size {size}" in line and line.endswith(" and ".join(map(str, near)))
    for good in near:
        share = share_batch(good, ranks, micro)
        assert share.per_rank * ranks == good


def test_more_gpus_than_there_are_is_refused_but_cpus_take_any_number_within_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_count(1, "auto")
    check_count(64, "cpu")
    with pytest.raises(UserError, match=r"--gpus is 1000000000, .*at most"):
        check_count(1_000_000_000, "cpu")
    with pytest.raises(UserError, match=r"--gpus is 2, but torch sees 1 GPU; engine\.device=cpu starts 2 processes"):
        check_count(2, "auto")
    with pytest.raises(UserError, match="--gpus is 0; it is at least 1"):
        check_count(0, "cpu")


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@needs_no_gpu
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("--gpus", "2"),
            "fastlg: --gpus is 2, but torch sees 0 GPUs; engine.device=cpu starts 2 processes on the CPU",
        ),
        (("engine.device=cuda",), "fastlg: engine.device is cuda, but torch sees no CUDA device"),
        (("--gpus", "2", "engine.device=cpu", "optim.lr=fast"), "fastlg: override optim.lr=fast: optim.lr is 'fast'"),
    ],
)
def test_missing_gpus_and_a_wrong_config_are_one_line(project, fastlg, arguments, says):
    status, out, err = fastlg("train", "student.yaml", *arguments)
    assert status == 2 and err.startswith(says) and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0), (7, 0)])
def test_what_every_rank_finds_wrong_before_they_meet_rank_0_alone_says(project, fastlg, monkeypatch, rank, lines):
    for name, value in {**TORCHRUN, "RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    assert is_first_by_environment() is (rank == 0)
    status, _, err = fastlg("train", "student.yaml", "optim.lr=fast")
    assert status == 2 and err.count("\n") == lines


def test_a_rank_without_a_gpu_of_its_own_says_so_itself_and_only_the_first_of_them(monkeypatch):
    from fastlg import ranks
    from fastlg.errors import Silenced

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("fastlg.ranks.group._Meeting.has_begun", False)
    for local_rank, kind in ((2, UserError), (3, Silenced)):
        for name, value in {**TORCHRUN, "LOCAL_RANK": str(local_rank)}.items():
            monkeypatch.setitem(os.environ, name, value)
        with pytest.raises(kind) as error, ranks.joined(cuda=True, timeout_s=1):
            pass
        assert kind is Silenced or "rank 5 is process 3 on this host, which has 2 GPUs" in str(error.value)
        assert ranks.has_begun()
