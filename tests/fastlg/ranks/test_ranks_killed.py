"""Nothing is lost when one of many ranks dies, hangs, fails or is told to leave. These tests really kill processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from functools import partial

import pytest
from patience import wait_until
from rank_processes import (
    Fate,
    Ranks,
    children,
    free_port,
    is_running,
    of_rank,
    train_in_turn,
)
from resuming import assert_same_run, finish, rows, wait_for_rows
from tiny_project import write_project

from fastlg.errors import printable
from fastlg.run.checkpoint import load_checkpoint

OVERRIDES = (
    "engine.device=cpu",
    "optim.epochs=2",
    "optim.global_batch_size=8",
    "optim.warmup_epochs=0",
    "log.checkpoint_steps=2",
    "log.every_steps=1",
)
TRAIN = ("train", "student.yaml", *OVERRIDES)
TWO = ("--gpus", "2")
STEPS = 18  # two epochs of 78 images in batches of 8


@pytest.fixture(scope="module")
def project(tmp_path_factory, image_folder):
    folder = tmp_path_factory.mktemp("ranks")
    write_project(folder, image_folder)
    return folder


@pytest.fixture(scope="module")
def start(project, tmp_path_factory):
    with Ranks(project, tmp_path_factory.mktemp("prints")) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def whole(project, start):
    """Run folder of two ranks that nobody disturbed; they also made the store and the teacher, from nothing."""
    status, out, err = start.one(*TRAIN, *TWO, "run.name=whole").finish()
    assert status == 0, err
    assert out.count("preparing") == 1 and out.count("done  ") == 1  # one rank speaks
    return project / "runs" / "whole"


@pytest.fixture(scope="module", autouse=True)
def hung(start, whole):
    """Two runs, each with a rank that stops for good; other tests go on while theirs wait 20 s for them in vain."""
    return [
        start.one(*TRAIN, *TWO, f"run.name=hung{rank}", "engine.timeout_s=20", fate=Fate(rank, 4, signal.SIGSTOP))
        for rank in (0, 1)
    ]


def ends_with_one_line(process, status: int, *parts: str) -> None:
    code, out, err = process.finish()
    assert code == status, (code, out, err)
    assert err.startswith("fastlg: ") and err.count("\n") == 1 and all(part in err for part in parts), err


def goes_on_to_the_same_bits(start, whole, name: str) -> None:
    status, out, err = start.one(*TRAIN, *TWO, f"run.name={name}").finish()
    assert status == 0 and out.count("resumed") == 1, (out, err)
    assert_same_run(whole, whole.parent / name)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_and_the_run_goes_on_from_its_checkpoint(start, whole, rank):
    name, fate = f"killed{rank}", Fate(rank, step=5, what=signal.SIGKILL)
    process = start.one(*TRAIN, *TWO, f"run.name={name}", fate=fate)
    ends_with_one_line(process, 1, f"rank {rank} no longer answers, so rank {1 - rank} of 2 stops")
    assert process.output()[0].count(f"rank {rank} was ended by SIGKILL") == 1
    goes_on_to_the_same_bits(start, whole, name)


def test_a_rank_killed_below_gpus_2_goes_on_below_the_deepspeed_launcher(start, whole, project):
    pytest.importorskip("deepspeed", reason="pip install 'fastlg[deepspeed]'")
    process = start.one(*TRAIN, *TWO, "run.name=launched", fate=Fate(1, step=5, what=signal.SIGKILL))
    ends_with_one_line(process, 1, "rank 1 no longer answers")
    launcher = ("-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", str(free_port()))
    process = start.real(*launcher, "--module", "fastlg", *TRAIN, "run.name=launched", DS_ACCELERATOR="cpu")
    status, out, err = finish(process)
    assert status == 0 and out.count("resumed") == 1, (out, err)
    assert_same_run(whole, project / "runs" / "launched")


def test_a_rank_killed_below_torchrun_goes_on_on_two_nodes_of_torchrun(start, whole, project):
    run, torchrun = project / "runs" / "nodes", ("-m", "torch.distributed.run")
    command = ("-m", "fastlg", *TRAIN, "run.name=nodes")
    process = start.real(*torchrun, "--nproc-per-node", "2", "--master-port", str(free_port()), *command)
    wait_for_rows(run, 4, process)
    os.kill(of_rank(0, process), signal.SIGKILL)
    status, out, err = finish(process)
    assert status == 1 and err.count("fastlg: ") == 1 and "fastlg: rank 0 no longer answers" in err, err
    node = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "nodes")
    meeting = ("--rdzv-endpoint", f"127.0.0.1:{free_port()}")
    nodes = [start.real(*torchrun, *node, *meeting, *command) for _ in range(2)]
    ends = [finish(process) for process in nodes]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert sum(out.count("resumed") for _, out, _ in ends) == 1
    assert_same_run(whole, run)


def test_whoever_is_told_to_leave_all_save_at_the_same_step_and_leave(start, whole, project):
    """SIGTERM and SIGUSR1 to the launcher, SIGTERM to one rank alone, the launcher killed: one run, stopped by each."""
    run, seen = project / "runs" / "stopped", 0
    for rank, number, hits_launcher in [
        (0, signal.SIGTERM, True),
        (0, signal.SIGUSR1, True),
        (1, signal.SIGTERM, False),
        (1, signal.SIGKILL, True),
    ]:
        process = start.one(
            *TRAIN, *TWO, "log.checkpoint_steps=0", "run.name=stopped", fate=Fate(rank, 2, number, hits_launcher)
        )
        wait_until(lambda process=process: len(children(process.pid)) == 2 or not process.process.is_alive())
        of_launcher = children(process.pid)
        status, out, err = process.finish()
        assert status == (-signal.SIGKILL if number == signal.SIGKILL else 143), (status, err)
        wait_until(lambda pids=of_launcher: not any(map(is_running, pids)))  # orphans, where the launcher was killed
        assert process.output()[1] == "fastlg: stopped by SIGTERM; the run is saved, the same command goes on\n"
        position = load_checkpoint(run / "checkpoints" / "last.pt")["position"]
        done = position["epoch"] * STEPS // 2 + position["batch"]
        assert seen < done < STEPS
        seen = done
        (run / "checkpoints" / "last.pt.partial").write_bytes(b"cut short by a kill")  # never read
    assert len(rows(run)) > seen // 2
    status, out, err = start.one(*TRAIN, *TWO, "log.checkpoint_steps=0", "run.name=stopped").finish()
    assert status == 0 and out.count("resumed") == 1, err
    assert_same_run(whole, run)


def test_what_goes_wrong_in_one_rank_is_said_once_and_ends_all(start, whole, project):
    """A bad image in either rank, then a disk that is full for rank 0, on the way of one run."""
    run = project / "runs" / "failed"
    for rank in (1, 0):
        process = start.one(*TRAIN, *TWO, "run.name=failed", fate=Fate(rank, 4, "raise"))
        ends_with_one_line(process, 2, "fastlg: image 17 is bad; leave it out\n")
    before = load_checkpoint(run / "checkpoints" / "last.pt")["position"]
    process = start.one(*TRAIN, *TWO, "run.name=failed", fate=Fate(0, 1, "full"))
    ends_with_one_line(process, 1, "cannot save the checkpoint", "the disk is full; the last good one is kept")
    assert load_checkpoint(run / "checkpoints" / "last.pt")["position"] == before
    goes_on_to_the_same_bits(start, whole, "failed")


def test_what_all_ranks_meet_alike_is_said_once(start, whole, project):
    process = start.one(*TRAIN, *TWO, "run.name=whole", "optim.lr=1")
    ends_with_one_line(process, 2, "runs/whole belongs to another config (optim.lr 0.001 -> 1.0)")
    run = project / "runs" / "cut"
    shutil.copytree(whole, run)
    (run / "summary.json").unlink()
    last = run / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    process = start.one(*TRAIN, *TWO, "run.name=cut")
    ends_with_one_line(process, 2, "last.pt cannot be read (truncated or altered")


def test_a_rank_that_hangs_is_named_and_ended(hung):
    for rank, process in enumerate(hung):
        status, _, err = process.finish()
        assert status == 1 and f"rank {rank} no longer answers, so rank {1 - rank} of 2 stops" in err, err
        assert not children(process.pid)


def test_nobody_at_the_rendezvous_is_one_line_with_the_address(start, whole):
    """One of them in a process of its own, whose stderr torch would fill with stack frames."""
    with socket.socket() as mute:  # somebody else's server, which waits for its client to speak
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        ports = [str(free_port()) for _ in range(5)]  # each its own: at one port, rank 0 may meet a rank 1 that is slow
        ports.append(str(mute.getsockname()[1]))
        hosts = ("127.0.0.1", "nobody.invalid", "127.0.0.1", "no\x1bbody", "127.0.0.1", "127.0.0.1")
        lone = []
        for host, port, rank, local in zip(hosts, ports, (1, 1, 0, 0, 1, 1), (0, 0, 0, 0, 1, 0), strict=True):
            place = {"WORLD_SIZE": "2", "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(local)}
            real = partial(start.real, "-m", "fastlg") if host == "no\x1bbody" else start.one
            lone.append(real(*TRAIN, "engine.timeout_s=2", **place, MASTER_ADDR=host))
        for process, host, port in zip(lone, hosts, ports, strict=True):
            status, _, err = process.finish() if hasattr(process, "finish") else finish(process)
            assert status == 1 and err.count("\n") == 1, err
            assert (
                f"met nobody at {printable(host)}:{port} within 2 s" in err and "check MASTER_ADDR, MASTER_PORT" in err
            )


def test_srun_s_environment_makes_the_same_run(start, whole):
    job = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1"}
    port = str(free_port())
    ranks = [
        start.one(*TRAIN, "run.name=srun", SLURM_PROCID=str(r), SLURM_LOCALID=str(r), MASTER_PORT=port, **job)
        for r in (0, 1)
    ]
    assert [process.finish()[0] for process in ranks] == [0, 0], ranks[0].output()
    assert_same_run(whole, whole.parent / "srun")


EXACT = [*OVERRIDES, "model.drop_path=0", "optim.lr=2e-4", "optim.global_batch_size=16", "log.checkpoint_steps=0"]
ENGINES = {
    "plain": [],
    **{f"zero{stage}": ["engine.kind=deepspeed", f"engine.zero_stage={stage}"] for stage in range(4)},
}


@pytest.fixture(scope="module")
def crossed(project, start, whole):
    """Runs of one process and of two ranks by each engine: undisturbed, and stopped in the first epoch by one of them
    and resumed by the other. Run folders by (who began, who ended)."""
    pytest.importorskip("deepspeed", reason="pip install 'fastlg[deepspeed]'")
    runs = project / "runs"

    def turns(*which) -> list:
        return [([*EXACT, *ENGINES[engine], f"run.name={name}"], steps) for engine, name, steps in which]

    def all_end_well(processes) -> None:
        assert [process.finish()[0] for process in processes] == [0] * len(processes), processes[0].output()

    all_end_well([start.call(partial(train_in_turn, turns(("plain", "one", None), ("plain", "half-one", 2))))])
    for engine in ENGINES:
        shutil.copytree(runs / "half-one", runs / f"one-{engine}")
    began = [(engine, f"{engine}-one", 2) for engine in ENGINES]
    ended = [(engine, f"one-{engine}", None) for engine in ENGINES]
    all_end_well(start.call_in_all(partial(train_in_turn, turns(("plain", "two", None), *began, *ended))))
    halves = [load_checkpoint(runs / name / "checkpoints" / "last.pt")["position"]["batch"] for _, name, _ in began]
    assert halves == [3] * len(ENGINES)  # of 4: the ranks agree a step later
    all_end_well([start.call(partial(train_in_turn, turns(*(("plain", name, None) for _, name, _ in began))))])
    return runs


def assert_equal_runs(one, other, tolerance: float = 2e-5) -> None:
    """``tolerance`` of the reported numbers; weights lie within 2e-5, moments within 1e-3 of their size.

    One weight in a thousand is let off: AdamW divides by the gradient's own size, which for a few is rounding alone.
    """
    for first, second in zip(rows(one), rows(other), strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert second[key] == (value if isinstance(value, str) else pytest.approx(value, rel=tolerance)), (
                key,
                first,
            )
    first, second = (load_checkpoint(folder / "checkpoints" / "last.pt") for folder in (one, other))
    for name, value in first["unit"].items():
        beyond = (second["unit"][name].double() - value.double()).abs() > 2e-5 * (1 + value.abs())
        assert beyond.sum() <= 1e-3 * value.numel(), name
    for name, moments in first["engine"]["optimizer"].items():
        found = second["engine"]["optimizer"][name]
        assert found["step"] == moments["step"]
        for moment, value in moments.items():
            assert float((found[moment].reshape(value.shape) - value).norm()) <= 1e-3 * float(value.norm()), (
                name,
                moment,
            )


def test_two_ranks_count_every_image_once_and_report_what_one_process_reports(crossed):
    assert [row["count"] for row in rows(crossed / "two") if row["kind"] == "eval"] == [33, 33]  # odd
    assert_equal_runs(crossed / "one", crossed / "two", 1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_two_ranks_wrote_in_an_epoch_one_process_ends_alike(crossed, engine):
    assert_equal_runs(crossed / "one", crossed / f"{engine}-one")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_one_process_wrote_in_an_epoch_two_ranks_end_alike(crossed, engine):
    assert_equal_runs(crossed / "one", crossed / f"one-{engine}")
