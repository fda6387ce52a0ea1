"""Batched augmentation against timm's image by image: time per image, and on a GPU the distance to the bytes.

    python benchmarks/cases/kernels/augment.py [--batch 128] [--size 224] [--repeats 7] [--quick] [--json PATH]

Cases, each from decoded bytes in memory to a finished batch of normalised views:

    cifar       32 x 32 -> 224: crop, resize, flip, RandAugment (rand-m9-mstd0.5-inc1), normalise, erase
    photos      256 x 340 -> 224, the same
    resize, rand_augment, normalise, erase      the steps of case cifar alone
    <operation>                                 each RandAugment operation alone, at magnitude 9, images at 224

Providers: "timm" is create_transform (or the step or operation of it) on Pillow images, one by one, stacked to a
batch; "batched" is fastlg_kernels on the whole batch. They take turns on one thread; a row holds the median processor
time per image over the turns, ``spread`` the distance of the quartiles over the median, and ``ratio`` timm's time over
the row's. On a GPU "batched" is timed between events; ``bound_share`` is the time a device copy of the bytes that have
to move (crops read, views written) would take, over the row's, and ``moved_mib`` counts what the passes move.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # the root, not this folder, whose names could hide installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import functional as F

from benchmarks.harness.bench import spread
from benchmarks.harness.counting import Work
from fastlg.files.provenance import commit, device_name, versions
from fastlg_kernels import (
    apply_op,
    draw_rand_augment,
    normalise,
    parse_rand_augment,
    random_erasing,
    resize_crops,
    sample_seeds,
    train_views,
)
from fastlg_kernels.augment import rand_augment
from fastlg_kernels.augment.rand_augment import LEVELS, OP_NAMES

SPEC, MAGNITUDE, TEACHER = "rand-m9-mstd0.5-inc1", 9.0, 32
MEAN, STD, FILL = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (124, 116, 104)
SIZES = {"cifar": (32, 32), "photos": (256, 340)}
STEPS = ("resize", "rand_augment", "normalise", "erase")


def made_images(count: int, height: int, width: int) -> Tensor:
    """Smooth images with a little noise, uint8 [count, height, width, 3]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 9, 9, generator=generator) * 255
    values = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    values += torch.randn(values.shape, generator=generator) * 4
    return values.clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def crop_boxes(count: int, height: int, width: int) -> Tensor:
    """timm's own random resized crops: int64 [count, 4] (y, x, height, width)."""
    canvas = Image.new("RGB", (width, height))
    params = RandomResizedCropAndInterpolation.get_params
    return torch.tensor([params(canvas, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(count)])


def surviving(transform: Callable) -> Callable:
    """timm 1.0.31 with Pillow 13 raises where it posterizes to 0 bits, in 0.15 % of the images: draw again."""

    def run(image):
        while True:
            try:
                return transform(image)
            except ValueError:
                continue

    return run


class Batch:
    """One case's images in both forms, and what the batched side needs beside them."""

    def __init__(self, case: str, options: argparse.Namespace, device: torch.device):
        height, width = SIZES.get(case, SIZES["cifar"])
        self.stored = made_images(options.batch, height, width)
        self.boxes = crop_boxes(options.batch, height, width)
        self.views = made_images(options.batch, options.size, options.size)
        self.on_device = self.stored.to(device), self.views.to(device)
        self.ids, self.size, self.turn = torch.arange(options.batch, device=device), options.size, 0
        self.floats = [torch.zeros(3, options.size, options.size) for _ in range(options.batch)]
        self.batch_floats = torch.zeros(options.batch, 3, options.size, options.size, device=device)

    def seeds(self, purpose: str) -> Tensor:
        return sample_seeds(0, self.turn, self.ids, purpose)


def timm_side(case: str, batch: Batch) -> Callable[[], object]:
    """The case as timm does it: a call that makes one batch."""
    stored = [Image.fromarray(image.numpy()) for image in batch.stored]
    views = [Image.fromarray(image.numpy()) for image in batch.views]
    if case in SIZES:
        transform = surviving(create_transform(batch.size, True, auto_augment=SPEC, re_prob=0.25, re_mode="pixel",
                                               interpolation="bicubic"))  # fmt: skip
        return lambda: torch.stack([transform(image) for image in stored])
    if case == "resize":
        boxes = [(x, y, x + w, y + h) for y, x, h, w in batch.boxes.tolist()]
        shape = (batch.size, batch.size)
        return lambda: np.stack(
            [image.crop(box).resize(shape, Image.BICUBIC) for image, box in zip(stored, boxes, strict=True)]
        )
    if case == "rand_augment":
        hparams = {"img_mean": FILL, "interpolation": Image.BICUBIC}
        transform = surviving(auto_augment.rand_augment_transform(SPEC, hparams))
        return lambda: np.stack([transform(image) for image in views])
    if case == "normalise":
        return lambda: torch.stack([F.normalize(F.to_tensor(image), MEAN, STD) for image in views])
    if case == "erase":
        eraser = RandomErasing(0.25, mode="pixel", device="cpu")
        return lambda: [eraser(image) for image in batch.floats]
    value = argument(case)
    options = {"fillcolor": FILL, "resample": Image.BICUBIC}
    run, arguments = auto_augment.NAME_TO_OP[case], () if value is None else (value,)
    return lambda: np.stack([run(image, *arguments, **options) for image in views])


def batched_side(case: str, batch: Batch) -> Callable[[], object]:
    """The same on whole batches; every call draws anew, which a training run does once per epoch."""
    stored, views = batch.on_device

    def whole():
        crops = resize_crops(stored, batch.boxes, batch.size)
        seeds, erase_seeds = batch.seeds("rand_augment"), batch.seeds("erase")
        gpu = views.is_cuda
        options = {"teacher_size": TEACHER, "dtype": torch.bfloat16} if gpu else {}
        flip = (batch.seeds("flip") & 1).bool()
        return train_views(crops, seeds, erase_seeds, MEAN, STD, flip=flip, spec=SPEC, **options)

    match case:
        case "cifar" | "photos":
            return whole
        case "resize":
            return lambda: resize_crops(stored, batch.boxes, batch.size)
        case "rand_augment":
            return lambda: rand_augment(views, batch.seeds("rand_augment"), spec=SPEC)
        case "normalise":
            return lambda: normalise(views, MEAN, STD)
        case "erase":
            return lambda: random_erasing(batch.batch_floats, batch.seeds("erase"))
    return lambda: apply_op(views, case, argument(case), fill=FILL)


def argument(name: str) -> float | int | None:
    """The operation's argument at MAGNITUDE, with the sign that adds."""
    level = LEVELS[name]
    if level.slope == 0.0:
        return None
    amount = level.slope * MAGNITUDE / 10.0
    amount = min(int(amount) if level.whole else amount, level.cap)
    value = level.base + (level.sign or 1) * amount
    return int(value) if level.whole else value


def processor_time(run: Callable[[], object], batch: Batch) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def event_time(run: Callable[[], object], batch: Batch) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(40_000_000)  # 20 ms: the host runs ahead, so its launch time is not what is measured
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def moved_bytes(batch: Batch) -> tuple[int, int]:
    """Of one finished batch on a GPU: bytes that have to move, and bytes that the passes move."""
    count, size = len(batch.boxes), batch.size
    view, byte_view = count * size * size * 3 * 2, count * size * size * 3
    crops = int((batch.boxes[:, 2] * batch.boxes[:, 3]).sum()) * 3
    finished = view + count * TEACHER * TEACHER * 3 * 2
    lines = int(batch.boxes[:, 2].sum()) * size * 3
    draw = draw_rand_augment(batch.seeds("rand_augment"), SPEC)
    counted = [OP_NAMES.index(name) for name in ("AutoContrast", "Equalize", "ContrastIncreasing")]
    histograms = int((torch.isin(draw.op.cpu(), torch.tensor(counted)) & draw.applied.cpu()).sum())
    early = int(draw.applied[:, :-1].sum())
    passes = crops + 2 * lines + byte_view + (histograms + 2 * early) * (byte_view // count) + byte_view + finished
    return crops + finished, passes


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes read and written per second by a large device copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [event_time(lambda: target.copy_(source), None) for _ in range(5)]
    return 2 * source.numel() / min(times)


def race(
    case: str,
    options: argparse.Namespace,
    device: torch.device,
    ends: float = float("inf"),
    providers: tuple[str, ...] = ("timm", "batched"),
) -> tuple[dict, Batch]:
    """(provider -> seconds per image of every turn, the images); no new turn begins after ``ends``."""
    batch = Batch(case, options, device)
    makers = {"timm": timm_side, "batched": batched_side}
    sides = {name: makers[name](case, batch) for name in providers}
    clocks = {"timm": processor_time, "batched": event_time if device.type == "cuda" else processor_time}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.repeats + 1):
        if turn > 2 and time.monotonic() > ends:
            break
        batch.turn = turn
        for name, run in sides.items():
            taken = clocks[name](run, batch)
            if turn:  # the first turn compiles and fills caches
                times[name].append(taken / options.batch)
    return times, batch


def rows(bench) -> None:
    """For benchmarks/run.py: the whole transforms, on one thread; a CPU's rows are processor time."""
    torch.set_num_threads(1)
    options = argparse.Namespace(size=224, repeats=3 if bench.quick else 7)
    cases = ("cifar",) if bench.quick else tuple(SIZES)
    for case, count in [(case, count) for count in ((128, 1024) if bench.gpu else (32,)) for case in cases]:
        if not bench.fits(f"{case}, batch {count}", 1.5):
            continue
        options.batch, providers = count, ("timm", "batched") if count < 1024 else ("batched",)
        times, batch = race(case, options, bench.device, time.monotonic() + bench.left() * 0.8, providers)
        base = [count * took for took in times["timm"]] if "timm" in times else None
        for name, taken in times.items():
            work = Work(moved_bytes(batch)[0], 0) if bench.gpu and name == "batched" else None
            bench.add(case, name, [count * took for took in taken], batch=count, base=base, work=work)


def measure(case: str, options: argparse.Namespace, device: torch.device) -> list[dict]:
    """Both providers in turn; timm's row first."""
    times, batch = race(case, options, device)
    rows = []
    for name, taken in times.items():
        median = statistics.median(taken)
        rows.append({
            "case": case, "provider": name, "batch": options.batch, "ms_per_image": round(median * 1e3, 5),
            "images_per_s": round(1 / median, 1), "spread": round(spread(taken), 3),
            "ratio": round(statistics.median(times["timm"]) / median, 2),
        })  # fmt: skip
    if device.type == "cuda" and case in SIZES:
        needed, moved = moved_bytes(batch)
        seconds = statistics.median(times["batched"]) * options.batch
        share = needed / copy_bytes_per_s(device) / seconds
        rows[-1] |= {"bound_share": round(share, 3), "needed_mib": needed >> 20, "moved_mib": moved >> 20}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cases", default=",".join((*SIZES, *STEPS, *parse_rand_augment(SPEC).ops)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="the whole transforms only, batch 32, 3 turns")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.repeats, options.cases = 32, 3, ",".join(SIZES)
    torch.set_num_threads(1)
    device, rows = torch.device(options.device), []
    stamp = {"commit": commit(), "device": device_name(device), "versions": versions()}
    for case in options.cases.split(","):
        for row in measure(case, options, device):
            rows.append({**row, **stamp})
            extra = "".join(f" {key} {row[key]}" for key in ("bound_share", "needed_mib", "moved_mib") if key in row)
            print(
                f"{case:<22}{row['provider']:<9}{row['ms_per_image']:>9.4f} ms/image +-{row['spread']:>4.0%}"
                f"{row['images_per_s']:>11.0f} images/s{row['ratio']:>7.2f}x{extra}",
                flush=True,
            )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
