"""Altered bytes of every file format that is read: one line or images, never a traceback; and never other images than
those that were written, where the format keeps a checksum."""

from __future__ import annotations

import gzip
import io
import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from source_cases import FEATURES, images, picture, png, save, write_parquet

from fastlg.data.sources.choose import open_splits
from fastlg.data.store.beton_write import write_beton
from fastlg.data.store.decode import BadImage, decode_image
from fastlg.data.store.make import open_store, prepare
from fastlg.data.store.store import read_manifest
from fastlg.errors import UserError

SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
fuzzed = settings(max_examples=60, deadline=None, suppress_health_check=SLOW, derandomize=True, database=None)


@st.composite
def alterations(draw) -> Callable[[bytes], bytes]:
    """A function that cuts bytes short, overwrites, inserts or removes some, at places given as shares of the length;
    many files keep what matters in their first and last bytes."""
    places = st.one_of(st.floats(0, 1), st.integers(0, 200).map(lambda i: i / 20_000), st.just(1.0))
    edits = draw(
        st.lists(
            st.tuples(
                st.sampled_from(("cut", "set", "set", "set", "insert", "remove")),
                places,
                st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from((b"\xff" * 8, b"\0" * 8, b"\x7f\xff"))),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def alter(data: bytes) -> bytes:
        for kind, share, new in edits:
            at = min(int(share * len(data)), max(len(data) - 1, 0))
            if kind == "cut":
                data = data[:at]
            else:
                rest = data[at:] if kind == "insert" else data[at + len(new) :]
                data = data[:at] + (b"" if kind == "remove" else new) + rest
        return data

    return alter


def outcome(root: Path) -> list | None:
    """[(class, pixels)] of all images, or None where they are refused by one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about damaged files
            source = open_splits(str(root), ("train",))["train"]
            names = [source.class_names[label] for label in source.labels]
            return [(name, decode_image(source.read(i), source.name(i)).tobytes()) for i, name in enumerate(names)]
    except UserError as error:
        line = str(error)
        assert "\n" not in line and len(line) < 2000 and (isinstance(error, BadImage) or ";" in line), line
        return None


def idx(root: Path, ending: str) -> Path:
    pixels = np.stack([picture(i)[..., 0] for i in range(3)])
    for kind, array in (("images-idx3", pixels), ("labels-idx1", np.array([0, 2, 1], np.uint8))):
        data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        (root / f"train-{kind}-ubyte{ending}").write_bytes(gzip.compress(data) if ending else data)
    return root / f"train-images-idx3-ubyte{ending}"


def idx_labels(root: Path) -> Path:
    idx(root, "")
    return root / "train-labels-idx1-ubyte"


def flowers(root: Path, altered: str, compressed: bool) -> Path:
    savemat = pytest.importorskip("scipy.io").savemat
    savemat(root / "imagelabels.mat", {"labels": [[1, 2, 1, 2]]}, do_compression=compressed)
    sets = {"trnid": [[1, 2]], "valid": [[3]], "tstid": [[4]]}
    savemat(root / "setid.mat", {name: np.array(ids) for name, ids in sets.items()}, do_compression=compressed)
    for i in range(1, 5):
        save(root / "jpg" / f"image_{i:05d}.jpg", i)
    return root / altered


def chaoyang(root: Path) -> Path:
    for i in range(3):
        save(root / f"{i}.png", i)
    for split in ("train", "test"):
        rows = [{"name": f"{i}.png", "label": i} for i in range(3)]
        (root / f"{split}.json").write_text(json.dumps(rows))
    return root / "train.json"


def tiny_imagenet(root: Path) -> Path:
    for name in ("a/1", "b/2"):
        save(root / "train" / f"{name}.png", 1)
    save(root / "val" / "images" / "v.png", 2)
    (root / "val" / "val_annotations.txt").write_text("v.png\ta\t0\t0\t1\t1\n")
    return root / "val" / "val_annotations.txt"


def parquet(root: Path, compression: str, labels: list) -> Path:
    features = FEATURES if isinstance(labels[0], int) else None
    write_parquet(
        root / "train.parquet", {"img": images(0, 1, 2, 3), "label": labels}, features, compression=compression
    )
    return root / "train.parquet"


def beton(root: Path, mode: str) -> Path:
    pictures = root.parent / f"{root.name} pictures"
    for split in ("train", "test"):
        for i in range(2):
            save(pictures / split / "ab"[i] / f"{i}.png", i)
    store = open_store(prepare(str(pictures), root.parent / f"{root.name} store", workers=1), "train")
    write_beton(store, root / "train.beton", mode=mode)
    return root / "train.beton"


# format -> (makes the files and names the one to alter, whether altered content is always found)
FORMATS = {
    "idx": (lambda root: idx(root, ""), False),
    "idx labels": (idx_labels, False),
    "idx.gz": (lambda root: idx(root, ".gz"), True),
    "mat sets": (lambda root: flowers(root, "setid.mat", False), False),
    "mat labels": (lambda root: flowers(root, "imagelabels.mat", False), False),
    "mat compressed": (lambda root: flowers(root, "imagelabels.mat", True), False),
    "json": (chaoyang, False),
    "annotations": (tiny_imagenet, False),
    "parquet": (lambda root: parquet(root, "none", [0, 1, 2, 0]), False),
    "parquet snappy": (lambda root: parquet(root, "snappy", ["cat", "dog", "cat", "dog"]), False),
    "parquet zstd lists": (lambda root: parquet(root, "zstd", [[0], [1], [1], [0]]), False),
    "beton raw": (lambda root: beton(root, "raw"), True),
    "beton jpeg": (lambda root: beton(root, "jpeg"), True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_altered_files_are_refused_in_one_line_or_read_whole(name, tmp_path):
    make, is_checked = FORMATS[name]
    root = tmp_path / "data"
    root.mkdir()
    file = make(root)
    whole, wanted = file.read_bytes(), outcome(root)
    assert wanted is not None

    @given(alterations())
    @fuzzed
    def check(alter):
        file.write_bytes(alter(whole))
        for note in root.glob("*.checked.json"):
            note.unlink()
        found = outcome(root)
        assert found is None or found == wanted or not is_checked

    check()


def encoded(format: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(3, 21, 17)).save(file, format, **options)
    return file.getvalue()


PICTURES = {
    "PNG": encoded("PNG"),
    "PNG palette": (lambda f: (Image.fromarray(picture(3)).quantize(9).save(f, "PNG"), f.getvalue())[1])(io.BytesIO()),
    "JPEG": encoded("JPEG"),
    "WEBP": encoded("WEBP"),
    "GIF": encoded("GIF"),
    "BMP": encoded("BMP"),
    "TIFF": encoded("TIFF", compression="tiff_lzw"),
    "PPM": encoded("PPM"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_altered_images_are_refused_by_name_or_decoded(name):
    whole = PICTURES[name]
    wanted = decode_image(whole, "x")

    @given(alterations())
    @fuzzed
    def check(alter):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = decode_image(alter(whole), "x")
        except BadImage as error:
            assert str(error).startswith("x: ") and "\n" not in str(error)
            return
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
        assert not name.startswith("PNG") or np.array_equal(found, wanted)

    check()


@pytest.mark.parametrize("file", ["manifest.json", "train/offsets.npy", "train/labels.npy", "train/pixels.bin"])
def test_altered_stores_are_refused_or_the_same(file, tmp_path):
    for split in ("train", "test"):
        for i in range(2):
            save(tmp_path / "data" / split / "ab"[i] / f"{i}.png", i)
    path = prepare(str(tmp_path / "data"), tmp_path / "store", workers=1)
    whole, fingerprint = (path / file).read_bytes(), open_store(path, "train").fingerprint
    manifest = read_manifest(path)

    @given(alterations())
    @fuzzed
    def check(alter):
        (path / file).write_bytes(alter(whole))
        try:
            store = open_store(path, "train", verify=True)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert store.fingerprint == fingerprint and store.manifest == manifest

    check()


def test_pages_of_parquet_files_with_checksums_are_never_read_altered(tmp_path):
    file = tmp_path / "train.parquet"
    columns = {"img": [{"bytes": png(i), "path": None} for i in range(4)], "label": [0, 1, 2, 0]}
    write_parquet(file, columns, FEATURES, compression="none", write_page_checksum=True, use_dictionary=False)
    whole, wanted = file.read_bytes(), outcome(tmp_path)
    values = np.array([0, 1], np.int64).tobytes()  # the labels of the first row group, as they lie in the page
    at = whole.index(values) + 8
    for new in (b"\2", b"\0", b"\xff"):
        file.write_bytes(whole[:at] + new + whole[at + 1 :])
        assert wanted is not None and outcome(tmp_path) is None
