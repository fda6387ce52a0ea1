"""DALI: our samples and boxes fed from outside, exact epochs, pixels near Pillow's, failures by name."""

import gc
import os
import sys

import numpy as np
import pytest
import torch
from loader_cases import (
    TRAIN_COUNT,
    assert_ranks_share,
    assert_same_samples,
    differences,
    joined,
    own_copy,
    photographs_as_beton,
    plan,
    write_pictures,
)

from fastlg.data.loaders.torch import TorchLoader
from fastlg.data.sources.choose import open_source
from fastlg.data.store.beton_read import open_beton
from fastlg.data.store.beton_write import write_beton
from fastlg.data.store.make import open_store, prepare
from fastlg.errors import RunError, UserError


@pytest.fixture(scope="module", autouse=True)
def dali():
    reason = "DALI is not installed: pip install 'fastlg[dali]'"
    return pytest.importorskip("nvidia.dali", reason=reason, exc_type=Exception)


@pytest.fixture(scope="module", params=[".png", ".jpg"])
def path(request, tmp_path_factory):
    """A store without and one with a .beton file of its JPEG files."""
    folder = tmp_path_factory.mktemp("dali")
    write_pictures(folder / "source", request.param)
    store = prepare(str(folder / "source"), folder / "store", workers=1)
    if request.param == ".jpg":
        for split in ("train", "test"):
            write_beton(open_store(store, split), mode="jpeg", source=open_source(str(folder / "source"), split))
    return store


def dali_loader(store, settings, **options):
    from fastlg.data.loaders.dali import DaliLoader

    return DaliLoader(store, settings, **options)


def inside(error: torch.Tensor, sizes: torch.Tensor, size: int) -> torch.Tensor:
    """Errors [values] of pixels whose filter stays inside the crop; ``sizes`` int64 [N, 2] of the crops."""
    kept = []
    for image, (height, width) in zip(error, sizes.tolist(), strict=True):
        y, x = (int(np.ceil(2.5 * max(1, size / side))) for side in (height, width))
        kept.append(image[y : size - y, x : size - x].flatten())
    return torch.cat(kept)


@pytest.mark.parametrize("options", [{}, {"interpolation": "bilinear", "size": 40}, {"train": False}])
def test_samples_are_those_of_every_loader_and_epochs_have_their_exact_length(path, options):
    store = open_store(path, "train")
    loader = dali_loader(store, plan(**options), workers=2)
    assert (loader.beton is not None) == (path / "train" / "images.beton").exists()
    for epoch in (0, 3):
        got, want = list(loader.epoch(epoch)), list(TorchLoader(store, plan(**options)).epoch(epoch))
        assert len(got) == len(loader) == 6 and [len(b.labels) for b in got] == [4, 4, 4, 4, 4, 1]
        assert_same_samples(got, want)


@pytest.mark.parametrize(
    "options", [{"size": 64}, {"interpolation": "bilinear", "size": 30}, {"size": 64, "train": False}]
)
def test_pixels_away_from_the_edge_are_pillows_within_one_level(path, options):
    store, settings = open_store(path, "train"), plan(**options)
    got, want = list(dali_loader(store, settings).epoch(1)), list(TorchLoader(store, settings).epoch(1))
    batch = joined(want)
    sizes = (batch.crop[:, 2:] * torch.from_numpy(store.sizes)[batch.sample_ids]).round().long()
    errors = inside(differences(got, want), sizes, settings.size)
    assert (errors <= 1).float().mean() >= 0.999


def test_photographs_are_pillows_within_one_level_on_995_of_1000_values_edges_included(shared, tmp_path):
    store = photographs_as_beton(shared, tmp_path)
    for train in (True, False):
        settings = plan(size=224, train=train)
        errors = differences(dali_loader(store, settings).epoch(0), TorchLoader(store, settings).epoch(0))
        assert (errors <= 1).float().mean() >= 0.995


def test_an_epoch_starts_anywhere_ends_anywhere_and_two_run_side_by_side(path):
    loader = dali_loader(open_store(path, "train"), plan(), workers=2)
    whole = list(loader.epoch(3))
    for stop in (0, 1, 3):  # each leaves batches behind that DALI had begun
        batches = loader.epoch(9)
        for _ in range(stop):
            next(batches)
        batches.close()
    for got, want in zip(loader.epoch(3, start_batch=4), whole[4:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert list(loader.epoch(3, start_batch=6)) == []
    pairs = list(zip(loader.epoch(3), loader.epoch(5), strict=True))
    assert all(torch.equal(a.images, b.images) for (a, _), b in zip(pairs, whole, strict=True))


def test_processes_share_an_epoch_without_repeat_or_loss(path):
    assert_ranks_share(dali_loader, open_store(path, "train"))


def rewrite(beton_path, change) -> None:
    content = bytearray(beton_path.read_bytes())
    note = content.index(b'{"store"')
    content[note : note + 2] = b"{}"  # no digest, as in FFCV's own files
    change(content)
    beton_path.write_bytes(content)


def test_a_damaged_jpeg_stops_the_epoch_by_name_and_the_next_epoch_starts_afresh(path, tmp_path):
    store = own_copy(path, tmp_path)
    beton = open_beton(write_beton(store, mode="jpeg"))
    settings = plan()
    wanted = int(settings.order(TRAIN_COUNT, 0)[6])
    start = int(beton.starts[wanted])
    rewrite(beton.path, lambda content: content.__setitem__(slice(start, start + 4), b"text"))
    loader = dali_loader(store, settings)
    for _ in range(2):
        batches = loader.epoch(0)
        next(batches)
        with pytest.raises(RunError, match=f"images.beton, sample {wanted}: not an image") as caught:
            next(batches)
        assert "\n" not in str(caught.value)


def test_files_of_raw_and_jpeg_images_are_refused_raw_ones_are_read_from_the_store(path, tmp_path):
    store = own_copy(path, tmp_path)
    beton_path = write_beton(store)
    assert dali_loader(store, plan()).beton is None
    beton = open_beton(write_beton(store, mode="jpeg"))
    # mode and pointer stand in the image's 13 bytes of metadata; one image is called raw, with a size to match
    height, width = 1, int(beton.lengths[0]) // 3
    pad = int(beton.lengths[0]) - 3 * width

    def call_raw(content):
        entry = content.index(int(beton.starts[0]).to_bytes(8, "little")) - 5
        content[entry : entry + 5] = bytes([1]) + width.to_bytes(2, "little") + height.to_bytes(2, "little")
        table = len(content) - 24 * len(beton) + 16
        content[table : table + 8] = (int(beton.lengths[0]) - pad).to_bytes(8, "little")

    rewrite(beton_path, call_raw)
    store.sizes[0] = (height, width)
    with pytest.raises(UserError, match="JPEG and raw"):
        dali_loader(store, plan())


def test_a_dropped_loader_ends_its_threads_at_once_not_when_a_forked_worker_collects_garbage(path, tmp_path):
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    store = own_copy(path, tmp_path)
    beton = open_beton(write_beton(store, mode="jpeg"))
    rewrite(
        beton.path, lambda content: content.__setitem__(slice(int(beton.starts[5]), int(beton.starts[5]) + 4), b"text")
    )
    before = threads()
    gc.disable()
    try:
        for stop in (0, 1):
            loader = dali_loader(store, plan(), workers=2)
            batches = loader.epoch(0)
            for _ in range(stop):
                next(batches)
            del loader, batches
            assert threads() == before
        loader = dali_loader(store, plan(), workers=2)
        with pytest.raises(RunError):
            list(loader.epoch(0))
        assert threads() == before
    finally:
        gc.enable()


def test_a_missing_dali_is_one_line_with_the_command(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"pip install 'fastlg\[dali\]'") as caught:
        dali_loader(open_store(path, "train"), plan())
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the nvJPEG pipeline needs a CUDA device")
def test_the_gpu_pipeline_delivers_the_cpu_pipelines_batches(path):
    store = open_store(path, "train")
    settings = plan(size=64)
    got = list(dali_loader(store, settings, device="cuda").epoch(1))
    want = list(dali_loader(store, settings).epoch(1))
    assert all(tensor.is_cuda for batch in got for tensor in batch)
    got = [type(batch)(*(tensor.cpu() for tensor in batch)) for batch in got]
    assert_same_samples(got, want)
    errors = differences(got, want).float()
    assert (errors <= 2).float().mean() >= 0.99 and errors.mean() < 1  # nvJPEG's own inverse DCT
