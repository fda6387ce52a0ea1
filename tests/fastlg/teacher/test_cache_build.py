"""Building a feature cache: killed, cut short, altered, out of space, built twice at once, or of something else."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import threading
from collections import namedtuple

import pytest
import torch
from cache_cases import FIXED, PLAIN, RUNNING, built, job_of, teacher
from made_images import write_images
from patience import HANG_S

import fastlg.features
from fastlg.errors import RunError, UserError
from fastlg.features import build_cache, find_features
from fastlg.teacher.cache import format as cache_format
from fastlg.teacher.cache.read import open_cache
from fastlg.teacher.cache.write import CacheWriter


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cache_format, "CHUNK", 4)


def start(overrides, limit=None, killed_after=None):
    """``build`` in a process of its own, whose files may not grow beyond ``limit`` bytes, and which is killed in the
    call of its teacher that follows so many; (process, what it raised)."""
    config, stores, job = job_of(*overrides)
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def run():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            with pytest.MonkeyPatch.context() as patch:
                calls = count_calls(
                    job, patch, lambda: len(calls) == killed_after and signal.raise_signal(signal.SIGKILL)
                )
                build_cache(job, config, stores)
        except RunError as error:
            sender.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process, receiver


def count_calls(job, monkeypatch, before=lambda: None):
    calls = []
    inner = type(job.teacher).__call__
    monkeypatch.setattr(type(job.teacher), "__call__", lambda *a: before() or calls.append(len(a[1])) or inner(*a))
    return calls


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.bin"))}


def assert_gone_on(project, monkeypatch, overrides, path):
    """Finishes the build here: only the missing chunks are made, and the bytes are an undisturbed build's."""
    journal = path.with_name(f".{path.name}.partial") / "chunks.jsonl"
    kept = journal.read_text().count("\n")
    config, stores, job = job_of(*overrides)
    assert 0 < kept < job.chunking.chunks
    calls = count_calls(job, monkeypatch)
    build_cache(job, config, stores)
    assert len(calls) == job.chunking.chunks - kept
    _, _, whole = built(*overrides[:-1], f"teacher.cache={project / 'undisturbed'}")
    assert contents(path) == contents(whole.path)
    assert not path.with_name(f".{path.name}.partial").exists() and not path.with_name(f"{path.name}.lock").exists()


def test_a_killed_build_goes_on_where_it_stopped(project, monkeypatch):
    overrides = (*PLAIN, *RUNNING, f"teacher.cache={project / 'killed'}")
    process, _ = start(overrides, killed_after=4)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    journal = project / ".killed.partial" / "chunks.jsonl"
    with open(project / ".killed.partial" / "map1.bin", "ab") as file:
        file.write(b"half a chunk that the journal does not know")
    with open(journal, "a") as file:
        file.write('{"rows": 4, "sha')
    assert_gone_on(project, monkeypatch, overrides, project / "killed")


def test_a_disk_that_fills_up_half_way_keeps_what_was_written(project, monkeypatch):
    overrides = (*PLAIN, *RUNNING, f"teacher.cache={project / 'full'}")
    process, failure = start(overrides, limit=500_000)  # map0 of a chunk has 65,536 bytes: it ends inside the eighth
    process.join(timeout=HANG_S)
    assert "File too large; 7 of 20 chunks are kept" in failure.recv()
    assert_gone_on(project, monkeypatch, overrides, project / "full")


def test_a_chunk_altered_between_two_calls_is_made_again(project, monkeypatch):
    config, stores, job = job_of(*PLAIN, *RUNNING, f"teacher.cache={project / 'c'}")
    add, made = CacheWriter.add, []
    monkeypatch.setattr(CacheWriter, "add", lambda self, arrays: made.append(1) or add(self, arrays))

    def full(self, arrays):
        if len(made) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        made.append(1)
        add(self, arrays)

    monkeypatch.setattr(CacheWriter, "add", full)
    with pytest.raises(RunError, match="No space left on device; 5 of 20 chunks are kept"):
        build_cache(job, config, stores)
    flip_byte(project / ".c.partial" / "map2.bin", 3 * 4 * 64 * 4 * 4 * 4 + 1)  # in chunk 3
    monkeypatch.setattr(CacheWriter, "add", add)
    calls = count_calls(job, monkeypatch)
    build_cache(job, config, stores)
    assert len(calls) == 20 - 3
    open_cache(job.path, job.fingerprint, verify=True)


def test_of_two_at_once_one_builds_and_the_other_waits(project, monkeypatch, caplog):
    config, stores, job = job_of(*PLAIN, *RUNNING)
    calls = count_calls(job, monkeypatch)
    caplog.set_level("INFO", "fastlg")
    failures = []

    def run():
        try:
            build_cache(job, config, stores)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(calls) == job.chunking.chunks
    assert any("waiting for it" in record.getMessage() for record in caplog.records)
    open_cache(job.path, job.fingerprint, verify=True)


def test_a_disk_too_small_is_refused_before_anything_is_computed(project, monkeypatch):
    config, stores, job = job_of(*PLAIN, *RUNNING)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30 - 2**20, 2**20))
    calls = count_calls(job, monkeypatch)
    with pytest.raises(UserError, match=r"needs 0\.\d\d GiB more at .*0\.00 GiB free; set teacher.cache"):
        build_cache(job, config, stores)
    assert not calls and not list(job.path.parent.iterdir())


def test_places_that_cannot_be_written_or_hold_something_else(project):
    (project / "file").write_text("x")
    (project / "full").mkdir()
    (project / "full" / "thesis.tex").write_text("x")
    for place, words in (
        (project / "file" / "c", "cannot write a feature cache"),
        (project / "full", "is no feature cache"),
    ):
        config, stores, job = job_of(*PLAIN, f"teacher.cache={place}")
        with pytest.raises(UserError, match=words) as caught:
            build_cache(job, config, stores)
        assert str(place) in str(caught.value) and "teacher.cache" in str(caught.value)
    assert (project / "full" / "thesis.tex").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(project):
    (project / "locked").mkdir(mode=0o555)
    config, stores, job = job_of(*PLAIN, f"teacher.cache={project / 'locked' / 'c'}")
    with pytest.raises(UserError, match="cannot write a feature cache"):
        build_cache(job, config, stores)


def flip_byte(path, position):
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x40]))


def test_damage_is_found_and_named(project):
    _, _, cache = built(*FIXED, *RUNNING)
    config, stores, job = job_of(*FIXED, *RUNNING)
    path = cache.path

    def refused(words, **options):
        with pytest.raises(UserError, match=words) as caught:
            open_cache(path, job.fingerprint, **options)
        assert str(path) in str(caught.value) and "fastlg cache" in str(caught.value)

    file = path / "map1.bin"
    row = next(info.row_bytes for info in cache.infos if info.name == "map1")
    before = file.stat()
    flip_byte(file, 9 * row + 5)
    refused(rf"map1.bin was altered between bytes {8 * row} and {12 * row} \(chunk 2\)")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    open_cache(path, job.fingerprint)  # nothing but a full check can see this
    refused("map1.bin was altered", verify=True)
    flip_byte(file, 9 * row + 5)
    open_cache(path, job.fingerprint)
    os.truncate(file, 77 * row)
    refused(f"map1.bin has {77 * row} bytes instead of {78 * row}")
    file.unlink()
    refused("map1.bin is missing")
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"count": 78', '"count": 77'))
    refused("manifest.json was altered")
    (path / "manifest.json").write_text(text[:-20])
    refused("manifest.json was altered or cannot be read")


OTHER_SETTINGS = {
    "teacher.norm_stats=batch": "norm_stats",
    "model.image_size=48": "image_size",
    "teacher.cache_dtype=bf16": "dtype",
    "augment.flip=0": "transforms",
    "augment.crop_scale=[0.5,1]": "transforms",
    "teacher.cache_form=maps": "grids",
    "teacher.stages=[0,1,1]": "stages",
    "augment.mean=[0,0,0]": "mean",
    "teacher.view=source": "view",
    "augment.interpolation=bilinear": "interpolation",
}


def test_a_cache_of_other_settings_is_refused_by_the_field_that_differs(project):
    common = (*FIXED, *RUNNING, "model.args.patch_size=16", f"teacher.cache={project / 'c'}")
    built(*common)
    for override, field in OTHER_SETTINGS.items():
        config, stores, _ = job_of(*common, override)
        with pytest.raises(
            UserError, match=rf"c does not fit this config \((.*; )?{field}: .* in the cache, .* wanted"
        ):
            find_features(config, stores, teacher(), 16)


def test_a_cache_of_another_teacher_dataset_or_version_is_refused(project, monkeypatch):
    place = f"teacher.cache={project / 'c'}"
    _, _, cache = built(*PLAIN, place)
    config, stores, _ = job_of(*PLAIN, place)
    with pytest.raises(UserError, match=r"\(teacher: [0-9a-f]{12} in the cache, [0-9a-f]{12} wanted\)"):
        find_features(config, stores, teacher(seed=1), 16)
    drifted = teacher()
    drifted.stem.bn.running_mean += 0.5
    with pytest.raises(UserError, match=r"\(teacher: "):
        find_features(config, stores, drifted, 16)
    counted = teacher()
    counted.stem.bn.num_batches_tracked += 1
    assert find_features(config, stores, counted, 16).path == cache.path
    for split in ("train", "test"):
        write_images(project / "others" / split, per_class=5, seed=9)
    with pytest.raises(UserError, match=r"\(store: "):
        other, stores, _ = job_of(*PLAIN, place, f"data.source={project / 'others'}")
        find_features(other, stores, teacher(), 16)
    monkeypatch.setattr(fastlg.features, "__version__", "9.9.9")
    with pytest.raises(UserError, match=r"version: .* in the cache, 9\.9\.9 wanted"):
        find_features(config, job_of(*PLAIN, place)[1], teacher(), 16)


def test_a_missing_cache_is_named_with_the_nearest_one(project):
    config, stores, job = job_of(*PLAIN, "teacher.mode=cache")
    with pytest.raises(UserError, match=r"no feature cache .*; run fastlg cache CONFIG, or set teacher.mode=auto"):
        find_features(config, stores, teacher(), 16)
    build_cache(job, config, stores)
    other, _, _ = job_of(*PLAIN, "teacher.mode=cache", "teacher.cache_dtype=bf16")
    with pytest.raises(UserError, match=rf"{job.path} differs: dtype: fp32 in the cache, bf16 wanted"):
        find_features(other, stores, teacher(), 16)
    assert find_features(config, stores, teacher(), 16).path == job.path
    assert find_features(config.replace({"teacher.mode": "online"}), stores, teacher(), 16) is None


def test_forms_and_augmentations_that_do_not_fit_are_refused_with_the_fix(project, fastlg):
    for words, *overrides in (
        ("augment.rand_augment is rand-m9-mstd0.5-inc1, .*teacher.cache_augment=all", "teacher.mode=cache"),
        ("augment.erase is 0.25, .*augment.erase=0", "teacher.mode=auto", "augment.rand_augment=null"),
        ("augment.cutmix is 1.0, .*augment.cutmix=0", *PLAIN, "augment.cutmix=1.0"),
        (r"augment.crop_scale is \[0.08, 1.0\], not \[1, 1\]; use .*maps", *PLAIN, "teacher.cache_form=compact"),
        ("transform attention needs .*maps", *FIXED, "teacher.cache_form=compact", "guidance.transform=attention"),
    ):
        with pytest.raises(UserError, match=words):
            job_of(*overrides)
    _, _, job = job_of("teacher.mode=auto", "teacher.cache_augment=all")
    assert job.fingerprint.transforms == "crop and flip"
    assert job_of(*FIXED, "guidance.transform=similarity")[2].fingerprint.grids == (None, None, None)
    status, _, err = fastlg("cache", "student.yaml", "teacher=null")
    assert status == 2 and "nothing to cache" in err


def test_images_one_pixel_from_square_still_move_under_fixed_crops(project):
    from PIL import Image

    for split in ("train", "test"):
        write_images(project / "near" / split, per_class=2, seed=3)
    Image.new("RGB", (24, 23), "red").save(project / "near" / "train" / "red" / "near.png")
    source = f"data.source={project / 'near'}"
    assert job_of(*FIXED, source)[2].fingerprint.transforms == "crop and flip"
    with pytest.raises(UserError, match="23 x 24 px, its square crop moves; use teacher.cache_form=maps"):
        job_of(*FIXED, source, "teacher.cache_form=compact")


def test_values_beyond_half_precision_are_refused_with_the_fix(project):
    model = teacher()
    with torch.no_grad():
        model.stages[0][-1].bn2.weight.mul_(1e6)
    with pytest.raises(UserError, match="map0 reaches .* beyond fp16; use teacher.cache_dtype=bf16"):
        built(*PLAIN, "teacher.cache_dtype=fp16", model=model)


def test_sizes_of_the_papers_recipe(project):
    """method.md: 28,672 values an image become 13,504 where the student's grid is the smaller one."""
    shapes = [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    counts = []
    for grids in ((None, None, None), ((14, 14), (14, 14), None)):
        _, _, job = job_of(*PLAIN)
        fingerprint = json.loads(json.dumps(job.fingerprint.fields()))
        fingerprint |= {"grids": grids, "stages": (0, 1, 2), "dtype": "fp16", "transforms": "none"}
        infos = cache_format.array_infos(cache_format.Fingerprint(**fingerprint), shapes, classes=100)
        counts.append(sum(info.row_bytes for info in infos if info.dtype == "fp16") // 2)
    assert counts == [28_672, 13_504]
