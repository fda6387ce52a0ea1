"""What guidance costs per step: teacher online, cached maps, cached compact; and what a cache costs to build and keep.

    python benchmarks/cases/training/feature_cache.py [--source PATH] [--batch 32] [--repeats 9] [--json PATH]

DeiT-Ti at 224 with ResNet-56 at 32, on CIFAR-100 images. A step is views + teacher + forward, backward and update, on a
decoded batch. Variants take turns, so that all of them see the same neighbours, and a row holds medians; on a CPU the
time is this process's processor time, which a busy machine disturbs less than it does the clock. The teacher's weights
are random: they change no duration and no size.

    step_ms     the whole step            of_unguided  against the unguided step
    teacher_ms  the teacher's call alone  loss_ms      guidance loss alone, forward and backward, features given
    of_target   step / (unguided step + loss): what reading the cache adds, noise of two medians included
    adds        teacher_ms / (unguided step + loss): the same, measured directly
    cache_mib   resident or mapped        peak_mib     memory of a process that takes three steps (CUDA: allocated)
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # the root, not this folder, whose names could hide installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import torch

from benchmarks.harness.ours import store_of
from benchmarks.harness.report import ROOT
from fastlg.assemble import assemble
from fastlg.config import Config, load_config
from fastlg.data.stores import Stores, open_stores
from fastlg.engine.protocol import autocast
from fastlg.features import build_cache, plan_cache
from fastlg.files.provenance import commit, device_name, versions
from fastlg.models.resnet_cifar import resnet56
from fastlg.run.parts import Parts
from fastlg.teacher.cache.read import open_cache

CROPS = ["augment.crop_scale=[0.08,1]", "augment.crop_ratio=[0.75,1.333]"]
VARIANTS = {
    "unguided": ["teacher=null"],
    "online, batch statistics": [*CROPS, "teacher.mode=online", "teacher.norm_stats=batch"],
    "online, running statistics": [*CROPS, "teacher.mode=online"],
    "cached maps": CROPS,
    "cached maps, from disk": [*CROPS, "teacher.cache_memory=mmap"],
    "cached compact": [],
    "cached compact, from disk": ["teacher.cache_memory=mmap"],
}


def config_of(options: argparse.Namespace, variant: str) -> Config:
    common = [f"data.source={options.source}", "data.workers=0", f"optim.global_batch_size={options.batch}"]
    common += [f"engine.device={options.device}"]
    if options.eager:  # compiling each variant would take longer than measuring it
        common += ["engine.compile=false", "engine.graph=false"]
    return load_config("cifar100/deit_tiny_cached", [*common, *VARIANTS[variant]])


def teacher(stores: Stores):
    """Random weights; running statistics of noise, so that maps have the size of a trained network's."""
    torch.manual_seed(0)
    model = resnet56(len(stores.class_names)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(64, 3, 32, 32))
    return model.eval()


def first(stores: Stores, count: int) -> Stores:
    """The first ``count`` training images."""
    train = copy.copy(stores.train)
    train.sizes, train.labels = stores.train.sizes[:count], stores.train.labels[:count]
    return Stores(train, stores.test, stores.path)


def parts_of(options: argparse.Namespace, variant: str, stores: Stores) -> Parts:
    config = config_of(options, variant)
    if config.teacher is None:
        return assemble(config, stores, None, None)
    features = None
    if config.teacher.mode != "online":
        job = plan_cache(config, stores, teacher(stores), 32)
        build_cache(job, config, stores)
        features = open_cache(job.path, job.fingerprint)
    return assemble(config, stores, teacher(stores), 32, features)


def step(parts: Parts, batch) -> None:
    views = parts.views(batch, 0)
    parts.engine.step(views, batch, len(batch.labels))


def timed(device: torch.device, work) -> float:
    """Milliseconds of one call: of the device where it is CUDA, else this process's processor time."""
    if device.type != "cuda":
        start = time.process_time()
        work()
        return 1e3 * (time.process_time() - start)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def loss_work(parts: Parts, batch):
    """The guidance loss alone, forward and backward, on features that need a gradient."""
    views = parts.views(batch, 0)
    guide = parts.engine.guide(views, batch)
    with torch.no_grad(), autocast(parts.device, parts.engine.dtype):
        features = [f.detach().requires_grad_(True) for f in parts.unit.student(views.student)[1]]

    def work():
        with autocast(parts.device, parts.engine.dtype):
            loss = parts.unit._guidance_loss(features, guide.maps)
        loss.backward()

    return work


def rows(bench) -> None:
    """For benchmarks/run.py: a guided step by where its features come from, against the unguided one."""
    if not bench.fits("steps and builds", 10):
        return
    torch.set_num_threads(1)
    batch = 128 if bench.gpu else 4
    common = {"source": str(store_of(bench)), "device": bench.device.type, "batch": batch}
    options = argparse.Namespace(**common, repeats=21 if bench.gpu else 3, eager=bench.gpu)
    stores = first(open_stores(config_of(options, "unguided").data), max(batch, 64))
    times, made = race(options, stores, bench.left() * 0.6)
    base = [took / 1e3 for took in times["unguided", "step"]]
    for name, parts in made.items():
        extra = (
            {"cache_mib": round(cached.bytes / 2**20, 1)} if (cached := getattr(parts.teacher, "cache", None)) else {}
        )
        if (name, "teacher") in times:
            extra["teacher_ms"] = round(statistics.median(times[name, "teacher"]), 3)
        bench.add("DeiT-Ti", name, [took / 1e3 for took in times[name, "step"]], batch=batch, base=base, **extra)


def race(options: argparse.Namespace, stores: Stores, seconds: float = float("inf")) -> tuple[dict, dict[str, Parts]]:
    """((variant, step or teacher or loss) -> milliseconds of every turn, variant -> its parts)."""
    made = {name: parts_of(options, name, stores) for name in VARIANTS}
    work = {}
    for name, parts in made.items():
        parts.unit.train()
        batch = next(iter(parts.train_loader.epoch(0)))
        work[name, "step"] = lambda parts=parts, batch=batch: step(parts, batch)
        if parts.teacher is not None:
            views = parts.views(batch, 0)
            work[name, "teacher"] = lambda parts=parts, views=views, batch=batch: parts.engine.guide(views, batch)
            work[name, "loss"] = loss_work(parts, batch)
    times = {key: [] for key in work}
    device = next(iter(made.values())).device
    ends = time.monotonic() + seconds
    for repeat in range(options.repeats + 1):
        if repeat > 2 and time.monotonic() > ends:
            break
        for key, call in work.items():
            took = timed(device, call)
            if repeat:  # the first round warms up
                times[key].append(took)
    return times, made


def steps(options: argparse.Namespace, stores: Stores, stamp: dict) -> list[dict]:
    times, made = race(options, stores)
    median = {key: statistics.median(values) for key, values in times.items()}
    rows = []
    for name, parts in made.items():
        values, unguided = times[name, "step"], median["unguided", "step"]
        loss, call = median.get((name, "loss"), 0.0), median.get((name, "teacher"), 0.0)
        cache = getattr(parts.teacher, "cache", None)
        row = {
            "case": "step",
            "variant": name,
            "batch": options.batch,
            "step_ms": round(median[name, "step"], 2),
            "spread": round((max(values) - min(values)) / median[name, "step"], 3),
            "of_unguided": round(median[name, "step"] / unguided, 3),
            "teacher_ms": round(call, 2),
            "loss_ms": round(loss, 2),
            "of_target": round(median[name, "step"] / (unguided + loss), 3),
            "adds": round(call / (unguided + loss), 4),
            "cache_mib": round(cache.bytes / 2**20, 1) if cache else 0.0,
        }
        rows.append({**row, **stamp})
        print("  ".join(f"{key} {value}" for key, value in row.items() if key != "case"), flush=True)
    return rows


def peak(options: argparse.Namespace, variant: str) -> float:
    """Memory of a fresh process that takes three steps."""
    command = [sys.executable, __file__, "--peak", variant, "--source", options.source, "--batch", str(options.batch)]
    command += ["--device", options.device, "--images", str(options.images), *(["--eager"] if options.eager else [])]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(answer.stdout.splitlines()[-1])


def print_peak(options: argparse.Namespace) -> None:
    stores = first(open_stores(config_of(options, "unguided").data), options.images)
    parts = parts_of(options, options.peak, stores)
    parts.unit.train()
    loader = iter(parts.train_loader.epoch(0))
    for _ in range(3):
        step(parts, next(loader))
    if parts.device.type == "cuda":
        print(round(torch.cuda.max_memory_allocated() / 2**20, 1))
    else:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()  # getrusage keeps the parent's peak
        print(round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10, 1))


def builds(options: argparse.Namespace, stores: Stores, folder: Path, stamp: dict) -> list[dict]:
    """Build rate and size, for growing numbers of images."""
    rows = []
    for variant in ("cached maps", "cached compact"):
        for count in (options.images // 4, options.images // 2, options.images):
            part, config = first(stores, count), config_of(options, variant)
            config = config.replace({"teacher.cache": str(folder / f"{variant}-{count}")})
            job = plan_cache(config, part, teacher(part), 32)
            start, processor = time.perf_counter(), time.process_time()
            build_cache(job, config, part)
            processor, built, start = time.process_time() - processor, time.perf_counter() - start, time.perf_counter()
            cache = open_cache(job.path, job.fingerprint, verify=True)
            row = {
                "case": "build",
                "variant": variant,
                "images": count,
                "images_per_s": round(count / built, 1),
                "images_per_core_s": round(count / processor, 1),
                "bytes_per_image": cache.bytes // count,
                "mib": round(cache.bytes / 2**20, 2),
                "verify_mib_per_s": round(cache.bytes / 2**20 / (time.perf_counter() - start)),
            }
            rows.append({**row, **stamp})
            print("  ".join(f"{key} {value}" for key, value in row.items() if key != "case"), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ROOT.parent / "shared" / "data" / "cifar100"
    parser.add_argument("--source", default=str(default), help="any data.source; CIFAR-100 in the published rows")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=1000, help="of the training split that are cached")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--eager", action="store_true", help="engine.compile and engine.graph off")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        return print_peak(options)
    with tempfile.TemporaryDirectory() as name:
        os.environ["FASTLG_CACHE"] = name
        stores = first(open_stores(config_of(options, "unguided").data), options.images)
        device = torch.device(options.device)
        load = [round(value, 2) for value in os.getloadavg()]
        stamp = {"commit": commit(), "device": device_name(device), "versions": versions(), "load_average": load}
        rows = builds(options, stores, Path(name), stamp) + steps(options, stores, stamp)
        save(options, rows)
        for row in rows:
            if row["case"] == "step":
                row["peak_mib"] = peak(options, row["variant"])
                print(f"variant {row['variant']}  peak_mib {row['peak_mib']}", flush=True)
        save(options, rows)


def save(options: argparse.Namespace, rows: list[dict]) -> None:
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
