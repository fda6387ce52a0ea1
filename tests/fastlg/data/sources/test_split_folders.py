"""Folders and files named like splits are splits, whatever the spelling; what is ambiguous is refused; what is left out
is told."""

from __future__ import annotations

import logging
import os
import unicodedata

import numpy as np
import pytest
from source_cases import FEATURES, images, png, refuses, save, write_parquet

from fastlg.data.sources.choose import open_splits
from fastlg.data.sources.layout.split_names import fold_of, split_of
from fastlg.data.store.make import find_or_prepare, open_store

CAT, DOG = "cat", "dog"


@pytest.mark.parametrize(
    ("names", "split", "rank"),
    [
        (("train", "Train", "TRAINING", "train_set", "training_set", "trainset", "TrainSet"), "train", 0),
        (("seg_train", "train-images", "train2017", "cifarTrain", "cifar_train-00001-of-00002"), "train", 0),
        (("test", "Testing", "test_set", "testset", "seg_test", "TestData", "my-test-0"), "test", 0),
        (("eval", "evaluation"), "test", 1),
        (("val", "valid", "validation", "val_split", "valset", "imagenet-val"), "test", 2),
        (("dev",), "test", 3),
        (
            ("latest", "contest", "trainee", "retrain", "value", "validate_me", "cat", "train-test-split", "", "0"),
            None,
            0,
        ),
    ],
)
def test_names_say_a_split_by_whole_words(names, split, rank):
    for name in names:
        found = split_of(name)
        assert (found and found[:2]) == (split and (split, rank)), name
    assert split_of("bullet_train").is_plain is False and split_of("training_set").is_plain


@pytest.mark.parametrize(
    ("names", "number", "plain"),
    [
        (("fold1", "Fold_1", "FOLD-1", "fold 1", "1fold", "1st_fold", "fold1of5", "5fold_1", "kfold_1"), "1", True),
        (("KFold1", "k-fold-1", "cv1", "5-fold-cv-1", "train_fold1", "fold_1_test"), "1", True),
        (("fold01",), "01", True),
        (("fold_a", "foldA"), "a", True),
        (("cats_fold1", "split1", "subset_1", "partition-1"), "1", False),
        (("fold", "folds", "kfold", "cv"), "", True),
    ],
)
def test_names_say_a_fold_by_whole_words(names, number, plain):
    for name in names:
        found = fold_of(name)
        assert found and (found.number, found.is_plain) == (number, plain), name


def test_other_names_say_no_fold():
    for name in ("cat", "folder1", "folding2", "scaffold1", "twofold", "cvt3", "part1", "1", "manifold 4", ""):
        assert fold_of(name) is None, name


def tree(root, *folders: str, each: int = 3) -> str:
    """``each`` images per folder; a path that ends in a suffix is one image."""
    for seed, name in enumerate(folders):
        if name.endswith(".png"):
            save(root / name, seed)
        elif name.endswith("/"):
            (root / name).mkdir(parents=True)
        else:
            for i in range(each):
                save(root / name / f"{i}.png", 100 * seed + i)
    return str(root)


def both(train: str, test: str) -> list[str]:
    return [f"{split}/{name}" for split in (train, test) for name in (CAT, DOG)]


# (folders, training images, test images, fragments of the line that tells what was found)
READ = {
    "usual": (
        both("train", "test"),
        6,
        6,
        ("2 classes (cat, dog)", "6 train images (train/), 3 a class", "6 test images (test/), 3 a class"),
    ),
    "in other words": (both("Training", "Testing"), 6, 6, ("Training/", "Testing/")),
    "with set": (both("training_set", "test_set"), 6, 6, ("training_set/", "test_set/")),
    "with seg, and other folders": (
        [*both("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/x"],
        6,
        6,
        ("seg_train/seg_train/", "left out: folders that are no split", "seg_pred"),
    ),
    "validation alone": (both("train", "valid"), 6, 6, ("valid/",)),
    "dev alone": (both("train", "dev"), 6, 6, ("dev/",)),
    "test before val": (
        [*both("train", "test"), f"val/{CAT}", f"val/{DOG}"],
        6,
        6,
        ("left out: other splits", "(1: val)"),
    ),
    "test without labels": ([f"train/{CAT}", f"train/{DOG}", "test/1.png"], 6, None, ("left out", "(1: test)")),
    "dunder class": ([*both("train", "test"), "train/__bg__", "test/__bg__"], 9, 9, ("3 classes",)),
    "folders of tools": (
        [*both("train", "test"), "train/__MACOSX/cat"],
        6,
        6,
        ("left out: hidden", "(1: train/__MACOSX)"),
    ),
    "hidden folder": ([*both("train", "test"), "train/.old"], 6, 6, ("left out: hidden", "train/.old")),
    "hidden in a class": ([*both("train", "test"), "train/cat/.old"], 6, 6, ("left out: hidden", "cat/.old")),
    "hidden files": (
        [*both("train", "test"), "train/cat/._0.png"],
        6,
        6,
        ("left out: hidden files (1: train/cat/._0.png)"),
    ),
    "loose images": (
        [*both("train", "test"), "train/x.png", "train/y.png", "z.png"],
        6,
        6,
        ("left out: images beside the class folders (3: z.png ...)",),
    ),
    "class without test image": (
        [*both("train", "test"), "train/owl"],
        9,
        6,
        ("1 of the classes have no test image: 'owl'",),
    ),
    "empty class folder in test": ([*both("train", "test"), "train/owl", "test/owl/"], 9, 6, ("no test image: 'owl'",)),
    "train is a class": (["bus", "car", "train"], 9, None, ("train/ holds images itself and is taken for a class",)),
    "train is a class of a split": ([f"{s}/{c}" for s in ("train", "test") for c in ("bus", "train")], 6, 6, ()),
    "class that contains the word": (["bullet_train", "cat", "dog"], 9, None, ("bullet_train/ holds images itself",)),
    "subfolders": (["cat/a", "cat/b", "dog/a"], 9, None, ("9 train images, 3 to 6 a class",)),
    "one fold among other names": (["fold1", "crease", "tear"], 9, None, ("3 classes (crease, fold1, tear)",)),
    "folds among other names": (["fold1", "fold2", "tear"], 9, None, ("3 classes",)),
    "folds without numbers": (["fold", "unfold"], 6, None, ("2 classes",)),
    "splits that hold other things": (["split1/a", "split2/b"], 6, None, ("2 classes",)),
    "folds beside splits": (
        [*both("train", "test"), "fold1/cat", "fold2/cat"],
        6,
        6,
        ("left out: folders that are no",),
    ),
    "years for classes": (
        ["1/cat", "1/dog", "2/cat", "2/dog"],
        12,
        None,
        ("every one of these holds the folders cat, dog",),
    ),
    "look-alikes": (["cat", "Cat ", "dog"], 9, None, ("'Cat ' and 'cat' differ in case or spaces alone",)),
}


@pytest.mark.parametrize("case", READ)
def test_folders_are_read_as_meant_and_told_in_one_line(case, tmp_path, caplog):
    folders, train, test, told = READ[case]
    root = tree(tmp_path, *folders)
    with caplog.at_level(logging.INFO):
        found = open_splits(root, ("train",) if test is None else ("train", "test"))
    assert len(found["train"]) == train and (test is None or len(found["test"]) == test)
    if test is not None:
        assert found["train"].class_names == found["test"].class_names
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("found")]
    assert len(lines) == 1 and all(word in lines[0] for word in told), caplog.text
    for source in found.values():  # a name's folder is the class whose label it has
        for i, label in enumerate(source.labels):
            assert source.class_names[label] in source.name(i).split("/")


REFUSED = {
    "val among classes": (["cat", "dog", "val"], "val/ named like splits hold images without class folders"),
    "flat splits": (["train", "test"], "train/ named like splits hold images without class folders"),
    "flat splits with a prefix": (["pets_train", "pets_test"], "hold images without class folders"),
    "one flat split beside one folder": (["train", "cat"], "are these splits or classes"),
    "split beside class folders": (["train/cat", "train/dog", "bus", "car"], "train/ named like splits.*bus/, car/"),
    "two training folders": ([*both("train", "test"), "training/cat"], "are both the train split"),
    "two spellings": ([*both("Train", "test"), "train/cat"], "Train/, train/ are both the train split"),
    "folder around classes": (["pets/cat", "pets/dog"], "one class .'pets'.*point data.source at .*/pets or move"),
    "folder around splits": (["pets/train/cat", "pets/test/cat"], "point data.source at .*/pets or move"),
    "folder around classes of a split": (
        ["train/x/cat", "train/x/dog", "test/x/cat"],
        "point data.source at .*/train/x",
    ),
    "classes first": (["cat/train", "cat/test", "dog/train", "dog/test"], "splits inside a class"),
    "no training split": (["test/cat", "test/dog"], r"no training split but test/ alone; add one .a folder train/"),
    "folds": (
        ["fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog"],
        "fold1/, fold2/ are named like the folds.*test/CLASS",
    ),
    "folds with different classes": (["fold_0/cat", "fold_0/dog", "fold_1/cat"], "named like the folds of a cross"),
    "folds of loose images": (["Fold-1", "Fold-2", "Fold-3"], "Fold-1/, Fold-2/, Fold-3/ are named like the folds"),
    "folds of splits": (
        [f"fold{i}/{s}/{c}" for i in (1, 2) for s in ("train", "test") for c in (CAT, DOG)],
        "named like the folds.*point data.source at one of them, .*/fold1,",
    ),
    "folds in a folder": (["folds/fold1/cat", "folds/fold2/cat"], "folds: fold1/, fold2/ are named like the folds"),
    "numbers in a folder of folds": (
        ["folds/1/cat", "folds/1/dog", "folds/2/cat", "folds/2/dog"],
        "folds: 1/, 2/ are named like the folds",
    ),
    "folds in a split": (["train/fold1/cat", "train/fold2/cat", "test/cat"], "train: fold1/, fold2/ are named like"),
    "folds with a prefix": (
        ["pets_fold1/cat", "pets_fold1/dog", "pets_fold2/cat", "pets_fold2/dog"],
        "named like the folds",
    ),
    "folds beside another folder": (
        ["fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog", "samples"],
        "fold1/, fold2/ are named like the folds",
    ),
    "splits that hold the same": (["split1/cat", "split1/dog", "split2/cat", "split2/dog"], "named like the folds"),
    "folds in words of splits": (["train_fold1/cat", "test_fold1/cat", "train_fold2/cat"], "are both the train split"),
    "a class without an image": ([*both("train", "test"), "train/owl/"], "owl: no image in this class folder"),
    "empty split": (["train/"], "no class folders"),
    "class that is only tested": ([*both("train", "test"), "test/owl"], "only in test: 'owl'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_ambiguous_is_refused_with_the_fix(case, tmp_path):
    folders, message = REFUSED[case]
    refuses(message, tree(tmp_path, *folders), None)


def test_a_holdout_says_that_it_replaces_the_test_split(tmp_path, caplog):
    root = tree(tmp_path, *both("training_set", "test_set"), each=5)
    with caplog.at_level(logging.INFO):
        found = open_splits(root, holdout=0.2)
    assert "left out: the test split (test_set/), as data.holdout=0.2" in caplog.text
    names = [found[split].name(i) for split in ("train", "test") for i in range(len(found[split]))]
    assert len(names) == 10 and all(name.startswith("training_set/") for name in names)


def test_a_holdout_leaves_a_test_split_without_labels_unread(tmp_path):
    write_parquet(tmp_path / "train.parquet", {"image": images(0, 1, 2, 3), "label": [0, 1, 0, 1]})
    write_parquet(tmp_path / "test.parquet", {"image": images(4, 5), "label": [-1, -1]})
    refuses("label -1 of test.parquet row 0 .*data.holdout=0.2 tests on training images", str(tmp_path), None)
    found = open_splits(str(tmp_path), holdout=0.5)
    assert len(found["train"]) == len(found["test"]) == 2


@pytest.mark.parametrize(
    "names",
    [
        ("train_fold1", "test_fold1", "train_fold2", "test_fold2"),
        ("pets-train-fold-0", "pets-test-fold-0", "pets-train-fold-1"),
        ("train/fold1", "train/fold2", "test/0"),
        ("cv1/train", "cv2/train"),
    ],
)
def test_tables_of_several_folds_are_not_put_together(names, tmp_path):
    for name in names:
        write_parquet(tmp_path / "d" / f"{name}.parquet", {"image": images(0, 1, 2), "label": [0, 1, 0]})
    refuses(
        "are folds of a cross-validation, all of the train split|several datasets .cv1, cv2", str(tmp_path / "d"), None
    )
    for path in (tmp_path / "d").rglob("*1.parquet"):
        path.rename(path.with_suffix(".old"))
    if "cv1/train" not in names:
        assert len(open_splits(str(tmp_path / "d"), ("train",))["train"]) == 3


def test_an_option_of_tables_is_said_to_be_unused_by_folders(tmp_path, caplog):
    root = tree(tmp_path, *both("train", "test"))
    with caplog.at_level(logging.INFO):
        open_splits(root, label_column="fine_label")
    assert "data.label_column=fine_label is not used: class folders have no columns" in caplog.text


def test_one_class_name_in_two_unicode_forms_is_one_class_across_splits_and_refused_within_one(tmp_path):
    composed, split_up = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = tree(tmp_path, f"train/{composed}", "train/dog", f"test/{split_up}", "test/dog")
    found = open_splits(root)
    assert found["train"].class_names == found["test"].class_names == [composed, "dog"]
    assert found["test"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    tree(tmp_path, f"train/{split_up}")
    refuses("is there twice .in two Unicode forms", root, None)


def test_links_are_followed_by_their_own_names_and_loops_end(tmp_path):
    store = tmp_path / "annex"
    store.mkdir()
    (store / "0a1b").write_bytes(png(1))
    tree(tmp_path / "real", "train/cat", "train/dog", "test/cat", "test/dog")
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / split).symlink_to(tmp_path / "real" / split)  # split folders behind links are entered
    cat = tmp_path / "real" / "train" / "cat"
    (cat / "linked.png").symlink_to(store / "0a1b")  # judged by the link's name, not by its target's
    (cat / "up").symlink_to(tmp_path / "real" / "train")  # would bring the dogs
    (cat / "self").symlink_to(cat)
    (cat / "round.txt").symlink_to(cat / "round.txt")
    found = open_splits(str(data))
    assert len(found["train"]) == 7 and found["train"].labels.tolist() == [0] * 4 + [1] * 3
    assert bytes(found["train"].read(3)) == png(1)

    (tmp_path / "real" / "train" / "wolf").symlink_to(tmp_path / "real" / "train" / "dog")
    refuses("dog/, wolf/ are one folder under two names", str(data), None)
    (data / "test").unlink()
    (data / "test").symlink_to(data / "train")
    refuses("train/, test/ are one folder under two names", str(data), None)

    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    write_parquet(blobs / "train.parquet", {"img": images(0, 1, 2), "label": [2, 0, 1]}, FEATURES)
    (blobs / "train.parquet").rename(blobs / "0a1b2c")
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "train-0.parquet").symlink_to(blobs / "0a1b2c")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train").symlink_to(snapshot / "data")
    for place in (snapshot, snapshot / "data" / "train-0.parquet", tmp_path / "linked"):
        assert open_splits(str(place), ("train",))["train"].labels.tolist() == [2, 0, 1], place


def test_links_that_lead_nowhere_are_told_where_folders_are_expected(tmp_path, caplog):
    root = tree(tmp_path, "train/cat", "train/dog")
    for name in ("train/bird", "test"):
        (tmp_path / name).symlink_to("/nowhere")
    refuses(r"no test split but train/ alone .left out: broken links .2: test \.\.\.", root, None)


def test_two_kinds_of_data_in_one_folder_are_refused(tmp_path):
    root = tree(tmp_path, *both("train", "test"))
    (tmp_path / "old.beton").write_bytes(b"")
    refuses(r"both class folders of images .train/cat. and .beton files .old.beton.; move", root, None)
    (tmp_path / "data").mkdir()
    for name in ("a.beton", "train.parquet"):
        (tmp_path / "data" / name).write_bytes(b"")
    refuses(r"both a parquet dataset .train.parquet. and .beton files .a.beton.", str(tmp_path / "data"), None)


def test_lists_that_lie_beside_class_folders_do_not_hide_them(tmp_path):
    root = tree(tmp_path, *both("train", "test"))
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text("{}")
    assert open_splits(root)["train"].class_names == ["cat", "dog"]


def test_a_broken_link_and_a_pipe_among_images_obey_on_bad(tmp_path):
    root = tree(tmp_path / "data", *both("train", "test"))
    os.symlink("/nowhere/x.png", tmp_path / "data" / "train" / "cat" / "broken.png")
    os.mkfifo(tmp_path / "data" / "train" / "cat" / "pipe.png")
    message = r"broken.png: cannot be read \(a broken link\); train/cat/pipe.png: .*a pipe \(FIFO\), not a file"
    with pytest.raises(Exception, match=message):
        find_or_prepare(root, tmp_path / "cache", workers=1)
    store = open_store(find_or_prepare(root, tmp_path / "cache", on_bad="skip", workers=1), "train")
    assert len(store) == 6 and len(store.info["rejected"]) == 2


@pytest.mark.parametrize(
    "layout", ["cifar_{}.parquet", "{}ing/0.parquet", "x/cifar_{}/part-0.parquet", "0000_{}.PARQUET"]
)
def test_parquet_files_may_name_their_split_anywhere(tmp_path, layout):
    for split, label in (("train", [0, 1]), ("Test", [1, 0])):
        write_parquet(tmp_path / layout.format(split), {"image": images(0, 1), "label": label})
    found = open_splits(str(tmp_path))
    assert found["train"].labels.tolist() == [0, 1] and found["test"].labels.tolist() == [1, 0]


def test_parquet_files_of_two_spellings_of_a_split_are_refused_and_others_told(tmp_path, caplog):
    for name in ("train", "val", "test", "notes"):
        write_parquet(tmp_path / f"{name}.parquet", {"image": images(0, 1), "label": [0, 1]})
    with caplog.at_level(logging.INFO):
        assert len(open_splits(str(tmp_path))["test"]) == 2
    assert "files that name no split (1: notes.parquet)" in caplog.text and "(1: val.parquet)" in caplog.text
    write_parquet(tmp_path / "training.parquet", {"image": images(0, 1), "label": [0, 1]})
    refuses("are both the train split", str(tmp_path), None)


def test_classes_are_the_same_list_in_both_splits_whatever_the_source(tmp_path):
    write_parquet(tmp_path / "train.parquet", {"image": images(0, 1, 2), "label": ["owl", "cat", "ape"]})
    write_parquet(tmp_path / "test.parquet", {"image": images(3, 4), "label": ["owl", "cat"]})
    found = open_splits(str(tmp_path))
    assert found["train"].class_names == found["test"].class_names == ["ape", "cat", "owl"]
    assert np.array_equal(found["test"].labels, [2, 1])
