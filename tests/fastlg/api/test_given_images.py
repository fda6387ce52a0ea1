"""Images as Python objects: whatever form they come in, the store is that of the same images in a folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor, RandomHorizontalFlip, ToTensor

from fastlg.api.given import named_pixels
from fastlg.config import DataConfig
from fastlg.data.sources.objects import pixels_of
from fastlg.data.store.decode import decode_image
from fastlg.data.store.store import open_store
from fastlg.data.stores import open_stores, store_of_objects, store_of_paths
from fastlg.errors import UserError


@pytest.fixture
def folders(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLG_CACHE", str(tmp_path / "cache"))
    return {split: ImageFolder(image_folder / split) for split in ("train", "test")}


class Columns:
    """As a Hugging Face dataset: samples are dicts, ``features`` names the classes."""

    class Names:
        names = ["blue", "green", "red"]

    def __init__(self, folder, column="label"):
        self.folder, self.column = folder, column
        self.features = {"image": None, column: self.Names()}
        self.column_names = ["image", column]

    def __len__(self):
        return len(self.folder)

    def __getitem__(self, row):
        image, label = self.folder[row]
        return {"image": image, self.column: label, "other": "x"}


class Pixels:
    """Samples of a folder with the image in another form, the class by its name."""

    def __init__(self, folder, form):
        self.folder, self.form = folder, form

    def __len__(self):
        return len(self.folder)

    def __getitem__(self, row):
        image, label = self.folder[row]
        return self.form(image), self.folder.classes[label]


FORMS = {
    "torchvision": lambda own: own,
    "Hugging Face": Columns,
    "another label column": lambda own: Columns(own, "fine_label"),
    "tensors": lambda own: Pixels(own, PILToTensor()),
    "arrays": lambda own: Pixels(own, np.asarray),
    "a list": lambda own: [(image, torch.tensor(label)) for image, label in own],
    "a subset": lambda own: Subset(own, range(len(own))),
    "parts": lambda own: ConcatDataset([Subset(own, range(20)), Subset(own, range(20, len(own)))]),
}


def fingerprints(path) -> list[tuple]:
    """Of the pixels, sizes and labels of both splits."""
    stores = [open_store(path, split) for split in ("train", "test")]
    return [([part["sha256"] for part in own.info["parts"]], own.info["arrays"]) for own in stores]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_pixels_and_labels_of_the_folder(form, folders, image_folder):
    want = fingerprints(open_stores(DataConfig(source=str(image_folder), workers=0)).path)
    given = {split: FORMS[form](own) for split, own in folders.items()}
    path = store_of_objects((given["train"], given["test"]), DataConfig(source="python"))
    assert fingerprints(path) == want
    named = ["blue", "green", "red"] if form != "a list" else ["0", "1", "2"]
    assert open_store(path, "train").class_names == named
    again = store_of_objects({"Train": given["train"], "validation": given["test"]}, DataConfig(source="python"))
    assert again == path, "the same images are known again, by whatever names their splits go"


def test_paths_of_their_own_are_splits(folders, image_folder):
    want = fingerprints(open_stores(DataConfig(source=str(image_folder), workers=0)).path)
    paths = {"train": str(image_folder / "train"), "val": str(image_folder / "test")}
    assert fingerprints(store_of_paths(paths, DataConfig(source="python"))) == want


def test_a_held_out_share_is_cut_from_one_dataset(folders):
    stores = open_stores(
        DataConfig(source=str(store_of_objects(folders["train"], DataConfig(source="p", holdout=0.25))))
    )
    assert np.bincount(stores.test.labels).tolist() == [6, 6, 6] and len(stores.train) == 3 * 20


def test_one_other_pixel_is_another_store(folders):
    samples = [(np.array(image), label) for image, label in folders["train"]]
    data = DataConfig(source="python", holdout=0.2)
    first = store_of_objects(samples, data)
    samples[40][0][3, 2, 1] ^= 1
    assert store_of_objects(samples, data) != first


def test_a_model_is_measured_on_objects_by_class_name(folders):
    names = ["red", "grey", "green", "blue"]
    path = store_of_objects(Pixels(folders["test"], PILToTensor()), DataConfig(source="p"), names)
    store = open_store(path, "test")
    assert store.class_names == names and np.bincount(store.labels).tolist() == [11, 0, 11, 11]
    with pytest.raises(UserError, match="'blue' is none of the 2 classes"):
        store_of_objects(folders["test"], DataConfig(source="p"), ["red", "green"])


def image(size=8):
    return Image.new("RGB", (size, size), (9, 99, 0))


SAVED = {
    "turned.jpg": ("RGB", {"exif": 6, "quality": 95}),
    "turned.png": ("RGB", {"exif": 8}),
    "turned.tif": ("RGB", {"exif": 3}),
    "palette.png": ("P", {"transparency": 3}),
    "alpha.png": ("RGBA", {}),
    "ink.jpg": ("CMYK", {}),
    "deep.png": ("I;16", {}),
    "grey.png": ("L", {}),
    "bits.png": ("1", {}),
}


@pytest.mark.parametrize("name", SAVED)
def test_an_open_image_has_the_pixels_of_its_file_and_stays_as_it_is(name, tmp_path):
    mode, options = SAVED[name]
    pixels = np.random.default_rng(1).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    made = Image.fromarray(pixels)
    made = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200) if mode == "I;16" else made.convert(mode)
    if turn := options.pop("exif", None):
        exif = Image.Exif()
        exif[0x0112] = turn
        options = {**options, "exif": exif}
    made.save(tmp_path / name, **options)
    want = decode_image((tmp_path / name).read_bytes(), name)
    with Image.open(tmp_path / name) as opened:
        before = dict(opened.info), opened.size, opened.mode
        np.testing.assert_array_equal(pixels_of(opened, name), want)
        assert (dict(opened.info), opened.size, opened.mode) == before
    assert want.shape == ((14, 9, 3) if turn in (6, 8) else (9, 14, 3))


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(image(), 0)])


class Failing(list):
    def __getitem__(self, row):
        raise KeyError("no row")


REFUSED = {
    "floats": (lambda own: Pixels(own, ToTensor()), "pixels are float32.*drop ToTensor"),
    "random": (lambda own: Pixels(own, RandomHorizontalFlip(0.5)), "another picture every time"),
    "a stream": (lambda own: Stream(), "no length.*map-style"),
    "batches": (lambda own: DataLoader(own), r"give its \.dataset"),
    "numbers": (lambda own: [1, 2], r"data\[0\] is of type int; a sample is \(image, label\)"),
    "three values": (lambda own: [(image(), 0, 0)], r"data\[0\] is 3 values"),
    "no image": (lambda own: [("a.png", 0), ("b.png", 1)] * 9, "a str is no image"),
    "no label": (lambda own: [(image(), None)], r"data\[0\]: label=None is no class label"),
    "empty": (lambda own: [], "data is empty"),
    "its own error": (lambda own: Failing([1]), r"data\[0\] cannot be read: 'no row' \(KeyError\)"),
    "an unknown split": (lambda own: {"train": own, "extra": own}, "a split 'extra'"),
    "two test splits": (lambda own: {"train": own, "val": own, "valid": own}, "both the test split"),
    "no split to train on": (lambda own: {"test": own}, r"no training|no train split.*\(train, test\)"),
    "no column": (lambda own: [{"picture": image(), "y": 0}], "which column is the label"),
    "one class": (lambda own: ([(image(), 4)] * 3, [(image(), 4)]), "of one class"),
    "a channel too many": (
        lambda own: [(torch.zeros(5, 8, 8, dtype=torch.uint8), i % 2) for i in range(9)],
        r"\[C, H, W\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_set_of_images_is_refused_in_a_line(case, folders):
    make, words = REFUSED[case]
    data = make(folders["test"])
    torch.manual_seed(1)
    holdout = 0.0 if isinstance(data, (dict, tuple)) else 0.2
    with pytest.raises(UserError, match=words) as refusal:
        store_of_objects(data, DataConfig(source="python", holdout=holdout))
    assert "\n" not in str(refusal.value)


def test_a_test_split_is_asked_for(folders):
    with pytest.raises(UserError, match=r"no test split.*data=\(train, test\).*data\.holdout"):
        store_of_objects(folders["train"], DataConfig(source="python"))


def test_one_image_a_folder_a_batch_or_nothing_is_predicted_as_what_it_is(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = sorted((image_folder / "test" / "blue").glob("*.png"))
    picture = Image.open(files[0]).convert("RGB")
    truth = np.asarray(picture)
    channels_first = torch.from_numpy(truth.transpose(2, 0, 1).copy())
    one = (files[0], str(files[0]), picture, truth, channels_first, files[0].read_bytes(), (picture, 2))
    for images in (*one, {"image": picture, "label": 2}, [picture], np.stack([truth]), torch.stack([channels_first])):
        ((_, found),) = named_pixels(images)
        assert np.array_equal(found, truth), type(images)
    for images in (files[0].parent, [str(files[0].parent)], f"{files[0].parent}/*.png", iter(files), set(files)):
        assert sorted(name for name, _ in named_pixels(images)) == list(map(str, files))
    mixed = [files[1], picture, channels_first]
    assert [name for name, _ in named_pixels(mixed)] == [str(files[1]), "images[1]", "images[2]"]
    assert len(list(named_pixels(torch.stack([channels_first] * 3)))) == 3
    for nothing in ([], (), np.zeros((0, 8, 8, 3), np.uint8)):
        assert list(named_pixels(nothing)) == []


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (None, ["images is None; give a path"]),
        (5, ["images is of type int"]),
        (np.uint8(5), ["images is of type uint8"]),
        ({"a": np.zeros((4, 4, 3), np.uint8)}, ["images is of type dict"]),
        ([None], ["images[0]: a NoneType is no image"]),
        ("", ["path is empty"]),
        ("nothing.png", ["nothing.png does not exist"]),
        (".", [". holds no images"]),
        ([torch.rand(3, 8, 8)], ["images[0]: pixels are float32, not uint8"]),
        (np.zeros((1, 1, 8, 8, 3), np.uint8), ["images[0]: pixels of shape (1, 8, 8, 3)"]),
        ([b"no picture"], ["images[0]: not an image"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_image_is_one_line(tmp_path, monkeypatch, images, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        list(named_pixels(images))
    assert all(word in str(refusal.value) for word in words) and "\n" not in str(refusal.value), refusal.value
