"""What the tests of every loader share: a store of odd images and comparisons with the Pillow loader."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastlg.batch import Batch
from fastlg.data.loaders.plan import SamplePlan
from fastlg.data.sources.choose import open_source
from fastlg.data.store.beton_write import write_beton
from fastlg.data.store.make import open_store, prepare
from fastlg.data.store.store import Store

SIZES = [(17, 33), (64, 20), (31, 32), (50, 75), (5, 9), (40, 40), (96, 61), (33, 17)]  # height, width
TRAIN_COUNT, TEST_COUNT = 21, 10


def write_pictures(folder, suffix: str = ".png") -> None:
    """folder/{train,test}/{cat,dog}/NN.suffix: smooth pictures of odd sizes, no two alike; JPEG changes them little."""
    rng = np.random.default_rng(4)
    for split, count in (("train", TRAIN_COUNT), ("test", TEST_COUNT)):
        for i in range(count):
            height, width = SIZES[i % len(SIZES)]
            coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            path = folder / split / ("cat" if i % 3 else "dog") / f"{i:02d}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def own_copy(path: Path, folder: Path) -> Store:
    """A store without a .beton file, which the test may damage."""
    shutil.copytree(path, folder / "store", ignore=shutil.ignore_patterns("*.beton*"))
    return open_store(folder / "store", "train")


def memory_kib() -> int:
    """Memory of this process that no file backs."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))


def plan(**options) -> SamplePlan:
    settings = {"size": 19, "batch_size": 4, "train": True, "seed": 11, "drop_last": False}
    return SamplePlan(**{**settings, **options})


def joined(batches) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def assert_same_samples(batches: list[Batch], oracle: list[Batch]) -> None:
    """Batch for batch the same ids, labels, boxes and flips, bit for bit, in the same types and shapes."""
    assert [len(b.labels) for b in batches] == [len(b.labels) for b in oracle]
    for got, want in zip(batches, oracle, strict=True):
        for name, a, b in zip(Batch._fields, got, want, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape, name
            assert name == "images" or torch.equal(a, b), name


def assert_ranks_share(loader, store: Store) -> None:
    """Three ranks' epochs are together the samples of one process, each once, with the same pixels."""
    alone = joined(loader(store, plan(batch_size=6)).epoch(1))
    parts = [loader(store, plan(batch_size=2, world_size=3, rank=rank)).epoch(1) for rank in range(3)]
    together = joined(batch for part in parts for batch in part)
    a, b = alone.sample_ids.argsort(), together.sample_ids.argsort()
    assert torch.equal(together.sample_ids[b], torch.arange(TRAIN_COUNT))
    assert torch.equal(alone.images[a], together.images[b])


def differences(batches: list[Batch], oracle: list[Batch]) -> torch.Tensor:
    """Absolute differences of all pixels, int32 [N, S, S, 3]."""
    return (joined(batches).images.int() - joined(oracle).images.int()).abs()


def photographs_as_beton(shared: Path, folder: Path) -> Store:
    """A store of photographs with their JPEG files in a .beton beside it."""
    for i, path in enumerate(sorted((shared / "data/flowers17/decode-sample-256").glob("*.jpg"))[::16]):
        for split in ("train", "test"):
            of_class = folder / "source" / split / "ab"[i % 2]
            of_class.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, of_class)
    store = open_store(prepare(str(folder / "source"), folder / "store", workers=1), "train")
    write_beton(store, mode="jpeg", source=open_source(str(folder / "source"), "train"))
    return store
