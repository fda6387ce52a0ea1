"""Two commands never train in one run folder at once, and nothing that a killed one leaves blocks the next."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest
from patience import wait_until
from rank_processes import Fate, Ranks, counting_command_line, patient_command_line
from resuming import assert_same_run, wait_for_rows
from tiny_project import write_project

from fastlg.errors import UserError
from fastlg.run import lock as module
from fastlg.run.lock import LOCK, run_lock

TRAIN = (
    "train",
    "student.yaml",
    "engine.device=cpu",
    "optim.epochs=1",
    "optim.global_batch_size=8",
    "log.checkpoint_steps=2",
    "log.every_steps=1",
)
ALONE = (*TRAIN, "teacher=null")
TWO = ("--gpus", "2")
HERE = socket.gethostname()


@pytest.fixture
def project(tmp_path, image_folder):
    write_project(tmp_path, image_folder)
    return tmp_path


@pytest.fixture
def start(project, tmp_path_factory):
    with Ranks(project, tmp_path_factory.mktemp("prints")) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def whole(image_folder, tmp_path_factory):
    """The run of ``ALONE`` that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write_project(folder, image_folder)
    with Ranks(folder, tmp_path_factory.mktemp("prints")) as ranks:
        assert ranks.one(*ALONE, "run.name=whole").finish()[0] == 0
    return folder / "runs" / "whole"


def halted(start, *arguments: str, step: int):
    """A command that has stopped itself (SIGSTOP) in the middle of its ``step``-th update."""
    process = start.one(*arguments, fate=Fate(0, step, signal.SIGSTOP), RANK="0")
    state = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: state.read_text().rsplit(")", 1)[1].split()[0] == "T", process.process.is_alive)
    assert process.process.is_alive(), process.output()
    return process


def wait_for_word(word: str, process) -> None:
    out = process.prints / "out"
    wait_until(lambda: out.is_file() and word in out.read_text(), process.process.is_alive)


def refused(process, folder: str, holder) -> None:
    status, out, err = process.finish()
    assert status == 2 and err.count("\n") == 1, (status, out, err)
    assert err.startswith(f"fastlg: {folder} is being trained by process {holder.pid} on {HERE}; "), err
    assert "wait for it or stop it" in err and "run.name" in err and out.count("waiting  ") == 1


def test_the_second_command_is_refused_by_name_and_the_first_ends_in_the_same_bits(start, project, whole):
    first = halted(start, *ALONE, "run.name=held", step=5)
    for second in [start.one(*ALONE, *launcher, "run.name=held") for launcher in ((), TWO)]:
        refused(second, "runs/held", first)
    os.kill(first.pid, signal.SIGCONT)
    assert first.finish()[0] == 0, first.output()
    assert_same_run(whole, project / "runs" / "held")
    assert not (project / "runs" / "held" / LOCK).exists()


def test_a_killed_command_blocks_no_resume_though_its_data_workers_still_live(start, project, whole):
    workers = ("data.loader=torch", "data.workers=2")
    killed = start.real("-m", "fastlg", *ALONE, *workers, "run.name=killed")
    wait_for_rows(project / "runs" / "killed", 3, killed)
    killed.kill()
    killed.wait()
    assert (project / "runs" / "killed" / LOCK).read_text() == f"{killed.pid} {HERE}\n"
    status, out, err = start.one(*ALONE, "run.name=killed").finish()
    assert status == 0 and "resumed" in out, (out, err)
    assert_same_run(whole, project / "runs" / "killed")


def test_ranks_that_outlive_their_killed_launcher_do_not_refuse_the_next_command(start, project):
    command = (*ALONE, "run.name=orphans", *TWO)
    first = start.one(*command)
    lock = project / "runs" / "orphans" / LOCK
    wait_until(lock.is_file, first.process.is_alive)
    os.kill(first.pid, signal.SIGKILL)
    status, out, err = start.call(partial(patient_command_line, command)).finish()
    assert status == 0, (out, err)


def test_who_needs_a_teacher_that_another_command_trains_waits_for_it_with_one_line(start, project):
    first = halted(start, *TRAIN, "run.name=a", step=2)  # in the teacher
    second = start.call(partial(counting_command_line, (*TRAIN, *TWO, "run.name=b")))
    wait_for_word("waiting", second)
    counts = [project / f"exchanges.{rank}" for rank in (0, 1)]
    before = [count.stat().st_size for count in counts]
    for count, size in zip(counts, before, strict=True):  # ranks that wait meet all the time: no exchange lasts long
        wait_until(lambda count=count, size=size: count.stat().st_size >= size + 5, second.process.is_alive)
    os.kill(first.pid, signal.SIGCONT)
    assert first.finish()[0] == 0, first.output()
    status, out, err = second.finish()
    assert status == 0, (out, err)
    (teacher,) = (project / "runs" / "teachers").iterdir()
    line = f"waiting  runs/teachers/{teacher.name} is being trained by process {first.pid} on {HERE}; waiting for it\n"
    assert out.count("waiting") == 2 and line in out, out
    assert f"finished runs/teachers/{teacher.name} is complete" in out
    assert [(project / "runs" / name / "summary.json").is_file() for name in "ab"] == [True, True]


def test_who_waits_for_a_teacher_takes_over_when_its_trainer_is_killed(start, project):
    compare = ("compare", *TRAIN[1:])
    first = halted(start, *compare, "run.name=a", step=2)
    late, second = start.one(*compare, "run.name=a"), start.one(*TRAIN, "run.name=b")
    refused(late, "runs/a", first)
    wait_for_word("waiting", second)
    os.kill(first.pid, signal.SIGKILL)
    assert second.finish()[0] == 0, second.output()
    (teacher,) = (project / "runs" / "teachers").iterdir()
    assert (teacher / "summary.json").is_file() and not (teacher / LOCK).exists()
    assert start.one(*compare, "run.name=a").finish()[0] == 0
    assert not (project / "runs" / "a" / LOCK).exists()


def test_a_holder_on_another_host_gets_the_time_of_a_lease_and_is_then_named_with_the_file_to_delete(
    tmp_path, monkeypatch, capfd
):
    """Its node may be gone; until the server of a network file system has noticed, the lock stays."""
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "LEASE_S", 0.1)
    path = tmp_path / LOCK
    with open(path, "w") as other:
        other.write("7 node3\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with (
            pytest.raises(UserError, match=f"process 7 on node3; .*if node3 is down, delete {path}"),
            run_lock(tmp_path),
        ):
            pytest.fail("it was let in")
        assert capfd.readouterr().out.count("waiting for it") == 1 and path.exists()
        path.unlink()
        with run_lock(tmp_path):
            assert path.read_text() == f"{os.getpid()} {HERE}\n"
    monkeypatch.setattr(module, "LEASE_S", 60)
    other = open(path, "w")  # noqa: SIM115
    other.write("7 node3\n")
    other.flush()
    fcntl.flock(other, fcntl.LOCK_EX)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: other.close())  # the server notices meanwhile
    with run_lock(tmp_path):
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said_and_trained_on(tmp_path, monkeypatch, capfd):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", flock)
    with run_lock(tmp_path):
        assert "file system without locks" in capfd.readouterr().out


def test_folders_made_for_nothing_but_the_lock_go_with_it_and_others_stay(tmp_path):
    with run_lock(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "b").mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "b"]
    with run_lock(tmp_path / "runs" / "b"):
        pass
    assert (tmp_path / "runs" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*file/a: Not a directory; choose another run.root"):
        run_lock(tmp_path / "file" / "a").__enter__()


def test_a_folder_that_holds_nothing_but_a_killed_command_s_lock_is_free(project, fastlg, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv("FASTLG_CACHE", str(project / "cache"))
    (project / "runs" / "student").mkdir(parents=True)
    (project / "runs" / "student" / LOCK).write_text("1 nowhere\n")
    status, out, err = fastlg("train", "student.yaml", "teacher=null", "optim.epochs=1")
    assert status == 0, err


def test_a_lock_file_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "thesis.txt").write_text("of years")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(UserError, match="run.name"), run_lock(tmp_path / "run"):
        pytest.fail("it was let in")
    assert (tmp_path / "thesis.txt").read_text() == "of years"
