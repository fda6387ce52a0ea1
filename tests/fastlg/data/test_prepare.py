"""The store: each image decoded once and exactly, hostile files named, never a torn or altered store."""

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from patience import HANG_S, wait_until
from PIL import Image

import fastlg.data.store.make
from fastlg.data.store import make_split as prepare_split
from fastlg.data.store.make import find_or_prepare, open_store, prepare
from fastlg.data.store.store import read_manifest
from fastlg.errors import RunError, UserError
from fastlg.files import lock


def picture(seed: int) -> np.ndarray:
    """Every image of another shape."""
    return np.random.default_rng(seed).integers(0, 256, (5 + seed % 7, 3 + seed % 11, 3), dtype=np.uint8)


@pytest.fixture
def source(tmp_path):
    """12 training and 4 test images of two classes, as class folders."""
    for split, seeds in (("train", range(12)), ("test", range(20, 24))):
        for seed in seeds:
            path = tmp_path / "data" / split / ("cat" if seed % 2 else "dog") / f"{seed:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(seed)).save(path)
    return tmp_path / "data"


def contents(path, split="train"):
    store = open_store(path, split, verify=True)
    return [(store.images(i).tobytes(), store.images(i).shape, int(store.labels[i])) for i in range(len(store))]


def expected(seeds):
    cats, dogs = [s for s in seeds if s % 2], [s for s in seeds if not s % 2]
    return [(picture(s).tobytes(), picture(s).shape, int(s in dogs)) for s in cats + dogs]


def test_a_store_holds_every_pixel_and_label_in_source_order(source, tmp_path):
    path = prepare(str(source), tmp_path / "store", workers=1)
    assert contents(path) == expected(range(12)) and contents(path, "test") == expected(range(20, 24))
    store = open_store(path, "train")
    assert store.class_names == ["cat", "dog"] and store.labels.dtype == store.sizes.dtype == np.int64
    assert store.offsets[-1] == len(store.pixels) == store.info["bytes"]
    pixels = np.concatenate([picture(s).reshape(-1, 3) for s in range(12)]) / 255  # float64
    np.testing.assert_allclose(store.info["mean"], pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(store.info["std"], pixels.std(0), rtol=1e-12)
    assert store.info["class_counts"] == [6, 6]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "store"]  # no lock, no partial folder
    copy = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 20_000 and np.array_equal(copy.images(3), store.images(3))


def test_decoding_in_processes_changes_nothing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_split, "_TASK_ROWS", 2)
    (source / "train" / "cat" / "001.png").write_bytes(b"<html>")  # refusals travel between processes, too
    one = prepare(str(source), tmp_path / "one", workers=1, on_bad="skip")
    three = prepare(str(source), tmp_path / "three", workers=3, on_bad="skip")
    assert contents(one) == contents(three)
    assert read_manifest(one)["splits"] == read_manifest(three)["splits"]


def test_images_shrink_to_the_asked_side_and_never_grow(source, tmp_path):
    for side in ("max_side", "short_side"):
        store = open_store(prepare(str(source), tmp_path / side, **{side: 6}), "train")
        for found, seed in zip(store.sizes, [*range(1, 12, 2), *range(0, 12, 2)], strict=True):
            shape = np.array(picture(seed).shape[:2])
            factor = min(1, 6 / (shape.max() if side == "max_side" else shape.min()))
            assert np.array_equal(found, np.maximum(1, np.rint(shape * factor)))
    with pytest.raises(UserError, match="exclude each other"):
        prepare(str(source), tmp_path / "x", max_side=4, short_side=4)
    with pytest.raises(UserError, match="max_side=0"):
        prepare(str(source), tmp_path / "x", max_side=0)


def test_hostile_files_fail_the_dataset_by_name_or_are_left_out(source, tmp_path, shared):
    for path in (shared / "data" / "corrupt").iterdir():
        if path.suffix != ".json" and path.name != "SHA256SUMS":
            shutil.copy(path, source / "train" / "cat" / path.name)
    manifest = json.loads((shared / "data" / "corrupt" / "manifest.json").read_text())
    bad = {entry["file"] for entry in manifest["files"] if entry["expect"] == "reject"}
    with pytest.raises(UserError) as caught:
        prepare(str(source), tmp_path / "store")
    assert all(f"train/cat/{name}: " in str(caught.value) for name in bad) and "\n" not in str(caught.value)
    assert "on_bad=skip" in str(caught.value) and not (tmp_path / "store").exists()
    path = prepare(str(source), tmp_path / "store", on_bad="skip")
    info = open_store(path, "train").info
    assert {name for _, name, _ in info["rejected"]} == {f"train/cat/{name}" for name in bad}
    assert all(len(reason) > 10 for _, _, reason in info["rejected"])
    assert info["count"] == 12 + len(manifest["files"]) - len(bad) and info["class_counts"][1] == 6
    with pytest.raises(UserError, match="truncated.jpg"):  # what was skipped once is not forgotten
        prepare(str(source), tmp_path / "store")


def test_many_bad_files_are_all_listed_in_a_file_and_a_class_is_never_lost(source, tmp_path):
    for path in (source / "train" / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="6 of the images .* all of them in .*store.rejected.txt"):
        prepare(str(source), tmp_path / "store")
    assert len((tmp_path / "store.rejected.txt").read_text().splitlines()) == 6
    with pytest.raises(UserError, match="no usable image is left of class 'cat'"):
        prepare(str(source), tmp_path / "store", on_bad="skip")


def test_file_names_of_any_bytes_are_handled(source, tmp_path):
    for name in ("fleur_été_花.png".encode(), b"latin1_\xe9.png", b"two\nlines.png"):
        path = os.fsencode(source / "train" / "cat") + b"/"
        shutil.copy(source / "train" / "cat" / "001.png", path + name)
        (source / "train" / "cat" / os.fsdecode(b"bad_" + name)).write_bytes(b"x" if b"lines" not in name else b"")
    with pytest.raises(UserError, match="bad_fleur_été_花.png") as caught:
        prepare(str(source), tmp_path / "store")
    assert "\n" not in str(caught.value) and "bad_latin1_" in str(caught.value).encode("utf-8").decode("utf-8")
    info = open_store(prepare(str(source), tmp_path / "store", on_bad="skip"), "train").info
    assert info["count"] == 12 + 3 and len(info["rejected"]) == 3


def test_duplicates_and_overlap_of_train_and_test_are_reported(source, tmp_path):
    train, test = source / "train", source / "test"
    shutil.copy(train / "cat" / "001.png", train / "cat" / "901.png")
    shutil.copy(train / "cat" / "003.png", train / "dog" / "903.png")
    shutil.copy(train / "dog" / "004.png", test / "dog" / "904.png")
    # equal bytes in another shape are another picture
    flat = picture(5)
    Image.fromarray(flat.reshape(-1, 1, 3)).save(train / "cat" / "905.png")
    found = read_manifest(prepare(str(source), tmp_path / "store"))["duplicates"]
    assert (found["groups"], found["train only"], found["train and test"], found["with two labels"]) == (3, 2, 1, 1)
    assert ["train: train/dog/004.png, dog", "test: test/dog/904.png, dog"] in found["examples"]


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("train/pixels.bin", "altered between bytes 0"),
        ("train/offsets.npy", "offsets.npy was altered"),
        ("train/sizes.npy", "sizes.npy was altered"),
        ("train/labels.npy", "labels.npy was altered"),
        ("manifest.json", "manifest.json was altered"),
    ],
)
def test_an_altered_or_cut_store_is_refused_with_the_reason(source, tmp_path, file, reason):
    path = prepare(str(source), tmp_path / "store")
    data = (path / file).read_bytes()
    middle = data.index(b'"count": 12') + 10 if file == "manifest.json" else len(data) - 3
    (path / file).write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    os.utime(path / file, ns=(1, 1))
    with pytest.raises(UserError, match=reason):
        open_store(path, "train")
    (path / file).write_bytes(data[:-5])
    with pytest.raises(UserError, match=str(path)):
        open_store(path, "train")
    (path / file).unlink()
    with pytest.raises(UserError, match=str(path)):
        open_store(path, "train")


def test_a_copied_store_opens_and_is_the_same_data(source, tmp_path):
    path = prepare(str(source), tmp_path / "store")
    shutil.copytree(path, tmp_path / "copy", copy_function=shutil.copyfile)  # new modification times
    assert open_store(tmp_path / "copy", "test").fingerprint == open_store(path, "test").fingerprint
    assert open_store(path, "test").fingerprint != open_store(path, "train").fingerprint
    with pytest.raises(UserError, match="no split 'val'"):
        open_store(path, "val")
    with pytest.raises(UserError, match="is no fastlg store"):
        open_store(source, "train")


def test_an_out_folder_that_holds_something_else_is_left_alone(source, tmp_path):
    path = prepare(str(source), tmp_path / "store")
    before = (path / "manifest.json").stat().st_mtime_ns
    assert prepare(str(source), path) == path and (path / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other data or settings"):
        prepare(str(source), path, max_side=4)
    with pytest.raises(UserError, match="exists and is no store"):
        prepare(str(source), source)
    (tmp_path / "empty").mkdir()
    assert prepare(str(source), tmp_path / "empty") == tmp_path / "empty"


def test_the_cache_is_used_again_until_the_images_change(source, tmp_path):
    first = find_or_prepare(str(source), tmp_path / "cache")
    assert first.parent == tmp_path / "cache" and first.name.startswith("data-")
    assert find_or_prepare(str(source), tmp_path / "cache") == first
    assert find_or_prepare(str(first)) == first  # a store stands for itself
    with pytest.raises(UserError, match="data.holdout"):
        find_or_prepare(str(first), holdout=0.2)
    assert find_or_prepare(str(source), tmp_path / "cache", holdout=0.5) != first
    Image.fromarray(picture(77)).save(source / "train" / "cat" / "001.png")
    second = find_or_prepare(str(source), tmp_path / "cache")
    assert second != first and contents(second)[0][0] == picture(77).tobytes()


def test_half_made_stores_of_older_data_do_not_pile_up_in_the_cache(source, tmp_path):
    bad = source / "train" / "cat" / "001.png"
    bad.write_bytes(b"")
    with pytest.raises(UserError, match="001.png"):
        find_or_prepare(str(source), tmp_path / "cache")
    (left,) = (tmp_path / "cache").glob(".*.partial")
    with pytest.raises(UserError, match="001.png"):  # the same data again: it is kept to go on with
        find_or_prepare(str(source), tmp_path / "cache")
    assert left.exists()
    Image.fromarray(picture(1)).save(bad)
    path = find_or_prepare(str(source), tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [path.name]


def test_classes_that_differ_between_the_splits_are_refused(source, tmp_path):
    shutil.move(source / "test" / "cat", source / "test" / "lynx")
    with pytest.raises(UserError, match="only in train: 'cat'; only in test: 'lynx'"):
        find_or_prepare(str(source), tmp_path / "cache")


def test_a_killed_preparation_goes_on_where_it_stopped(source, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_split, "PART_ROWS", 3)
    decoded = []
    honest = prepare_split._decode_one

    def stops_at_the_ninth(data, name, shrink):
        if len(decoded) == 8:
            raise KeyboardInterrupt
        decoded.append(name)
        return honest(data, name, shrink)

    monkeypatch.setattr(prepare_split, "_decode_one", stops_at_the_ninth)
    with pytest.raises(KeyboardInterrupt):
        prepare(str(source), tmp_path / "store", workers=1)
    partial = tmp_path / ".store.partial" / "train"
    with open(partial / "parts.jsonl", "a") as record:
        record.write('{"rows": [6, 9], "kept": [6,')  # a line that the kill cut short
    with open(partial / "pixels.bin", "ab") as pixels:
        pixels.write(b"torn")
    decoded.clear()
    monkeypatch.setattr(prepare_split, "_decode_one", lambda *a: decoded.append(a[1]) or honest(*a))
    path = prepare(str(source), tmp_path / "store", workers=1)
    assert len(decoded) == 6 + 4  # two parts of three were kept
    assert contents(path) == expected(range(12)) and contents(path, "test") == expected(range(20, 24))
    assert not partial.exists()


def test_parts_that_rotted_on_disk_are_decoded_again(source, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_split, "PART_ROWS", 4)
    (source / "test" / "cat" / "021.png").write_bytes(b"")
    with pytest.raises(UserError, match="021.png"):
        prepare(str(source), tmp_path / "store")
    pixels = tmp_path / ".store.partial" / "train" / "pixels.bin"
    data = bytearray(pixels.read_bytes())
    data[len(data) // 2] ^= 1
    pixels.write_bytes(data)
    path = prepare(str(source), tmp_path / "store", on_bad="skip")
    assert contents(path) == expected(range(12))


def test_sigkill_at_any_moment_leaves_no_store_and_no_orphan(source, tmp_path):
    code = (
        "import os, sys, time; from fastlg.data.store import make, make_split as p; prepare = make.prepare\n"
        "p._TASK_ROWS = 1; honest = p._decode_many\n"
        "def endless_after_the_first(*a):\n"
        "    try: os.mkdir('begun')\n"
        "    except FileExistsError: print('go', flush=True); time.sleep(1e6)\n"
        "    return honest(*a)\n"
        "p._decode_many = endless_after_the_first; prepare(sys.argv[1], sys.argv[2], workers=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "store")]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True)
    with process:
        assert process.stdout.readline() == b"go\n"  # from a worker in the middle of its work
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "store").exists()

    def is_group_gone() -> bool:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(is_group_gone)  # no decoding process outlives its parent
    assert contents(prepare(str(source), tmp_path / "store")) == expected(range(12))


def _prepare_and_report(source, out, start, results):
    start.wait()
    prepare(source, out, workers=1)
    results.put(contents(out))


def test_two_processes_at_once_give_one_whole_store(source, tmp_path):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    arguments = (str(source), tmp_path / "store", start, results)
    workers = [context.Process(target=_prepare_and_report, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    for _ in workers:
        assert results.get(timeout=HANG_S) == expected(range(12))
    for worker in workers:
        worker.join(timeout=HANG_S)
        assert worker.exitcode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "store"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_prepared_on(source, tmp_path, monkeypatch, caplog, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    assert contents(prepare(str(source), tmp_path / "store")) == expected(range(12))
    assert caplog.text.count("file system without locks; see to it that no other process is preparing") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "store"]


def test_a_full_disk_is_a_run_error_and_the_work_is_kept(source, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(prepare_split.os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device.*run again to go on"):
            prepare(str(source), tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert contents(prepare(str(source), tmp_path / "store")) == expected(range(12))


UNWRITABLE = "/sys/fastlg"  # not even for root


@pytest.mark.skipif(not os.path.isdir("/sys"), reason="no file system that nobody can write")
def test_a_cache_that_cannot_be_written_names_the_setting_that_moves_it(source, tmp_path, monkeypatch):
    def refused(setting, write, folder=UNWRITABLE):
        with pytest.raises(UserError, match=f"cannot write the store {folder}/.*not writable, {setting}") as caught:
            write()
        assert "free some space" not in str(caught.value) and "\n" not in str(caught.value)

    monkeypatch.setenv("FASTLG_CACHE", UNWRITABLE)
    refused("set FASTLG_CACHE .or data.store. to another folder", lambda: find_or_prepare(str(source)))
    refused("set data.store to another folder", lambda: find_or_prepare(str(source), UNWRITABLE))
    refused("choose another folder", lambda: prepare(str(source), f"{UNWRITABLE}/store"))
    (tmp_path / "file").write_text("")
    refused("set data.store", lambda: find_or_prepare(str(source), tmp_path / "file"), tmp_path / "file")
    with pytest.raises(UserError, match=f"{UNWRITABLE}/torchvision is not writable .*set FASTLG_CACHE"):
        find_or_prepare("torchvision:CIFAR10", download=True)


def test_a_store_that_is_there_needs_no_writable_cache(source, tmp_path, monkeypatch):
    path = find_or_prepare(str(source), tmp_path / "cache")

    def read_only(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(fastlg.data.store.make, "file_lock", read_only)
    (tmp_path / "cache" / ".data-0123456789ab.partial").mkdir()  # of older data, left by a killed command
    assert find_or_prepare(str(source), tmp_path / "cache") == path
    with pytest.raises(UserError, match="Permission denied; .*cache is not writable"):
        find_or_prepare(str(source), tmp_path / "cache", max_side=4)
