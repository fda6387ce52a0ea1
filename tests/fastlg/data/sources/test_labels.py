"""Labels of every form and source become the right class, or are refused with the row and the fix."""

from __future__ import annotations

import datetime
import json
import logging
from decimal import Decimal

import numpy as np
import pytest
from source_cases import FEATURES, images, png, refuses, save, write_parquet
from test_sources_arrays import write_idx

from fastlg.data.sources.choose import open_splits

CLASSES = FEATURES["label"]["names"]  # dog, cat, owl


def named(names) -> dict:
    return {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}


# what a parquet file's label column holds -> the class names of its rows
READ = {
    "numbers": ([0, 1, 2, 1], None, ["0", "1", "2", "1"]),
    "text": (["owl", "cat", "cat"], None, ["owl", "cat", "cat"]),
    "bytes": ([b"owl", b"cat"], None, ["owl", "cat"]),
    "truth values": ([True, False, True], None, ["True", "False", "True"]),
    "whole floats": ([1.0, 0.0, 1.0], None, ["1", "0", "1"]),
    "decimals": ([Decimal(1), Decimal(0)], None, ["1", "0"]),
    "one-element lists": ([[1], [0], [1]], None, ["1", "0", "1"]),
    "one-element lists of text": ([["b"], ["a"]], None, ["b", "a"]),
    "from 1": ([1, 2, 3, 1], None, ["1", "2", "3", "1"]),
    "with gaps": ([5, 7, 5], None, ["5", "7", "5"]),
    "large": ([700_000, 800_000] * 11, None, ["700000", "800000"] * 11),
    "uint64": (np.array([3, 1], np.uint64), None, ["3", "1"]),
    "named": ([2, 0, 1], CLASSES, ["owl", "dog", "cat"]),
    "named truth values": ([True, False], ["ham", "spam"], ["spam", "ham"]),
    "named whole floats": ([1.0, 0.0], ["ham", "spam"], ["spam", "ham"]),
    "named by text": (["owl", "dog"], CLASSES, ["owl", "dog"]),
    "names of older files": ([1, 0], {"0": "ham", "1": "spam"}, ["spam", "ham"]),
    "two Unicode forms": (["cafe\u0301", "caf\u00e9", "tea"], None, ["caf\u00e9", "caf\u00e9", "tea"]),
    "names with an empty class": ([0, 1, 0], CLASSES, ["dog", "cat", "dog"]),
}


def write(path, values, names=None) -> str:
    features = None if names is None else named(names)
    write_parquet(path, {"image": images(*range(len(values))), "label": values}, features, row_group=5)
    return str(path)


@pytest.mark.parametrize("case", READ)
def test_every_form_of_label_is_the_class_it_stands_for(case, tmp_path):
    values, names, wanted = READ[case]
    source = open_splits(write(tmp_path / "x.parquet", values, names), ("train",))["train"]
    assert [source.class_names[label] for label in source.labels] == wanted
    if names is None:
        assert set(source.class_names) >= set(wanted) and len(source.class_names) <= max(2, len(set(wanted)))


REFUSED = {
    "fractions": ([0.5, 1.0], None, "x.parquet row 0: label=0.5 is no class label, which is a whole number"),
    "not a number": ([1.0, float("nan")], None, "row 1: label=nan is no class label"),
    "infinite": ([1.0, float("inf")], None, "row 1: label=inf is no class label"),
    "beyond all numbers": ([1.0, 1e300], None, "is no class but an id"),
    "null": ([0, None, 1], None, "row 1: label=None is no class label"),
    "all null": ([None, None], None, "row 0: label=None is no class label"),
    "empty text": (["cat", "  "], None, "row 1: label='  ' is no class label"),
    "bytes that are no UTF-8": ([b"tea", b"caf\xe9"], None, r"row 1: label=b'caf.xe9' is no .*not UTF-8; write text, "),
    "lists of such bytes": ([[b"tea"], [b"caf\xe9"]], None, r"row 1: label=b'caf.xe9' is no class label"),
    "such bytes beside names": ([b"dog", b"caf\xe9"], CLASSES, r"row 1: label=b'caf.xe9' is no class label"),
    "UTF-16": (["cat".encode("utf-16"), b"dog"], None, "row 0: label=b.* not UTF-8"),
    "negative": ([0, -1, 1], None, "label -1 of x.parquet row 1 is no class.*without a label"),
    "lists": ([[0, 1], [1]], None, "row 0: its label is a list of 2 values"),
    "empty lists": ([[0], []], None, "row 1: its label is a list of 0 values"),
    "null lists": ([[0], None], None, "row 1: its label is a list of 0 values"),
    "structs": ([{"id": 1}, {"id": 0}], None, "column 'label' holds struct<id: int64>"),
    "lists of lists": ([[[0]], [[1]]], None, "column 'label' holds list"),
    "times": ([datetime.datetime(2020, 1, 1)] * 2, None, "column 'label' holds timestamp"),
    "billions": ([0, 10**9], None, "label 1000000000 of x.parquet row 1 is no class but an id"),
    "all of uint64": (np.array([0, 2**64 - 1], np.uint64), None, "label 18446744073709551615 .* is no class but an id"),
    "ids": ([0, 3, 7, 900_000], None, "4 different labels for 4 images .*these are ids, not classes"),
    "row numbers": (list(range(30)), None, "30 different labels for 30 images"),
    "captions": ([f"a photo of {i}" for i in range(30)], None, "30 different labels for 30 images"),
    "nearly ids": ([*range(29), 0], None, "29 different labels for 30 images"),
    "beyond the names": ([0, 3, 1], CLASSES, "label 3 of x.parquet row 1 is out of range.* 0 to 2"),
    "text beyond the names": (
        ["dog", "elk"],
        CLASSES,
        "row 1: label='elk' is no class label: there are .*dog, cat, owl",
    ),
    "a name twice": ([0, 1], ["cat", "cat"], "class 'cat' is there twice"),
    "a name in two forms": ([0, 1], ["cafe\u0301", "caf\u00e9"], "is there twice .in two Unicode forms"),
    "names that are none": ([0, 1], [["cat"], {}], "class names of column 'label'.* no list of names"),
    "no names": ([0, 1], [], "class names of column 'label'.* no list of names"),
    "a number for names": ([0, 1], 7, "class names of column 'label'.* no list of names"),
    "one class": ([1, 1], None, "all 2 images are of one class .'1'"),
}


@pytest.mark.parametrize("wrapped", [lambda label: [label], lambda label: {"_type": "Sequence", "feature": label}])
def test_names_of_one_element_lists_are_those_of_their_elements(tmp_path, wrapped):
    features = {"image": {"_type": "Image"}, "label": wrapped({"_type": "ClassLabel", "names": ["ham", "spam"]})}
    write_parquet(tmp_path / "x.parquet", {"image": images(0, 1), "label": [[1], [0]]}, features)
    source = open_splits(str(tmp_path / "x.parquet"), ("train",))["train"]
    assert source.class_names == ["ham", "spam"] and source.labels.tolist() == [1, 0]


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_label_is_refused(case, tmp_path):
    values, names, message = REFUSED[case]
    refuses(message, write(tmp_path / "x.parquet", values, names), "train")


@pytest.mark.parametrize("kind", ["binary", "large_binary", "string", "large_string"])
def test_bytes_that_are_no_utf8_are_refused_in_every_column_type(kind, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    labels = pa.array([b"tea", "né".encode(), b"caf\xe9", b"tea"], getattr(pa, kind.replace("string", "binary"))())
    made = pa.Array.from_buffers(getattr(pa, kind)(), 4, labels.buffers())  # as a writer may that checks nothing
    for column in (made, made.dictionary_encode()):
        pq.write_table(pa.table({"image": images(0, 1, 2, 3), "label": column}), tmp_path / "x.parquet")
        refuses(r"row 2: label=b'caf.xe9' is no class label: .*UTF-8", str(tmp_path / "x.parquet"), "train")
    good = pa.table({"image": images(0, 1), "label": made[:2]})
    pq.write_table(good, tmp_path / "x.parquet")
    assert open_splits(str(tmp_path / "x.parquet"), ("train",))["train"].class_names == ["né", "tea"]


@pytest.mark.parametrize(
    "metadata",
    [b"", b"{", b"[]", b"null", b"7", b'{"info": 3}', b'{"info": {"features": [1]}}', b"\xff\xfe", b"[" * 100_000],
)
def test_odd_metadata_is_said_and_numbers_are_the_names(metadata, tmp_path, caplog):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": images(0, 1), "label": [1, 0]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "x.parquet")
    with caplog.at_level(logging.INFO):
        source = open_splits(str(tmp_path / "x.parquet"), ("train",))["train"]
    assert source.class_names == ["0", "1"] and source.labels.tolist() == [1, 0]
    assert not metadata or "metadata cannot be read and is ignored" in caplog.text


def test_files_that_list_the_classes_differently_are_matched_by_name(tmp_path, caplog):
    write(tmp_path / "train-0.parquet", [0, 1, 0, 1], ["cat", "dog"])
    write(tmp_path / "train-1.parquet", [0, 1, 0], ["dog", "cat"])
    write(tmp_path / "train-2.parquet", [0, 1], ["owl", "cat"])
    write(tmp_path / "test-0.parquet", [0, 0], ["dog"])
    with caplog.at_level(logging.INFO):
        found = open_splits(str(tmp_path))
    train, test = found["train"], found["test"]
    wanted = ["cat", "dog", "cat", "dog", "dog", "cat", "dog", "owl", "cat"]
    assert [train.class_names[label] for label in train.labels] == wanted
    assert [test.class_names[label] for label in test.labels] == ["dog", "dog"]
    assert (
        "list the classes differently, matched by name" in caplog.text and "no test image: 'cat', 'owl'" in caplog.text
    )
    write(tmp_path / "train-3.parquet", [0, 1])
    refuses("number their classes without naming them", str(tmp_path), None)


def test_columns_with_one_name_are_refused_where_they_matter(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = [("image", images(0, 1)), ("label", [0, 1]), ("extra", [1, 1]), ("extra", [2, 2])]

    def write_columns(columns):
        arrays, names = [pa.array(values) for _, values in columns], [name for name, _ in columns]
        pq.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "x.parquet")

    write_columns(columns)
    assert open_splits(str(tmp_path), ("train",))["train"].labels.tolist() == [0, 1]
    write_columns([*columns, ("label", [1, 0])])
    refuses("2 columns are named 'label'; rename", str(tmp_path), "train")
    write_columns([*columns, ("image", images(2, 3))])
    refuses("2 columns are named 'image'; rename", str(tmp_path), "train")


def test_labels_of_chaoyangs_lists_are_whole_and_of_its_four_classes(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", i)

    def write_lists(labels, names=("0.png", "1.png", "2.png")):
        rows = [{"name": name, "label": label} for name, label in zip(names, labels, strict=True)]
        for split in ("train", "test"):
            (tmp_path / f"{split}.json").write_text(json.dumps(rows))

    write_lists([0, 3.0, 1])
    assert open_splits(str(tmp_path))["train"].labels.tolist() == [0, 3, 1]
    for label, message in [
        (1.7, "train.json entry 1: label=1.7 is no class label"),
        (4, "label 4 of .*train.json entry 1 is out of range.* 0 to 3"),
        (10**30, "entry 1 is out of range"),
        (-1, "label -1 of .*entry 1"),
        (None, "label=None"),
        ({}, "label={}"),
        ("x", "label='x' is no class label among whole numbers"),
    ]:
        write_lists([0, label, 1])
        refuses(message, str(tmp_path), None)
    for name in ("../x.png", "/dev/zero", "..", "a/../../x.png", "", "nul\0.png", "missing.png"):
        write_lists([0, 1, 2], ("0.png", name, "2.png"))
        refuses("leads out of the folder|is listed but missing", str(tmp_path), None)
    write_lists([0, 1, 2], ("0.png", 7, "2.png"))
    refuses("a name is no text", str(tmp_path), None)


@pytest.mark.parametrize(
    ("labels", "ids", "message"),
    [
        ([1.0, 2.0, 1.0, 2.0], [2.0, 1.0], None),
        ([1.0, 1.5, 1.0, 2.0], [1, 2], "imagelabels.mat: 1.5 where whole numbers"),
        ([1, 0, 1, 2], [1, 2], "imagelabels.mat: 0 where whole numbers from 1"),
        ([1.0, np.nan, 1.0, 2.0], [1, 2], "imagelabels.mat: nan where"),
        ([1, 10**9, 1, 2], [1, 2], "imagelabels.mat: 1000000000 where"),
        ([1, 2, 1, 2], [1.5, 2.0], "setid.mat: 1.5 where"),
        ([1, 2, 1, 2], [1, 5], "setid.mat: 5 where whole numbers from 1 to 4"),
        ([], [1], "imagelabels.mat: nothing where"),
    ],
)
def test_numbers_in_flowers_files_are_whole(labels, ids, message, tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([labels])})
    savemat(tmp_path / "setid.mat", {"trnid": np.array([ids]), "valid": [[4]], "tstid": [[3, 2]]})
    for i in range(1, 5):
        save(tmp_path / "jpg" / f"image_{i:05d}.jpg", i)
    if message:
        refuses(message, str(tmp_path), None)
    else:
        assert open_splits(str(tmp_path))["train"].labels.tolist() == [1, 0, 1]


def test_idx_labels_from_1_make_no_empty_class(tmp_path):
    for split, labels in (("train", [1, 3, 2, 3]), ("t10k", [3, 1])):
        write_idx(tmp_path / f"{split}-images-idx3-ubyte", np.zeros((len(labels), 4, 5), np.uint8))
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", np.array(labels, np.uint8))
    found = open_splits(str(tmp_path))
    assert found["train"].class_names == ["1", "2", "3"] and found["train"].labels.tolist() == [0, 2, 1, 2]
    assert found["test"].labels.tolist() == [2, 0]


def test_a_path_column_stays_in_the_folder_of_the_file(tmp_path):
    save(tmp_path / "data" / "in.png", 3)
    save(tmp_path / "out.png", 4)
    (tmp_path / "data" / "dev.png").symlink_to("/dev/zero")
    paths = ["in.png", "../out.png", str(tmp_path / "out.png"), "/dev/zero", "dev.png", "x/../in.png", "nul\0"]
    cells = [{"bytes": None, "path": path} for path in paths]
    write_parquet(tmp_path / "data" / "x.parquet", {"image": cells, "label": [0, 1, 0, 1, 0, 1, 0]})
    source = open_splits(str(tmp_path / "data" / "x.parquet"), ("train",))["train"]
    for row, message in [
        (1, "leads out of the folder"),
        (2, "leads out of the folder"),
        (3, "leads out of the folder"),
        (4, "a device, not a file"),
        (6, "leads out of the folder"),
    ]:
        with pytest.raises(Exception, match=rf"row {row} .*: .*{message}") as caught:
            source.read(row)
        assert type(caught.value).__name__ == "BadImage"
    assert source.read(0) == source.read(5) == png(3)
