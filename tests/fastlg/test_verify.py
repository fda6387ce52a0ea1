"""Bytes that changed though size and time did not are found beside the first epoch, and nothing of it is saved."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from cache_cases import PLAIN, RUNNING, built, teacher

from fastlg.errors import UserError
from fastlg.verify import BLOCK, Digested, Verification


def rot(path: Path, at: int) -> None:
    """Turns one bit; size and time stay. What this process had found whole is forgotten, as in the next one."""
    Verification._whole.clear()
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def digested(path: Path, sizes: list[int]) -> Digested:
    content, parts, start = path.read_bytes(), [], 0
    for size in sizes:
        parts.append((size, hashlib.sha256(content[start : start + size]).hexdigest()))
        start += size
    return Digested(path, parts, lambda reason: UserError(f"{path}: {reason}"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "many.bin"
    path.write_bytes(os.urandom(2 * BLOCK + 99))
    return path, digested(path, [5, BLOCK + 7, BLOCK + 87])


def outcome(whole: Digested) -> str:
    verification = Verification([whole])
    try:
        verification.wait()
    except UserError as error:
        return str(error)
    finally:
        verification.close()
    return ""


@pytest.mark.parametrize(
    ("at", "part"), [(0, (0, 5)), (5, (5, BLOCK + 12)), (2 * BLOCK + 98, (BLOCK + 12, 2 * BLOCK + 99))]
)
def test_one_turned_bit_is_found_in_its_part(file, at, part):
    path, whole = file
    rot(path, at)
    assert outcome(whole) == f"{path}: many.bin was altered between bytes {part[0]} and {part[1]}"


def test_a_whole_file_passes_and_one_cut_short_or_gone_does_not(file):
    path, whole = file
    assert outcome(whole) == ""
    os.truncate(path, BLOCK)
    assert outcome(whole) == f"{path}: many.bin was cut short"
    path.unlink()
    assert "many.bin cannot be read (No such file" in outcome(whole)


def test_images_that_rotted_end_the_run_in_one_line_before_anything_is_saved(project, fastlg):
    arguments = ("train", "student.yaml", "teacher=null", "run.name=rotten")
    assert fastlg("train", "student.yaml", "teacher=null", "run.name=first", "optim.epochs=1")[0] == 0
    (pixels,) = (project / "cache" / "stores").glob("*/train/pixels.bin")
    rot(pixels, 1234)
    status, _, err = fastlg(*arguments)
    assert status == 2 and len(err.strip().splitlines()) == 1
    assert "train/pixels.bin was altered between bytes 0 and" in err and str(pixels.parent.parent) in err
    assert not list((project / "runs" / "rotten" / "checkpoints").glob("*"))


def test_cached_features_that_rotted_are_found(project):
    _, _, cache = built(*PLAIN, *RUNNING, model=teacher())
    paths = [each.file for each in cache.digested()]
    assert len(paths) > 1 and all(outcome(each) == "" for each in cache.digested())
    for path in paths:
        rot(path, path.stat().st_size - 1)
    assert all("was altered" in outcome(each) for each in cache.digested())


def test_a_run_that_ends_early_does_not_wait_for_the_rest(file):
    path, whole = file
    verification = Verification([whole] * 1000)
    verification.close()
    assert not verification._thread.is_alive() and verification.error is None
