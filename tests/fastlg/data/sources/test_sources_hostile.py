"""Sources that are no data, cannot be read or want to fill the memory: one line, soon, whatever they are; and names
that would talk to the terminal are escaped wherever they are printed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
from patience import HANG_S
from source_cases import images, png, refuses, save, write_parquet

from fastlg.data.sources.choose import open_source
from fastlg.data.store.make import find_or_prepare
from fastlg.errors import RunError, UserError, printable

LIMITS = {"seconds": 30, "mib": 2048}  # of a refusal, in processor time: guards against a blow-up


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/dev/null", "a device; give a file or folder of images"),
        ("/dev/zero", "a device"),
        ("{tmp}/pipe", r"a pipe \(FIFO\)"),
        ("{tmp}/loop", "cannot be read .Too many levels"),
        ("{tmp}/broken", "it is a link to /nowhere"),
        ("{tmp}/nul\0byte", r"nul\\x00byte.*no NUL"),
        ("x" * 5000, "255 bytes"),
        ("{tmp}/" + "a/" * 3000, "4,000 bytes"),
        ("~nobody-of-this-name/x", "no user 'nobody-of-this-name' on this machine"),
        ("{tmp}/file.txt/below", "no such file or folder"),
        ("{tmp}/file.txt", "a single file must be .parquet or .beton"),
        ("{tmp}/empty", "the folder is empty"),
        ("{tmp}/esc\x1b[2J", r"no such file.*esc\\x1b\[2J"),
        ("torchvision:../../etc", "unknown; choose one of"),
        ("hf://a/b/c/d", "write hf://OWNER/NAME"),
        ("demo:", "unknown; the demo is"),
    ],
)
def test_a_source_that_is_no_data_is_one_line(spec, message, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "broken").symlink_to("/nowhere")
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    refuses(message, spec.format(tmp=tmp_path), "train")
    with pytest.raises(UserError, match=message):
        find_or_prepare(spec.format(tmp=tmp_path), tmp_path / "cache")


def test_a_home_that_is_not_there_is_one_line_in_every_setting(tmp_path, monkeypatch):
    for i in range(4):
        save(tmp_path / "data" / "ab"[i % 2] / f"{i}.png", i)
    with pytest.raises(UserError, match="data.store=~nobody-of-this-name/s: no user"):
        find_or_prepare(str(tmp_path / "data"), "~nobody-of-this-name/s", holdout=0.5)
    monkeypatch.setenv("FASTLG_CACHE", "~nobody-of-this-name/s")
    with pytest.raises(UserError, match="FASTLG_CACHE=~nobody-of-this-name/s: no user"):
        find_or_prepare(str(tmp_path / "data"), holdout=0.5)


@pytest.fixture
def as_nobody():
    """A folder that everybody may enter, and a function that gives up root's rights."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    folder = Path(tempfile.mkdtemp(prefix="fastlg-nobody-"))
    folder.chmod(0o755)
    yield folder, lambda: os.seteuid(65534)
    os.seteuid(0)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("closed", "spec", "message"),
    [
        ("data", "data", "cannot read .*/data/.* .Permission denied"),
        ("data", "data/train", "cannot be read .Permission denied"),
        ("data/train", "data", "cannot read .*train .Permission denied"),
        ("data/train/cat", "data", "cannot read .*train/cat .Permission denied"),
        ("data/train/cat/deep", "data", "cannot read .*cat/deep .Permission denied"),
        ("x.parquet", "x.parquet", "not a readable parquet file .*Permission denied"),
        ("idx/train-images-idx3-ubyte", "idx", "damaged IDX file .*Permission denied"),
        ("flowers/setid.mat", "flowers", "setid.mat: cannot be read .Permission denied"),
        ("lists/train.json", "lists", "train.json: cannot be read .Permission denied"),
    ],
)
def test_what_may_not_be_read_is_refused_and_not_passed_over(as_nobody, closed, spec, message):
    folder, become = as_nobody
    for name in ("train/cat/1.png", "train/cat/deep/2.png", "train/dog/3.png", "test/cat/4.png", "test/dog/5.png"):
        save(folder / "data" / name, 0)
    write_parquet(folder / "x.parquet", {"image": images(0, 1), "label": [0, 1]})
    files = [
        "idx/train-images-idx3-ubyte",
        "idx/train-labels-idx1-ubyte",
        "flowers/setid.mat",
        "flowers/imagelabels.mat",
    ]
    for name in (*files, "lists/train.json", "lists/test.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / closed).chmod(0)
    become()
    refuses(message, str(folder / spec), "train")


def test_an_image_that_may_not_be_read_is_named_and_can_be_skipped(as_nobody, tmp_path):
    folder, become = as_nobody
    for i in range(8):
        save(folder / "ab"[i % 2] / f"{i}.png", i)
    (folder / "a" / "2.png").chmod(0)
    become()
    source = open_source(str(folder), "train")
    with pytest.raises(UserError, match="a/2.png: cannot be read .Permission denied"):
        source.read(1)


def wide_png() -> bytes:
    """65,000 x 65,000 pixels, as its header says."""
    data = bytearray(png(0))
    data[16:24] = struct.pack(">II", 65_000, 65_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def deflated_zeros(mib: int) -> bytes:
    """A zlib stream that unpacks to so many MiB, made from one block that is repeated."""
    block = zlib.compressobj(9)
    start = block.compress(bytes(1 << 20)) + block.flush(zlib.Z_FULL_FLUSH)
    return start[:2] + start[2:] * mib


def mat_of(body: bytes) -> bytes:
    return b"MATLAB 5.0".ljust(124) + struct.pack("<HH", 0x100, 0x4D49) + struct.pack("<II", 15, len(body)) + body


def make_hostile(root: Path) -> dict[str, str]:
    """{folder: fragment of its refusal}; each would need gigabytes or minutes if it were believed."""
    idx = struct.pack(">HBBIII", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    labels = struct.pack(">HBBI", 0, 8, 1, 2) + b"\0\1"
    zeros = gzip.compress(bytes(64 << 20)) * 48  # 3 GiB in 3 MiB
    huge = struct.pack(">HBBIII", 0, 8, 3, 3 << 20, 32, 32)
    small = struct.pack(">HBBIII", 0, 8, 3, 2, 2, 2)
    files: dict[str, dict[str, bytes | int]] = {
        "idx overflow": {"train-images-idx3-ubyte": idx, "train-labels-idx1-ubyte": labels},
        "idx.gz says much": {
            "train-images-idx3-ubyte.gz": gzip.compress(huge) + zeros,
            "train-labels-idx1-ubyte.gz": labels,
        },
        "idx.gz holds more": {
            "train-images-idx3-ubyte.gz": gzip.compress(small) + zeros,
            "train-labels-idx1-ubyte.gz": labels,
        },
        "mat bomb": {"setid.mat": mat_of(deflated_zeros(3000)), "imagelabels.mat": mat_of(deflated_zeros(3000))},
        "mat large": {"setid.mat": 1 << 40, "imagelabels.mat": 1 << 40},
        "json deep": {"train.json": b"[" * 10_000_000, "test.json": b"[]"},
        "json deep objects": {"train.json": b'{"a":' * 1_000_000, "test.json": b"[]"},
        "json large": {"train.json": 1 << 40, "test.json": b"[]"},
        "json digits": {"train.json": b'[{"name": "a.png", "label": ' + b"9" * 5000 + b"}]", "test.json": b"[]"},
        "tiny large": {"val/val_annotations.txt": 1 << 40, "train/a/1.png": png(0), "train/b/1.png": png(1)},
        "parquet large": {"train.parquet": 1 << 40},
        "beton large": {"train.beton": 1 << 40},
        "image large": {"a/1.png": 1 << 40, "b/1.png": png(1)},
        "image bomb": {"a/1.png": wide_png(), "b/1.png": png(1)},
        "manifest large": {"manifest.json": 1 << 40},
        "manifest deep": {"manifest.json": b"[" * 10_000_000},
    }
    for folder, contents in files.items():
        for name, content in contents.items():
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else b"")
            if isinstance(content, int):
                os.truncate(path, content)  # a hole: no disk is used
    write_parquet(root / "labels" / "train.parquet", {"image": images(0, 1), "label": [0, 10**9]})
    write_parquet(root / "long labels" / "train.parquet", {"image": images(0, 1), "label": [[0] * 10**6, [1]]})
    return {
        "idx overflow": "needs 79228162458924105385300197375",
        "idx.gz says much": "unpack it with gunzip first",
        "idx.gz holds more": "more than 8 values where",
        "mat bomb": "unpacks to more than 64 MiB",
        "mat large": "more than 64 MiB, taken for damaged",
        "json deep": "train.json: expected a list of objects",
        "json deep objects": "train.json: expected a list of objects",
        "json large": "more than 32 MiB, taken for damaged",
        "json digits": "train.json: expected a list of objects",
        "tiny large": "more than 32 MiB, taken for damaged",
        "parquet large": "not a readable parquet file",
        "beton large": "train.beton",
        "image large": "a/1.png: cannot be read (more than 1024 MiB",
        "image bomb": "a/1.png: ",
        "manifest large": "no class folders, parquet",
        "manifest deep": "no class folders, parquet",
        "labels": "label 1000000000 of train.parquet row 1 is no class but an id",
        "long labels": "its label is a list of 1000000 values",
    }


PROGRAM = """
import json, os, re, sys
from fastlg.data.store.make import find_or_prepare
from fastlg.errors import UserError
for folder in sys.argv[2:]:
    before = os.times()
    try:
        find_or_prepare(folder, sys.argv[1], workers=1, holdout=0.0 if "tiny" in folder else 0.5)
        line = "accepted"
    except UserError as error:
        line = str(error)
    seconds = sum(os.times()[:4]) - sum(before[:4])  # of processors: other processes do not count
    # Of this program alone: ru_maxrss begins with what the process had that started it.
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
    print(json.dumps([folder, line, seconds, int(peak[1]) / 1024]), flush=True)
"""


def test_files_that_would_fill_the_memory_are_refused_soon_and_in_little_memory(tmp_path):
    wanted = make_hostile(tmp_path)
    for split in ("a", "b"):  # an image that can be held out
        for name in ("image large", "image bomb"):
            save(tmp_path / name / split / "2.png", 5)
    folders = [str(tmp_path / folder) for folder in wanted]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "cache"), *folders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False)
    rows = {Path(row[0]).name: row[1:] for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0 and rows.keys() == wanted.keys(), done.stderr[-2000:]
    for folder, (line, seconds, mib) in rows.items():
        assert wanted[folder] in line and "\n" not in line, (folder, line)
        assert seconds < LIMITS["seconds"] and mib < LIMITS["mib"], (folder, seconds, mib)


ESCAPES = "a\x1b[31mred\r\n\x07\x9b2J\u202eevil\u2028\udce9"


def test_control_characters_are_escaped_in_every_kind_of_line():
    shown = printable(ESCAPES + "été 花 👨\u200d👩")
    assert shown == r"a\x1b[31mred\r\n\x07\x9b2J\u202eevil\u2028\udce9été 花 👨" + "\u200d👩"
    assert str(UserError(ESCAPES)) == str(RunError(ESCAPES)) == printable(ESCAPES)
    assert printable(shown) == shown and printable("plain") == "plain"


def test_control_characters_of_files_classes_and_columns_never_reach_the_terminal(tmp_path, fastlg, monkeypatch):
    monkeypatch.setenv("FASTLG_CACHE", str(tmp_path / "cache"))

    def check(*arguments, status, shown):
        code, out, err = fastlg(*arguments)
        assert code == status, (out, err)
        assert shown in out + err
        text = (out + err).replace("\n", "")
        assert text == printable(text), text

    root, name = tmp_path / "da\x1b[2Jta", "cl\x1b[31mass\r"
    for split in ("train", "test"):
        for folder in (name, "dog"):
            save(root / split / folder / "1.png", 1)
    save(root / "train" / name / "._\x1bx.png", 1)
    check("prepare", root, tmp_path / "store", status=0, shown=r"da\x1b[2Jta")
    (root / "train" / name / "bad\x07.png").write_bytes(b"no\x1b[0m")
    check("prepare", root, tmp_path / "store2", status=2, shown=r"cl\x1b[31mass\r/bad\x07.png")
    check("prepare", root, tmp_path / "store3", "--on-bad", "skip", status=0, shown=r"left out: train/cl\x1b[31m")
    write_parquet(tmp_path / "x.parquet", {"image": images(0, 1), "la\x1b[2Jbel": [0, 1]})
    check("prepare", tmp_path / "x.parquet", tmp_path / "store4", status=2, shown=r"la\x1b[2Jbel")
    check("train", f"no\x1bconfig\n{name}", status=2, shown=r"no\x1bconfig\n")
