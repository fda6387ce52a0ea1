"""Whatever is given as images or as a config and is none: the line says what it is and what to do with it."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused
from source_cases import images, png, refuses, save, write_parquet

from fastlg.files.kinds import LOOKED_AT, kind_of_file


def made_by(write) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def npz(**arrays) -> bytes:
    return made_by(lambda file: np.savez(file, **arrays))


def zip_of(*names: str) -> bytes:
    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")

    return made_by(write)


def tar(mode: str) -> bytes:
    def write(file):
        with tarfile.open(fileobj=file, mode=mode) as archive:
            archive.addfile(tarfile.TarInfo("x"), None)

    return made_by(write)


def database(folder: Path) -> bytes:
    sqlite3.connect(folder / "made.db").execute("create table images (data blob)").connection.close()
    return (folder / "made.db").read_bytes()


def arrow(kind: str) -> bytes:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": [1]})

    def write(file):
        with getattr(pa.ipc, f"new_{kind}")(file, table.schema) as writer:
            writer.write_table(table)

    return made_by(write)


INSTEAD = "give a YAML file or a shipped config's name; images go beside a config: fastlg train CONFIG data.source="
STACK = np.zeros((4, 8, 9, 3), np.uint8)
MEDICAL = {"train_images": STACK, "train_labels": np.zeros((4, 1), np.int64), "val_images": STACK[:2]}
GIT_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
# file -> (its bytes, what the line calls it, the fix for images; None where a config's line says it in its own way)
KINDS = {
    "x.npz": (
        lambda _: npz(**MEDICAL),
        "a NumPy archive (.npz) of train_images 4x8x9x3 uint8, train_labels 4x1 int64, val_images 2x8x9x3 uint8",
        "save its images as files, one folder per class (train/CLASS/0.png",
    ),
    "cut.npz": (lambda _: npz(**MEDICAL)[:300], "a damaged NumPy archive", "download it again"),
    "many.npz": (lambda _: npz(**dict.fromkeys("abcdef", STACK[0, 0, 0, 0])), "a of one value uint8", "..."),
    "objects.npz": (lambda _: npz(a=np.array([{}], object)), "a 1 object", "one folder per class"),
    "x.npy": (lambda _: made_by(lambda file: np.save(file, STACK)), "a NumPy array (.npy) 4x8x9x3 uint8", "PIL.Image"),
    "x.zip": (
        lambda _: zip_of("train/cat/0.png", "a.npy"),
        "a zip archive of 2 files",
        "unpack it and give the folder",
    ),
    "x.xlsx": (lambda _: zip_of("[Content_Types].xml", "a.xml"), "an office document", "give a folder of images"),
    "x.pt": (lambda _: made_by(lambda file: torch.save({}, file)), "a PyTorch file", "teacher.weights"),
    "x.tar": (lambda _: tar("w"), "a tar archive", "unpack it"),
    "x.tar.gz": (lambda _: tar("w:gz"), "a packed file (gzip)", "unpack it"),
    "x.tar.xz": (lambda _: tar("w:xz"), "a packed file (xz)", "unpack it"),
    "x.tar.bz2": (lambda _: tar("w:bz2"), "a packed file (bzip2)", "unpack it"),
    "x-idx3-ubyte.gz": (lambda _: gzip.compress(b"\0\0\x08\x03"), "a packed file (gzip)", "unpack it"),
    "x-idx3-ubyte": (lambda _: b"\0\0\x08\x03" + bytes(12), "in the MNIST file format (IDX)", "folder that it lies in"),
    "x.csv": (lambda _: b"file,label\na.png,cat\n", "a table of text (CSV) with the columns file, label", "sort the"),
    "x.tsv": (lambda _: b"file\tlabel\na.png\tcat\n", "a table of text (CSV) with the columns file, label", "sort the"),
    "table": (lambda _: b"a,b,c,d,e\n1,2,3,4,5\n", "with the columns a, b, c, d ...", "one folder per class"),
    "x.json": (lambda _: b'[{"name": "a.png", "label": 0}]', "JSON", "of Chaoyang, give the folder that it lies in"),
    "x.jsonl": (lambda _: b'{"a": 1}\n{"a": 2}\n', "JSON", "give the folder"),
    "x.png": (lambda _: png(0), "one image (PNG)", "the folder that holds the folders of the classes"),
    "x.jpg": (lambda _: png(0), "one image (PNG)", "the folder that holds the folders"),
    "x.pkl": (lambda _: pickle.dumps({b"data": [1]}, 2), "a Python pickle", "torchvision:CIFAR10"),
    "x.arrow": (lambda _: arrow("stream"), "an Arrow file (of save_to_disk)", "to_parquet"),
    "x.feather": (lambda _: arrow("file"), "an Arrow file", ".parquet file"),
    "x.h5": (lambda _: b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file (.h5)", "one folder per class"),
    "x.mat": (lambda _: b"MATLAB 5.0 MAT-file".ljust(128), "a MATLAB file (.mat)", "Flowers-102"),
    "x.db": (database, "an SQLite database", ".parquet file"),
    "x.pdf": (lambda _: b"%PDF-1.4\n", "a PDF", "give a folder of images"),
    "x.dcm": (lambda _: bytes(128) + b"DICM" + bytes(9), "a DICOM picture", "save images as PNG or JPEG"),
    "x.heic": (lambda _: b"\0\0\0\x18ftypheic" + bytes(99), "a film or a HEIC picture", "save images as PNG"),
    "x.html": (lambda _: b"\n<!DOCTYPE html><html>404</html>", "a web page (a download that failed?)", "download it"),
    "x.svg": (lambda _: b"<svg width='9'/>", "a drawing (SVG)", "save images as PNG"),
    "lfs.jpg": (lambda _: GIT_LFS, "a pointer of Git LFS", "git lfs pull"),
    "x.yaml": (lambda _: b"- a\n- b\n", "a YAML text", "a config is the first argument: fastlg train CONFIG data"),
    "x.txt": (lambda _: b"hello\nyou\n", "a text", "give a folder of images"),
    "empty": (lambda _: b"", "an empty file", "give a folder of images, one folder per class, or a .parquet or .beton"),
    "x.bin": (
        lambda _: bytes(range(256)) * 20,
        "",
        "a single file must be .parquet or .beton; give a folder of images",
    ),
}
OF_TEXTS = {  # what a config's line says of a file that may be mended
    "x.yaml": "holds a list",
    "x.txt": "holds a text",
    "empty": "is empty: data.source is missing",
    "x.bin": "byte 128 is not UTF-8",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_no_data_and_no_config_is_called_what_it_is(name, tmp_path, fastlg):
    make, what, fix = KINDS[name]
    path = tmp_path / name
    path.write_bytes(make(tmp_path))
    assert what in kind_of_file(path).what
    line = refusal(fastlg("prepare", path, tmp_path / "out"))
    assert what in line and fix in line and "a single file must be .parquet or .beton" in line, line
    line = refusal(fastlg("train", path, "--dry-run"))
    wanted = OF_TEXTS.get(name, "not a config; give a YAML file or a shipped config's name")
    assert str(path) in line and wanted in line and (name in OF_TEXTS or what in line), line


def refusal(result) -> str:
    refused(result)
    return result[2]


# what lies in a folder -> what the line about the folder says
FOLDERS = {
    "nothing": ({}, "the folder is empty"),
    "an archive": ({"m.npz": npz(a=STACK)}, "only m.npz (a NumPy archive (.npz) of a 4x8x9x3 uint8); save its images"),
    "images alone": ({"a.png": png(0), "b.png": png(1)}, "only images without a folder for each class (a.png)"),
    "pickles": (
        {"data_batch_1": pickle.dumps(1, 2), "meta": b""},
        "data_batch_1 (a Python pickle) and the like; write",
    ),
    "a run": ({"config.yaml": b"", "checkpoints/last.pt": b""}, "it is a run folder, which fastlg eval takes"),
    "Arrow": (
        {"train/0.arrow": b"\xff\xff\xff\xff"},
        "no class folders; only 0.arrow (an Arrow file (of save_to_disk))",
    ),
    "splits of images": ({"train/a.png": png(0), "test/b.png": png(0)}, "named like splits hold images without class"),
    "empty splits": ({"train/.x": b"", "test/.x": b""}, "no class folders; it is empty; expected one folder"),
    "arrays for classes": ({"cat/a.npy": b"\x93NUMPY", "dog/b.npy": b"\x93NUMPY"}, "only a.npy (a NumPy array (.npy))"),
    "empty parquet": ({"train.parquet": b""}, "train.parquet: not a readable parquet file (it is an empty file)"),
    "no parquet": (
        {"x.parquet": b"a,b\n1,2\n"},
        "(it is a table of text (CSV) with the columns a, b); sort the images",
    ),
    "a pointer": (
        {"x.parquet": GIT_LFS},
        "(it is a pointer of Git LFS, not the file itself); fetch it with git lfs pull",
    ),
    "a page": ({"x.parquet": b"<html>"}, "(it is a web page (a download that failed?)); download it again"),
    "packed": ({"a.zip": zip_of("x")}, "only a.zip (a zip archive of 1 file); unpack it"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_no_dataset_is_called_what_it_holds(case, tmp_path, fastlg):
    files, wanted = FOLDERS[case]
    root = tmp_path / "d"
    root.mkdir()
    for name, data in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    assert wanted in refusal(fastlg("prepare", root, tmp_path / "out"))
    line = refusal(fastlg("train", root, "--dry-run"))
    instead = f"is a folder; {INSTEAD}{root}"
    if case == "a run":
        instead = f"is a folder; give the config of the run that it holds, {root}/config.yaml"
    assert instead in line, line


@pytest.mark.parametrize(
    "columns", [{"a": [1, 2], "b": ["x", "y"]}, {"image": ["a.png", "b.png"], "label": [0, 1]}, {"label": [0, 1]}]
)
def test_a_table_without_images_says_so_before_it_asks_for_labels(columns, tmp_path):
    write_parquet(tmp_path / "x.parquet", columns)
    named = ", ".join(columns).replace(", ", r" .*, ")
    refuses(
        rf"no column of image bytes; there are {named}.*; write the images' files into a column of bytes, or give",
        str(tmp_path),
        None,
    )


def test_a_parquet_file_by_another_name_is_told_its_suffix_and_a_source_where_the_config_goes(tmp_path, fastlg):
    write_parquet(tmp_path / "x.parquet", {"image": images(0, 1), "label": [0, 1]})
    line = refusal(fastlg("train", tmp_path / "x.parquet", "--dry-run"))
    assert f"is a parquet file, not a config; {INSTEAD}{tmp_path}/x.parquet" in line
    (tmp_path / "x.parquet").rename(tmp_path / "x")
    refuses("x is a parquet file: .* give its name the suffix .parquet", str(tmp_path / "x"), None)
    for source in ("torchvision:CIFAR10", "hf://a/b"):
        line = refusal(fastlg("train", source, "--dry-run"))
        assert f"is a source of images; images go beside a config: fastlg train CONFIG data.source={source}" in line


def test_texts_longer_than_what_is_looked_at_are_texts(tmp_path):
    for text in ("é" * LOOKED_AT, "a," * LOOKED_AT, "x\n" * LOOKED_AT, json.dumps(["é" * 9] * LOOKED_AT)):
        (tmp_path / "x").write_text(text, encoding="utf-8")
        assert kind_of_file(tmp_path / "x").what in ("a text", "JSON")
    rows = "\n".join(f"{i}.png,{i % 3}" for i in range(LOOKED_AT))
    (tmp_path / "x").write_text(f"file,label\n{rows}")
    assert "CSV" in kind_of_file(tmp_path / "x").what


def test_what_cannot_be_read_is_of_no_known_kind_and_headers_are_no_matter(tmp_path):
    assert kind_of_file(tmp_path).what == kind_of_file(tmp_path / "nothing").what == ""
    for damage in (
        b"\x93NUMPY",
        b"\x93NUMPY\x01\0\xff\xff{",
        b"\x93NUMPY\x02\0\xff\xff\xff\xff",
        b"\x93NUMPY\x01\0\x08\0[[[[[[[[",
    ):
        (tmp_path / "x").write_bytes(damage)
        assert kind_of_file(tmp_path / "x").what == "a NumPy array (.npy)"
    for data in (b"PK\x03\x04", b"PK\x05\x06" + bytes(18)):
        (tmp_path / "x").write_bytes(data)
        assert "zip archive" in kind_of_file(tmp_path / "x").what


def test_a_good_folder_beside_other_files_is_still_read(tmp_path, fastlg):
    for i in range(8):
        save(tmp_path / "d" / "ab"[i % 2] / f"{i}.png", i)
    (tmp_path / "d" / "x.npz").write_bytes(npz(a=STACK))
    (tmp_path / "d" / "config.yaml").write_text("x: 1")
    status, out, err = fastlg("prepare", tmp_path / "d", tmp_path / "out", "--holdout", "0.25")
    assert status == 0 and "2 classes (a, b)" in out, err
