"""Bytes that changed while size and time did not are found in the first epoch; the check ends with the run."""

from __future__ import annotations

import os
import threading
from hashlib import sha256
from pathlib import Path

import pytest
from refusals import refused

from fastlg.errors import UserError
from fastlg.files.verify import BLOCK, Digested, Verification

ONE = ("train", "student.yaml", "optim.epochs=1")


def rot(path: Path, at: int) -> None:
    """One bit, without a trace in size and time."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "fastlg-verify"]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_rotten_pixels_stop_the_run_before_its_first_checkpoint(project, fastlg, image_folder, split, place):
    assert fastlg("prepare", image_folder, "store")[0] == 0
    pixels = project / "store" / split / "pixels.bin"
    rot(pixels, 0 if place == "first" else pixels.stat().st_size - 1)
    result = fastlg(*ONE, "data.source=store", "teacher=null")
    refused(result, "store", f"{split}/pixels.bin was altered between bytes 0 and", "prepare it again")
    assert not (project / "runs" / "student" / "checkpoints").exists()
    assert not threads()


def test_rotten_features_stop_the_run(project, fastlg):
    fixed = ["augment.rand_augment=null", "augment.erase=0", "teacher.mode=auto", "teacher.cache=features"]
    assert fastlg("cache", "student.yaml", *fixed)[0] == 0
    rot(project / "features" / "logits.bin", 5)
    refused(fastlg(*ONE, *fixed), "features", "logits.bin was altered", "fastlg cache")
    assert not (project / "runs" / "student" / "checkpoints").exists()


def test_whole_files_are_read_once_and_the_thread_ends_with_the_run(project, fastlg, image_folder, monkeypatch):
    read = []
    find_damage = Digested.find_damage
    monkeypatch.setattr(
        Digested, "find_damage", lambda own, stopped: read.append(own.file) or find_damage(own, stopped)
    )
    assert fastlg("prepare", image_folder, "store")[0] == 0
    for name in ("one", "two"):
        assert fastlg(*ONE, "data.source=store", "teacher=null", f"run.name={name}")[0] == 0
    assert [path.parent.name for path in read] == ["train", "test"]
    assert not threads()


def digested(path: Path, data: bytes, *sizes: int) -> Digested:
    path.write_bytes(data)
    parts, start = [], 0
    for size in sizes:
        parts.append((size, sha256(data[start : start + size]).hexdigest()))
        start += size
    return Digested(path, parts, lambda reason: UserError(f"broken: {reason}"))


SIZES = (3, BLOCK, 2 * BLOCK + 7)


@pytest.mark.parametrize("at", [0, 2, 3, BLOCK + 2, BLOCK + 3, 2 * BLOCK + 3, sum(SIZES) - 1])
def test_any_altered_byte_is_found_and_its_part_named(tmp_path, at):
    file = digested(tmp_path / "pixels", os.urandom(sum(SIZES)), *SIZES)
    Verification([file]).wait()
    rot(file.file, at)
    Verification._whole.clear()
    part = next(index for index in range(3) if at < sum(SIZES[: index + 1]))
    start, end = sum(SIZES[:part]), sum(SIZES[: part + 1])
    with pytest.raises(UserError, match=f"broken: pixels was altered between bytes {start} and {end}"):
        Verification([file]).wait()


def test_a_file_cut_short_or_gone_is_an_error_and_no_crash(tmp_path):
    file = digested(tmp_path / "pixels", b"x" * 1000, 1000)
    os.truncate(file.file, 999)
    with pytest.raises(UserError, match="cut short"):
        Verification([file]).wait()
    file.file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        Verification([file]).wait()


def test_it_can_be_given_up_and_waiting_for_it_can_be_hurried(tmp_path):
    file = digested(tmp_path / "fifo", b"", 10)
    file.file.unlink()
    os.mkfifo(file.file)  # stands for a disk that does not answer
    verification = Verification([file])
    verification.poll()
    verification.wait(lambda: True)
    os.close(os.open(file.file, os.O_WRONLY))  # it answers: nothing
    verification.close()
    assert not threads()
