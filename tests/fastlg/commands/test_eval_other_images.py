"""``fastlg eval`` on other images: theirs of the test split or all of them, classes by name, and never a training split
demanded nor the run's holdout carried over."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from source_cases import write_parquet

from fastlg.cli import main  # noqa: F401  (imported once, before the working folder changes)
from fastlg.data.store.make import prepare

COLOURS = {"blue": 2, "green": 1, "red": 0}


def tinted(colour: str, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 120, (20, 24, 3))
    pixels[..., COLOURS[colour]] += 100
    return Image.fromarray(pixels.astype(np.uint8))


def write(root, *colours: str, each: int = 4):
    for colour in colours:
        (root / colour).mkdir(parents=True)
        for i in range(each):
            tinted(colour, i).save(root / colour / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(shared_project):
    """A run that tells the three colours apart, trained with a holdout of its plain class folders."""
    from fastlg.config import load_config
    from fastlg.train import train

    write(shared_project / "own", "blue", "green", "red", each=10)
    overrides = ["teacher=null", "run.name=r", f"run.root={shared_project / 'runs'}", "data.holdout=0.3"]
    overrides += [f"data.source={shared_project / 'own'}", f"data.store={shared_project / 'stores'}"]
    overrides += [
        "optim.epochs=25",
        "optim.lr=0.003",
        "optim.global_batch_size=21",
        "augment.rand_augment=null",
        "log.eval_epochs=25",
    ]
    train(load_config(str(shared_project / "student.yaml"), overrides))
    return shared_project / "runs" / "r"


def write_shuffled_parquet(path, colours):
    """Labels are numbers of ``colours``, which need not be in the order of the run's classes."""
    cells = []
    for i in range(12):
        file = io.BytesIO()
        tinted(colours[i % len(colours)], i).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(colours)}}
    write_parquet(path, {"image": cells, "label": [i % len(colours) for i in range(12)]}, features)
    return path


def make_store(root):
    """Of two of the classes, in another order than the run's."""
    write_shuffled_parquet(root / "raw" / "train.parquet", ["red", "blue"])
    write_shuffled_parquet(root / "raw" / "test.parquet", ["red", "blue"])
    return prepare(str(root / "raw"), root / "store", workers=1)


# what is measured -> (number of images, fragments of what is said)
MEASURED = {
    "a test split alone": (lambda root: write(root / "test", "blue", "green", "red").parent, 12, ["(test/)"]),
    "a test split in other words": (lambda root: write(root / "Testing", "blue", "red").parent, 8, ["(Testing/)"]),
    "validation alone": (lambda root: write(root / "val", "blue", "green").parent, 8, ["(val/)"]),
    "training images of all classes, test images of one": (
        lambda root: write(write(root / "train", "blue", "green", "red").parent / "test", "red").parent,
        4,
        ["(test/)", "2 of the run's 3 classes have no image: 'blue', 'green'"],
    ),
    "plain class folders": (
        lambda root: write(root / "x", "blue", "green", "red"),
        12,
        ["3 classes (blue, green, red); 12 images, 4 a class"],
    ),
    "one class of three": (lambda root: write(root / "x", "red"), 4, ["2 of the run's 3 classes have no image"]),
    "a parquet file, other order": (lambda root: write_shuffled_parquet(root / "x.parquet", ["red", "blue"]), 12, []),
    "a store of some classes, other order": (make_store, 12, ["a store", "1 of the run's 3 classes"]),
}


@pytest.mark.parametrize("case", MEASURED)
def test_other_images_are_measured_by_class_name(case, trained, tmp_path, fastlg):
    make, count, said = MEASURED[case]
    status, out, err = fastlg("eval", trained, f"data.source={make(tmp_path)}", f"data.store={tmp_path / 's'}")
    assert status == 0, err
    assert f"over {count} images" in out and "top-1 100.00 %" in out, out  # labels put on other classes would not be
    for word in said:
        assert word in out, out


def test_training_images_beside_the_test_split_are_neither_read_nor_needed(trained, tmp_path, fastlg):
    write(tmp_path / "d" / "test", "blue", "green")
    (tmp_path / "d" / "train" / "purple").mkdir(parents=True)
    (tmp_path / "d" / "train" / "purple" / "1.png").write_bytes(b"no image")
    status, out, err = fastlg("eval", trained, f"data.source={tmp_path / 'd'}", f"data.store={tmp_path / 's'}")
    assert status == 0 and "over 8 images" in out, err


def test_the_runs_own_images_are_measured_as_they_were_held_out(trained, shared_project, tmp_path, fastlg):
    for extra in ((), (f"data.source={shared_project / 'own'}",)):
        status, out, err = fastlg("eval", trained, *extra)
        assert status == 0 and "over 9 images" in out, err
    status, _, err = fastlg("eval", trained, "data.holdout=0.5")
    assert status == 2 and "data.holdout=0.3 of the run's own images" in err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda root: write(root / "train", "blue", "red").parent,
            "no test split but train/ alone; add one (a folder test/, or test-*.parquet) or give images without splits",
        ),
        (
            lambda root: (
                write(root / "x", "blue", "red").rename(root / "y")
                and shutil.copytree(root / "y" / "red", root / "y" / "purple").parent
            ),
            "'purple' is none of the 3 classes",
        ),
        (lambda root: root / "missing", "no such file or folder"),
        (lambda root: write_shuffled_parquet(root / "x.parquet", ["red", "blue"]).parent / "y.parquet", "no such file"),
    ],
)
def test_what_cannot_be_measured_is_refused(make, message, trained, tmp_path, fastlg):
    status, _, err = fastlg("eval", trained, f"data.source={make(tmp_path)}", f"data.store={tmp_path / 's'}")
    assert status == 2 and message in err and len(err.splitlines()) == 1, err
