"""A user's own .beton files: the pixels and labels that FFCV or fastlg wrote; damage is one clear line."""

import contextlib
import io

import numpy as np
import pytest
from loader_cases import TEST_COUNT, TRAIN_COUNT, write_pictures
from PIL import Image
from source_cases import pixels, refuses

from fastlg.data.sources.choose import open_source
from fastlg.data.store.beton_write import write_beton
from fastlg.data.store.make import find_or_prepare, open_store, prepare


@pytest.fixture(scope="module")
def store_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "source")
    return prepare(str(folder / "source"), folder / "store", workers=1)


@pytest.fixture
def folder(store_path, tmp_path):
    """train.beton (raw) and test.beton (JPEG)."""
    (tmp_path / "data").mkdir()
    write_beton(open_store(store_path, "train"), tmp_path / "data" / "train.beton")
    write_beton(open_store(store_path, "test"), tmp_path / "data" / "test.beton", mode="jpeg")
    return tmp_path / "data"


def write_with_ffcv(path, fields: dict, samples: list, workers: int = 1) -> None:
    pytest.importorskip("ffcv.libffcv", reason="FFCV is not installed")
    from ffcv.writer import DatasetWriter

    with contextlib.redirect_stderr(io.StringIO()):
        DatasetWriter(str(path), fields, page_size=1 << 21, num_workers=workers).from_indexed_dataset(
            samples, chunksize=3
        )


def test_a_folder_gives_the_stores_images_and_labels_split_by_the_files_names(folder, store_path):
    train, test = open_source(str(folder), "train"), open_source(str(folder), "test")
    truth = open_store(store_path, "train"), open_store(store_path, "test")
    assert (len(train), len(test)) == (TRAIN_COUNT, TEST_COUNT)
    assert train.class_names == test.class_names == ["0", "1"]
    for source, store in zip((train, test), truth, strict=True):
        assert source.labels.tolist() == store.labels.tolist()
    assert all(np.array_equal(image, truth[0].images(i)) for i, image in enumerate(pixels(train)))
    for i, image in enumerate(pixels(test)):
        assert Image.open(io.BytesIO(test.read(i))).format == "JPEG"
        assert np.abs(image.astype(int) - truth[1].images(i)).mean() < 4, "quality 95 costs a few levels"


def test_a_store_made_of_a_beton_file_holds_its_pixels(folder, store_path, tmp_path):
    path = find_or_prepare(str(folder), tmp_path / "stores", workers=1)
    store, truth = open_store(path, "train"), open_store(store_path, "train")
    assert np.array_equal(store.pixels, truth.pixels) and np.array_equal(store.labels, truth.labels)
    assert find_or_prepare(str(folder), tmp_path / "stores") == path
    write_beton(open_store(store_path, "test"), folder / "train.beton", mode="jpeg")
    assert find_or_prepare(str(folder), tmp_path / "stores", workers=1) != path, "another file is another store"


def test_a_single_file_has_no_split_and_is_held_out_as_any_source(folder):
    file = str(folder / "train.beton")
    refuses("no test split.*data.holdout=0.2", file, "test")
    parts = [open_source(file, split, holdout=0.25) for split in ("train", "test")]
    names = [source.name(i) for source in parts for i in range(len(source))]
    assert sorted(names) == sorted(f"train.beton sample {i}" for i in range(TRAIN_COUNT))
    assert np.bincount(parts[1].labels).tolist() == [4, 2], "a quarter of 14 and of 7 images, rounded"


def test_names_as_ffcv_users_write_them_tell_the_split(folder):
    (folder / "train.beton").rename(folder / "cifar_train_500_0.50_90.beton")
    (folder / "test.beton").rename(folder / "cifar_val.beton")
    assert len(open_source(str(folder), "train")) == TRAIN_COUNT and len(open_source(str(folder), "test")) == TEST_COUNT
    (folder / "cifar_val.beton").rename(folder / "train2.beton")
    refuses("several .beton files for one split \\(cifar_train.*train2.beton\\)", str(folder), "train")
    (folder / "train2.beton").unlink()
    (folder / "cifar_train_500_0.50_90.beton").rename(folder / "flowers.beton")
    assert len(open_source(str(folder), "train")) == TRAIN_COUNT


def test_the_only_int_field_is_the_label_whatever_its_name(folder):
    file = folder / "train.beton"
    file.write_bytes(file.read_bytes().replace(b"label\0", b"kind\0\0"))
    assert len(open_source(str(file), "train")) == TRAIN_COUNT
    for option, there in (("label_column", "no int field of that name.*kind"), ("image_column", "no image field")):
        refuses(f"data.{option}=label: .*{there}", str(file), "train", **{option: "label"})


@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_files_that_several_of_ffcvs_writers_made_are_read_sample_by_sample(tmp_path, mode):
    fields = pytest.importorskip("ffcv.fields", reason="FFCV is not installed")
    ramp = Image.linear_gradient("L")  # a smooth grey picture shows the decoder's error alone
    images = [np.asarray(ramp.rotate(90 * i).resize((400 + i, 300 - 7 * i)).convert("RGB")) for i in range(17)]
    layout = {"image": fields.RGBImageField(write_mode=mode, jpeg_quality=100), "label": fields.IntField()}
    write_with_ffcv(tmp_path / "my.beton", layout, [(image, i % 5) for i, image in enumerate(images)], workers=2)
    source = open_source(str(tmp_path / "my.beton"), "train")
    assert source.labels.tolist() == [i % 5 for i in range(17)] and len(source.class_names) == 5
    for got, want in zip(pixels(source), images, strict=True):
        assert got.shape == want.shape
        assert np.abs(got.astype(int) - want).max() <= (0 if mode == "raw" else 3)


def test_among_several_fields_the_usual_names_or_the_users_count(tmp_path):
    fields = pytest.importorskip("ffcv.fields", reason="FFCV is not installed")
    light, dark = np.full((6, 9, 3), 200, np.uint8), np.full((5, 4, 3), 30, np.uint8)
    samples = [(dark, i, np.float64(i), light, 1 - i % 2) for i in range(4)]
    image, number = fields.RGBImageField(write_mode="raw"), fields.IntField()
    names = ("mask", "row", "weight", "image", "label")
    kinds = (image, number, fields.FloatField(), image, number)
    file = tmp_path / "a.beton"
    write_with_ffcv(file, dict(zip(names, kinds, strict=True)), samples)
    source = open_source(str(file), "train")
    assert source.labels.tolist() == [1, 0, 1, 0] and np.array_equal(source.read(2), light)
    other = open_source(str(file), "train", image_column="mask", label_column="row")
    assert other.labels.tolist() == [0, 1, 2, 3] and np.array_equal(other.read(2), dark)
    assert other.fingerprint() != source.fingerprint()
    refuses("data.label_column=weight: .*weight \\(float\\)", str(file), "train", label_column="weight")
    write_with_ffcv(file, dict(zip(("x", "a", "w", "y", "b"), kinds, strict=True)), samples)
    refuses("which field is the image\\? Set data.image_column to one of x, y", str(file), "train")
    refuses("which field is the label\\? Set data.label_column to one of a, b", str(file), "train", image_column="y")
    write_with_ffcv(file, {"image": image, "weight": fields.FloatField()}, [(light, 1.0)])
    refuses("no int field for the label; its fields: weight \\(float\\), image \\(image\\)", str(file), "train")


def test_numbers_that_are_no_classes_are_refused(tmp_path):
    fields = pytest.importorskip("ffcv.fields", reason="FFCV is not installed")
    layout = {"image": fields.RGBImageField(write_mode="raw"), "label": fields.IntField()}
    for labels, reason in [
        ([0, -1], "label -1 of x.beton sample 1"),
        ([0, 10**15], "label 1000000000000000 of x.beton sample 1 is no class.*data.label_column"),
        ([3, 3], "all 2 images are of one class"),
    ]:
        write_with_ffcv(tmp_path / "x.beton", layout, [(np.zeros((4, 4, 3), np.uint8), label) for label in labels])
        refuses(reason, str(tmp_path / "x.beton"), "train")


def test_cut_foreign_and_empty_files_are_one_clear_line(folder):
    file = folder / "train.beton"
    whole = file.read_bytes()
    for length in (1, 23, 24, 2000, 2104, 2900, len(whole) // 2, len(whole) - 24, len(whole) - 1):
        file.write_bytes(whole[:length])
        refuses("train.beton was cut short", str(file), "train")
    file.write_bytes(b"")
    refuses("train.beton cannot be read as .beton", str(file), "train")
    file.write_bytes(whole[:8] + bytes(8) + whole[16:])
    refuses("train.beton holds no samples", str(file), "train")
    changed = bytearray(whole)
    changed[1 << 23] ^= 1
    file.write_bytes(bytes(changed))
    refuses("train.beton was altered", str(file), "train")
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "PNG")
    file.write_bytes(buffer.getvalue())
    refuses("train.beton is no .beton file of format 2", str(file), "train")
    file.unlink()
    file.mkdir()
    refuses("train.beton cannot be read as .beton", str(folder), "train")
