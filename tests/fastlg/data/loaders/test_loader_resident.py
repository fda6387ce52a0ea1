"""The resident loader: same ids, labels, boxes, flips and pixels as the Pillow loader, from one store on the device."""

import gc
import os

import numpy as np
import PIL
import pytest
import torch
from loader_cases import memory_kib
from PIL import Image

from fastlg.data.loaders import choose as loaders
from fastlg.data.loaders.choose import make_loader
from fastlg.data.loaders.torch import TorchLoader
from fastlg.data.store.make import open_store, prepare
from fastlg.errors import UserError

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A store of 37 + 13 images, from 1 x 30 to 60 x 61 pixels, sharp-edged so that filters overshoot."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(2)
    for split, count in (("train", 37), ("test", 13)):
        for i in range(count):
            height, width = (1, 30) if i == 0 else rng.integers(2, 62, 2)
            noise = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
            path = folder / "source" / split / "ab"[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(path)
    return prepare(str(folder / "source"), folder / "store", workers=1)


def pair(path, split, device, **options):
    settings = {"size": 24, "batch_size": 8, "train": split == "train", "seed": 3, **options}
    store = open_store(path, split)
    return make_loader("torch", store, **settings), make_loader("resident", store, device=device, **settings)


@pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 resizes tall images in another order of passes"
)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("split", "options"),
    [
        ("train", {}),
        ("train", {"interpolation": "bilinear", "drop_last": False, "size": 7}),
        ("train", {"rank": 1, "world_size": 3, "scale": (0.9, 1.0)}),
        ("train", {"batch_size": 100}),
        ("test", {}),
        ("test", {"batch_size": 5, "rank": 0, "world_size": 2, "size": 33}),
    ],
)
def test_every_batch_equals_the_pillow_loaders(mixed, device, split, options):
    oracle, resident = pair(mixed, split, device, **options)
    assert len(oracle) == len(resident)
    for epoch in (0, 5):
        for a, b in zip(oracle.epoch(epoch), resident.epoch(epoch), strict=True):
            for truth, found in zip(a, b, strict=True):
                assert found.device.type == device and found.dtype == truth.dtype
                assert torch.equal(truth, found.cpu())


@pytest.mark.parametrize("device", DEVICES)
def test_starting_in_mid_epoch_gives_the_same_rest(mixed, device):
    _, resident = pair(mixed, "train", device)
    whole, rest = list(resident.epoch(1)), list(resident.epoch(1, start_batch=2))
    assert len(whole) == 4 and len(rest) == 2
    for a, b in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_store_is_read_through_a_map_and_never_written(mixed):
    _, resident = pair(mixed, "train", "cpu")
    before = (mixed / "train" / "pixels.bin").read_bytes()
    resident.pixels.zero_()
    assert (mixed / "train" / "pixels.bin").read_bytes() == before
    assert open_store(mixed, "train", verify=True).pixels.any()


def test_fifty_epochs_abandoned_or_not_leave_memory_and_files_where_they_were(mixed):
    _, resident = pair(mixed, "train", "cpu")
    for _ in range(5):
        list(resident.epoch(0))
    files, memory = len(os.listdir("/proc/self/fd")), memory_kib()
    for epoch in range(25):
        list(resident.epoch(epoch))
        next(resident.epoch(epoch))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files
    assert memory_kib() - memory < 8192  # 50 epochs of batches are 3 MiB; the bound is allocator noise


def test_auto_is_resident_where_the_store_fits_on_the_gpu(mixed, monkeypatch):
    store = open_store(mixed, "train")
    settings = {"size": 8, "batch_size": 4, "train": True}
    assert isinstance(make_loader("auto", store, device="cpu", **settings), TorchLoader)
    monkeypatch.setattr(loaders, "ResidentLoader", lambda *args, **options: "resident")
    monkeypatch.setattr(loaders, "TorchLoader", lambda *args, **options: "torch")
    needed = len(store.pixels)
    for free, expected in ((2 * needed, "resident"), (2 * needed - 2, "torch")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 1 << 40))
        assert make_loader("auto", store, device="cuda", **settings) == expected
    with pytest.raises(UserError, match="data.loader=fast is unknown"):
        make_loader("fast", store, **settings)
