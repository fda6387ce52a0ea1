"""Loaders: exact pixels of the drawn boxes, every sample once, resume in mid-epoch, no leaks, errors by sample."""

import gc
import io
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_cases import memory_kib
from patience import wait_until
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from fastlg.data.loaders import torch as torch_loader
from fastlg.data.loaders.plan import SamplePlan, draw_crops, draw_flips
from fastlg.data.loaders.torch import TorchLoader
from fastlg.data.store.make import open_store, prepare
from fastlg.errors import RunError

SIZE = 19


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A store of 23 training and 11 test images, no two of one shape, each row telling its number by its colour."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(1)
    for split, count in (("train", 23), ("test", 11)):
        for i in range(count):
            coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((9 + 3 * i, 40 - i), Image.Resampling.BICUBIC)
            path = folder / "source" / split / ("cat" if i % 3 else "dog") / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return prepare(str(folder / "source"), folder / "store", workers=1)


def loader(path, split="train", workers=0, **options):
    settings = {"size": SIZE, "batch_size": 5, "train": split == "train", "seed": 11, **options}
    return TorchLoader(open_store(path, split), SamplePlan(**settings), workers=workers)


def joined(batches) -> list[torch.Tensor]:
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_training_pixels_are_torchvisions_resized_crop_of_the_drawn_boxes(photos, interpolation):
    store = open_store(photos, "train")
    images, labels, ids, crop, flip = joined(loader(photos, interpolation=interpolation).epoch(3))
    sizes = torch.from_numpy(store.sizes)[ids]
    boxes = draw_crops(11, 3, ids, sizes)
    assert torch.equal(flip, draw_flips(11, 3, ids))
    assert torch.equal(labels, torch.from_numpy(store.labels)[ids])
    assert torch.equal((crop.double() * sizes.repeat(1, 2)).round().long(), boxes)
    for pixels, i, box in zip(images, ids.tolist(), boxes.tolist(), strict=True):
        picture = Image.fromarray(store.images(i))
        truth = tvf.resized_crop(picture, *box, [SIZE, SIZE], InterpolationMode(interpolation))
        assert np.array_equal(pixels, np.asarray(truth))


def test_an_epoch_draws_every_sample_at_most_once_in_a_new_order(photos):
    train = loader(photos)
    orders = [torch.cat([batch.sample_ids for batch in train.epoch(e)]).tolist() for e in range(3)]
    for order in orders:
        assert len(order) == len(set(order)) == 20 and len(train) == 4  # 23 images: the last 3 are left out
    assert orders[0] != orders[1] != orders[2]
    assert orders[1] == torch.cat([batch.sample_ids for batch in train.epoch(1)]).tolist()
    kept = loader(photos, drop_last=False)
    assert len(kept) == 5 and [len(b.labels) for b in kept.epoch(0)] == [5, 5, 5, 5, 3]


def test_a_dataset_smaller_than_a_batch_still_trains(photos):
    tiny = loader(photos, batch_size=64)
    assert len(tiny) == 1 and [len(b.labels) for b in tiny.epoch(0)] == [23]


def test_evaluation_shows_every_whole_image_once_in_order_unflipped(photos):
    store = open_store(photos, "test")
    test = loader(photos, "test", interpolation="bicubic")
    images, labels, ids, crop, flip = joined(test.epoch(0))
    assert len(test) == 3 and ids.tolist() == list(range(11)) and not flip.any()
    assert labels.tolist() == store.labels.tolist() and torch.equal(crop, torch.tensor([0.0, 0, 1, 1]).expand(11, 4))
    for pixels, i in zip(images, range(11), strict=True):
        truth = tvf.resize(Image.fromarray(store.images(i)), [SIZE, SIZE], InterpolationMode.BILINEAR)
        assert np.array_equal(pixels, np.asarray(truth))


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_in_mid_epoch_gives_the_same_rest_without_reading_the_start(photos, workers, monkeypatch):
    train = loader(photos, workers=workers)
    whole = list(loader(photos).epoch(2))
    read = []
    honest = train.store.images
    monkeypatch.setattr(train.store, "images", lambda i: read.append(i) or honest(i))
    rest = list(train.epoch(2, start_batch=3))
    assert len(rest) == 1 and (workers or read == rest[0].sample_ids.tolist())
    assert all(torch.equal(a, b) for a, b in zip(whole[3], rest[0], strict=True))
    assert list(train.epoch(2, start_batch=4)) == []


def test_worker_count_and_world_size_change_no_pixel(photos):
    images, labels, ids, crop, flip = joined(loader(photos, batch_size=6, drop_last=False).epoch(1))
    order = ids.argsort()
    for count, options in ((2, {"batch_size": 6}), (0, {"batch_size": 3, "world_size": 2})):
        world = options.get("world_size", 1)
        parts = [loader(photos, workers=count, drop_last=False, rank=r, **options).epoch(1) for r in range(world)]
        again = joined([batch for part in parts for batch in part])
        other = again[2].argsort()
        for a, b in zip((images, labels, ids, crop, flip), again, strict=True):
            assert len(b) == 23 and torch.equal(a[order], b[other])


def test_the_loader_leaves_the_runs_random_state_alone(photos):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for workers in (0, 1):
        next(loader(photos, workers=workers).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_sample_is_named_in_one_line(photos, workers):
    train = loader(photos, workers=workers)
    wanted = int(train.plan.order(23, 0)[7])
    train.store.sizes[wanted] += 1  # the second batch cannot be cut
    batches = train.epoch(0)
    next(batches)
    with pytest.raises(RunError, match=f"train, sample {wanted}, box") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return {int(pid) for pid in file.read().split()}


def test_abandoned_epochs_leave_no_process_and_no_open_file(photos):
    train = loader(photos, workers=2)
    next(train.epoch(0))
    gc.collect()
    files, processes = open_files(), children()
    for epoch in range(3):
        batches = train.epoch(epoch)
        next(batches)
        batches.close()
    del batches
    gc.collect()
    wait_until(lambda: open_files() <= files and children() <= processes)


def test_fifty_epochs_leave_memory_and_file_handles_where_they_were(photos):
    train = loader(photos)
    for epoch in range(5):
        list(train.epoch(epoch))
    files, memory = open_files(), memory_kib()
    for epoch in range(50):
        list(train.epoch(epoch))
    gc.collect()
    assert open_files() <= files
    assert memory_kib() - memory < 4096  # an epoch's pixels are 21 KiB, 50 of them over 1 MiB; 4 MiB is allocator noise


def test_lossless_sources_reach_the_batch_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        for split in ("train", "test"):
            path = tmp_path / "src" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            path.write_bytes(file.getvalue())
    path = prepare(str(tmp_path / "src"), tmp_path / "store", workers=1)
    (batch,) = loader(path, "test", batch_size=8).epoch(0)
    assert np.array_equal(batch.images, pixels[[0, 2, 4, 6, 1, 3, 5, 7]])


@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "was killed"), (signal.SIGSTOP, "was stopped for")])
def test_a_killed_or_stopped_worker_is_one_line_and_leaves_no_process(photos, monkeypatch, number, words):
    monkeypatch.setattr(torch_loader, "LOOK_S", 0.2)
    monkeypatch.setattr(torch_loader, "PATIENCE_S", 0.4)
    before = children()
    batches = loader(photos, workers=2, batch_size=1).epoch(0)
    next(batches)
    for worker in children() - before:
        os.kill(worker, number)
    with pytest.raises(RunError, match=f"data worker .*{words}.*last checkpoint"):
        list(batches)
    batches.close()
    assert children() <= before


def test_the_death_of_a_worker_is_told_by_the_loader_and_nowhere_else(photos):
    """Not out of whatever the main thread does at that moment: a training step, or a line about the error."""
    before = children()
    batches = loader(photos, workers=2, batch_size=1).epoch(0)
    next(batches)
    dying = children() - before
    for worker in dying:
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: all(is_gone(worker) for worker in dying))
    with pytest.raises(RunError, match="data worker was killed"):
        list(batches)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:  # and its end was taken note of
        return True


def test_a_worker_that_is_stopped_after_its_last_batch_costs_nothing_and_goes(photos, monkeypatch):
    """Python would wait for it at its end."""
    monkeypatch.setattr(torch_loader, "LOOK_S", 0.1)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # torch's wait for it, 5 s
    before, of_epoch = children(), loader(photos, workers=1, batch_size=1)
    batches = of_epoch.epoch(0)
    for _ in range(len(of_epoch)):
        next(batches)
    (worker,) = children() - before
    monkeypatch.setattr(torch_loader, "PATIENCE_S", 2.0)  # longer than torch waits
    os.kill(worker, signal.SIGSTOP)
    assert list(batches) == []
    wait_until(lambda: worker not in [process.pid for process in multiprocessing.active_children()])


def test_a_worker_that_is_woken_goes_on_to_the_same_batches(photos, monkeypatch):
    monkeypatch.setattr(torch_loader, "LOOK_S", 0.2)
    before, want = children(), joined(loader(photos, batch_size=1).epoch(0))
    batches = loader(photos, workers=1, batch_size=1).epoch(0)
    first = next(batches)
    (worker,) = children() - before
    os.kill(worker, signal.SIGSTOP)
    waker = threading.Timer(1.0, os.kill, (worker, signal.SIGCONT))
    waker.start()
    assert all(torch.equal(a, b) for a, b in zip(joined([first, *batches]), want, strict=True))
    waker.join()
