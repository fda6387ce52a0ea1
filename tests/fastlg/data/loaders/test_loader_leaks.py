"""Fifty epochs, epochs left early and failing images leave memory, threads, processes and files where they were."""

import gc
import os
import time

import pytest
from loader_cases import plan, write_pictures
from patience import HANG_S

from fastlg.data.sources.choose import open_source
from fastlg.data.store.beton_write import write_beton
from fastlg.data.store.make import open_store, prepare
from fastlg.errors import RunError

SIZE = 64  # an epoch's crops are 0.25 MiB: fifty kept ones would be 12 MiB
MEMORY_BOUND_KIB = 4 * 1024  # what allocators may keep for later
KINDS = ["resident", "torch", "ffcv raw", "ffcv jpeg", "dali raw", "dali jpeg"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Two stores of the same pictures: {"raw": without JPEG files, "jpeg": with them}."""
    folder = tmp_path_factory.mktemp("leaks")
    write_pictures(folder / "source", ".jpg")
    stores = {}
    for mode in ("raw", "jpeg"):
        stores[mode] = prepare(str(folder / "source"), folder / mode, workers=1)
        write_beton(open_store(stores[mode], "train"), mode=mode, source=open_source(str(folder / "source"), "train"))
    return stores


@pytest.fixture(params=KINDS)
def loader(request, paths):
    """Each loader over 21 training images, with two workers where it has workers."""
    kind, _, mode = request.param.partition(" ")
    store, settings = open_store(paths[mode or "raw"], "train"), plan(size=SIZE)
    match kind:
        case "resident":
            from fastlg.data.loaders.resident import ResidentLoader

            return ResidentLoader(store, settings)
        case "torch":
            from fastlg.data.loaders.torch import TorchLoader

            return TorchLoader(store, settings, workers=0)
        case "ffcv":
            pytest.importorskip("ffcv", reason="FFCV is not installed", exc_type=Exception)
            from fastlg.data.loaders.ffcv import FfcvLoader

            return FfcvLoader(store, settings, workers=2)
        case "dali":
            pytest.importorskip("nvidia.dali", reason="DALI is not installed", exc_type=Exception)
            from fastlg.data.loaders.dali import DaliLoader

            return DaliLoader(store, settings, workers=2)


class Held:
    """What the process holds now: open files, threads, child processes, private memory in KiB."""

    def __init__(self):
        gc.collect()
        self.files = len(os.listdir("/proc/self/fd"))
        self.threads = len(os.listdir("/proc/self/task"))
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            self.children = len(file.read().split())
        with open("/proc/self/status") as file:
            self.memory_kib = next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

    def over(self, before: "Held") -> dict[str, int]:
        """By how much each count is above ``before``, memory by how much above the bound."""
        counts = {name: getattr(self, name) - getattr(before, name) for name in ("files", "threads", "children")}
        counts["memory_kib"] = self.memory_kib - before.memory_kib - MEMORY_BOUND_KIB
        return {name: extra for name, extra in counts.items() if extra > 0}


def assert_nothing_more_is_held(before: Held) -> None:
    deadline = time.monotonic() + HANG_S / 10
    while Held().over(before) and time.monotonic() < deadline:  # who was told to stop needs a moment
        time.sleep(0.05)
    assert Held().over(before) == {}


def run(loader, epochs) -> None:
    for epoch in epochs:
        for _ in loader.epoch(epoch):
            pass


def test_fifty_epochs(loader):
    run(loader, range(6))
    before = Held()
    run(loader, range(50))
    assert_nothing_more_is_held(before)


def test_fifty_epochs_left_early_each_at_another_batch(loader):
    run(loader, range(3))
    for stop in range(3):
        next(loader.epoch(stop))
    before = Held()
    for epoch in range(50):
        batches = loader.epoch(epoch)
        for _ in range(epoch % 6):
            next(batches)
        if epoch % 2:
            batches.close()  # the others are left to the garbage collector
        del batches
    assert_nothing_more_is_held(before)
    run(loader, [0])  # and the loader still works


@pytest.fixture
def failing(loader, request):
    """The loader with image 5 made unreadable in memory, undone afterwards."""
    beton = getattr(loader, "beton", None)
    if beton is not None and beton.is_jpeg.any():
        beton.data[beton.starts[5] : beton.starts[5] + 4] = 0  # a private map: the file stays whole
    elif beton is not None:
        beton.sizes[5] += 1
    else:
        loader.store.sizes[5] += 1
    return loader


def test_failing_images(failing):
    if type(failing).__name__ == "ResidentLoader":
        pytest.skip("the resident loader decodes nothing that could fail")

    def fail(epoch: int) -> None:
        with pytest.raises(RunError, match="sample 5"):
            run(failing, [epoch])

    for epoch in range(3):
        fail(epoch)
    before = Held()
    for epoch in range(20):
        fail(epoch)
    assert_nothing_more_is_held(before)


def test_loaders_that_are_dropped_take_their_threads_and_files_along(loader):
    run(loader, [0])
    kind, store, settings = type(loader), loader.store, loader.plan
    options = {"workers": loader.workers} if hasattr(loader, "workers") else {}
    for _ in range(2):
        run(kind(store, settings, **options), [0])
    before = Held()
    for epoch in range(10):
        run(kind(store, settings, **options), [epoch])
    assert_nothing_more_is_held(before)
