"""Images per second of every loader, with and without augmentation, against workers and against dataset size.

    python benchmarks/cases/input/loader_rates.py [--shared PATH] [--workers 1,2] [--full] [--quick] [--json PATH]

Cases (skipped with a line where their data is absent):

    cifar100    32 -> 224, lossless images: 1,500 of them, with --full all 50,000
    flowers17   JPEG files of short side 256
    originals   256 JPEG files of original size, about 500 x 600
    sizes       cifar100 cut to 1,000, 10,000 and 50,000 images
    two-views   originals: one decode and two views, against a pipeline for each view

Providers: resident, ffcv, dali and torch are fastlg's loaders; "raw" reads decoded pixels, "jpeg" decodes in every
epoch. "torch jpeg" is the conventional pipeline: DataLoader and Pillow. With augment=views the loader is followed by
fastlg's batched augmentation (student 224, teacher 32); "timm" augments image by image in DataLoader workers instead.

An epoch's start (processes, threads) is timed with it, as in training. images_per_core_s counts the processor time of
all processes and threads, so it stays comparable on a machine that does something else meanwhile. A row's ratio is
against the first provider of its case, workers and augment.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path

if __name__ == "__main__":  # the root, not this folder, whose names could hide installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import torch
from torch.utils.data import DataLoader

from benchmarks.harness.reference_style import TransformedImages
from benchmarks.harness.report import ROOT
from fastlg.data.loaders.choose import make_loader
from fastlg.data.loaders.plan import SamplePlan
from fastlg.data.loaders.torch import TorchLoader
from fastlg.data.sources.choose import open_source
from fastlg.data.store.beton_read import find_beton
from fastlg.data.store.beton_write import write_beton
from fastlg.data.store.decode import decode_image
from fastlg.data.store.make import prepare
from fastlg.data.store.store import Store, open_store
from fastlg.data.views.make import ViewMaker
from fastlg.errors import UserError
from fastlg.files.provenance import commit, device_name, versions

SIZE, TEACHER_SIZE, BATCH = 224, 32, 128
CASES = ("cifar100", "flowers17", "originals", "sizes", "two-views")
SPEC = "rand-m9-mstd0.5-inc1"
WARM_BATCHES = 6


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


class JpegStore:
    """A store for the torch loader whose images are decoded by Pillow whenever they are asked for."""

    def __init__(self, store: Store):
        self.path, self.split, self.sizes, self.labels = store.path, store.split, store.sizes, store.labels
        self.beton = find_beton(store)

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, i: int):
        return decode_image(self.beton.stored(i).tobytes(), f"image {i}")


def batches(provider: str, store: Store, workers: int, device: torch.device, size: int = SIZE) -> Callable:
    """epoch -> its batches, from ``provider``; the store's .beton file must be of the provider's kind."""
    kind, _, form = provider.partition(" ")
    settings = {"size": size, "batch_size": BATCH, "train": True, "seed": 0, "drop_last": False}
    kept = JpegStore(store) if form == "jpeg" and kind in ("torch", "timm") else store
    if kind == "timm":
        loader = DataLoader(TransformedImages(kept, SIZE, len(kept)), BATCH, shuffle=True, num_workers=workers)
        return lambda epoch: (images.to(device) for images, _ in loader)
    if kind == "torch":
        return TorchLoader(kept, SamplePlan(**settings), device=device, workers=workers).epoch
    return make_loader(kind, store, device=device, workers=workers, **settings).epoch


def with_views(epochs: Callable, store: Store, teacher_size: int | None = TEACHER_SIZE) -> Callable:
    """The same with fastlg's augmentation behind it: epoch -> student views."""
    views = ViewMaker(teacher_size=teacher_size, rand_augment=SPEC, samples=len(store))
    return lambda epoch: (views(batch, epoch).student for batch in epochs(epoch))


def viewed(provider: str, store: Store, workers: int, device: torch.device) -> Callable:
    return with_views(batches(provider, store, workers, device), store)


def memory_kib() -> int:
    """Memory of this process and its children now, pages that they share counted once. Pages of mapped files are not
    counted: the kernel may drop them."""
    total = 0
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        pids = [str(os.getpid()), *file.read().split()]
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith(("Pss_Anon", "Pss_Shmem")))
        except OSError:  # it has just ended
            continue
    return total


def processor_s() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def measure(build: Callable[[], Callable[[int], Iterable]], repeats: int, device: torch.device) -> dict:
    """Median and spread of images/s over ``repeats`` epochs of what ``build`` makes, after some batches of another one
    that compile and fill caches. Memory is looked at during those, because looking takes time: the most above what
    lay there before the loader was made."""
    gc.collect()
    before, peak, rates, per_core = memory_kib(), 0, [], []
    epochs = build()
    for _ in islice(epochs(0), WARM_BATCHES):
        peak = max(peak, memory_kib())
    for epoch in range(1, repeats + 1):
        count, start, processor = 0, time.perf_counter(), processor_s()
        for batch in epochs(epoch):
            count += len(batch if isinstance(batch, torch.Tensor) else batch.labels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates.append(count / (time.perf_counter() - start))
        per_core.append(count / (processor_s() - processor))
    median = statistics.median(rates)
    return {
        "images": count,
        "images_per_s": round(median, 1),
        "spread": round((max(rates) - min(rates)) / median, 3),
        "images_per_core_s": round(statistics.median(per_core), 1),
        "memory_mib": round(max(peak - before, 0) / 1024, 1),
    }


class Bench:
    """Runs cases and keeps their rows, each stamped with what made it."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.rows = options, folder, []
        self.device = torch.device(options.device)
        libraries = {name: version(name) for name in ("ffcv", "nvidia-dali-cuda130")}
        self.stamp = {"commit": commit(), "device": device_name(self.device), "versions": {**versions(), **libraries}}

    def store(self, name: str, source: Path, mode: str | None = None) -> Store:
        """The training split of a source, with a .beton file of ``mode``."""
        path = prepare(str(source), self.folder / name, splits=("train",))
        store = open_store(path, "train")
        if mode is not None:
            write_beton(store, mode=mode, source=open_source(str(source), "train"))
        return store

    def row(self, case: str, provider: str, workers: int, augment: str, epochs: Callable[[], Callable]) -> None:
        key = {"case": case, "provider": provider, "workers": workers, "augment": augment, "batch": BATCH}
        torch.set_num_threads(workers)
        try:
            row = {**key, **measure(epochs, self.options.repeats, self.device)}
        except UserError as error:
            print(f"skipped {case} {provider}: {error}", flush=True)
            return
        base = next((r for r in self.rows if all(r[k] == row[k] for k in ("case", "workers", "augment"))), row)
        row["ratio"] = round(row["images_per_s"] / base["images_per_s"], 2)
        row["core_ratio"] = round(row["images_per_core_s"] / base["images_per_core_s"], 2)
        self.rows.append({**row, **self.stamp})
        print(
            f"{case:<18}{provider:<14}{workers:>3} {augment:<6}{row['images_per_s']:>9.0f} images/s"
            f" +-{row['spread']:>4.0%}{row['ratio']:>7.2f}x {row['images_per_core_s']:>8.0f} per core"
            f"{row['core_ratio']:>7.2f}x{row['memory_mib']:>8.0f} MiB",
            flush=True,
        )

    def providers(self, case: str, source: Path, forms: tuple[str, ...]) -> None:
        """Every loader on the same images; ``forms`` are "raw" or "jpeg", the first one's torch loader is the base."""
        for form in forms:
            store = self.store(case, source, form)
            names = [f"torch {form}", f"ffcv {form}", f"dali {form}", *(["resident"] if form == "raw" else [])]
            for workers in self.options.workers:
                for name in names:
                    self.row(case, name, workers, "none", partial(batches, name, store, workers, self.device))
                timm = f"timm {form}"
                self.row(case, timm, workers, "views", partial(batches, timm, store, workers, self.device))
                for name in names:
                    self.row(case, name, workers, "views", partial(viewed, name, store, workers, self.device))

    def sizes(self, source: Path) -> None:
        whole, workers = self.store("sizes", source), self.options.workers[-1]
        for count in (1_000, 10_000, 50_000):
            if count > len(whole):
                continue
            part = copy.copy(whole)
            part.sizes, part.labels = whole.sizes[:count], whole.labels[:count]
            part.offsets = whole.offsets[: count + 1]
            for name in ("torch raw", "resident"):
                self.row(
                    f"cifar100 n={count}", name, workers, "none", partial(batches, name, part, workers, self.device)
                )

    def two_views(self, source: Path) -> None:
        """One decode that makes both views, against one pipeline for the student's and one for the teacher's."""
        store, workers = self.store("two-views", source, "jpeg"), self.options.workers[-1]

        def separate() -> Callable:
            student = with_views(batches("ffcv jpeg", store, workers, self.device), store, None)
            teacher = with_views(batches("ffcv jpeg", store, workers, self.device, TEACHER_SIZE), store, None)
            return lambda epoch: (pair[0] for pair in zip(student(epoch), teacher(epoch), strict=True))

        self.row("two-views", "two pipelines", workers, "views", separate)
        self.row("two-views", "one decode", workers, "views", partial(viewed, "ffcv jpeg", store, workers, self.device))


def original_jpegs(files: Path, folder: Path) -> Path:
    """The decode sample as class folders: 0002_daffodil.jpg -> train/daffodil/0002_daffodil.jpg."""
    for path in sorted(files.glob("*.jpg")):
        link = folder / "train" / path.stem.partition("_")[2] / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ROOT.parent / "shared"
    parser.add_argument("--shared", type=Path, default=default, help="folder that holds data/cifar100, data/flowers17")
    parser.add_argument("--workers", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--full", action="store_true", help="all of CIFAR-100 in every epoch of its case")
    parser.add_argument("--quick", action="store_true", help="one worker, one repeat, 1,000 images in case sizes")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    if unknown := set(options.cases.split(",")) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}")
    if options.quick:
        options.workers, options.repeats = [1], 1
    data = options.shared.resolve() / "data"  # links to it are made elsewhere
    mini, flowers = data / "cifar100-mini", data / "flowers17"
    cifar = data / "cifar100" if options.full else mini
    sources = {"cifar100": cifar, "sizes": mini if options.quick else data / "cifar100", "flowers17": flowers}
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options, Path(name))
        for case in options.cases.split(","):
            source = sources.get(case, flowers / "decode-sample-256")
            if not source.is_dir():
                print(f"skipped {case}: no data at {source} (give --shared)", flush=True)
                continue
            if case in ("originals", "two-views"):
                source = bench.folder / "original-jpegs"
                if not source.exists():
                    original_jpegs(flowers / "decode-sample-256", source)
            match case:
                case "cifar100":
                    bench.providers(case, source, ("raw",))
                case "flowers17" | "originals":
                    bench.providers(case, source, ("jpeg", "raw"))
                case "sizes":
                    bench.sizes(source)
                case "two-views":
                    bench.two_views(source)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(bench.rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
