"""Training end to end: images/s of whole steps, everything included. The question all others serve.

Kinds of rows (``extra.kind``):

    end to end   DeiT-Ti guided, unguided, with cached teacher features and on synthetic data (one finished batch again
                 and again), against the reference style; the other students guided against the reference style
    ladder       from the reference style to fastlg, one change at a time
    batch size   time of a step against the batch size
    engine       plain torch against DeepSpeed, where that is installed

Students are all of the paper's. The reference style does what reference_style.py says; it runs the same guided job, so
both share one bound. Cached features follow crops and flips alone, so that row's images pass through no RandAugment.

Rivals take turns on a CPU, one step each. On a GPU, where CUDA graphs hold memory, they come one after another; a turn
is then a number of steps between two synchronizations, after steps that are not timed, so that batches which workers
prepared while nobody waited do not count.
"""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from benchmarks.harness.bench import Bench, peak_mib, synchronize, wall
from benchmarks.harness.counting import Work
from benchmarks.harness.ours import Ours, config_of, made_teacher, workers_of
from benchmarks.harness.reference_style import ReferenceStyle, Style
from fastlg.data.stores import open_stores
from fastlg.errors import UserError

NAMES = {
    "deit_tiny": "DeiT-Ti",
    "pit_tiny": "PiT-Ti",
    "pvtv2_b0": "PVTv2-B0",
    "convit_tiny": "ConViT-Ti",
    "t2t_vit_7": "T2T-ViT-7",
    "t2t_vit_14": "T2T-ViT-14",
    "pvt_tiny": "PVT-Ti",
    "cvt_13": "CvT-13",
}
OFF = ("compile", "graph", "prefetch", "channels_last", "fold_norms")
EAGER = tuple(f"engine.{name}=false" for name in OFF)
Stepper = Ours | ReferenceStyle
TURN_S = 1.0  # a turn on a GPU, steps that are not timed aside
WARM = 5  # steps: three eager ones before a CUDA graph is captured, and two replays


def rows(bench: Bench) -> None:
    sizes = (128, 1024) if bench.gpu else (8,)
    # On a GPU the rest of a case waits until the ladder is done: each rival may compile for half a minute.
    bases = {batch: end_to_end(bench, batch) for batch in sizes}
    ladder(bench, sizes[0])
    if bench.quick:
        return
    for batch in sizes if bench.gpu else ():
        if bases[batch] and bench.fits(f"DeiT-Ti, batch {batch}, the rest", 20):
            race(bench, rest(bench, batch), "DeiT-Ti", batch, kind="end to end", turns=4, base=bases[batch])
    for name in list(NAMES)[1:]:
        for batch in sizes:
            other_student(bench, name, batch)
    batch_sizes(bench)
    engines(bench, sizes[0])


def reference(bench: Bench, batch: int, name: str = "deit_tiny", **style: bool) -> ReferenceStyle:
    config = config_of(bench, name, batch)
    stores = open_stores(config.data)
    teacher = made_teacher(len(stores.class_names))
    return ReferenceStyle(config, stores.train, teacher, Style(**style), device=bench.device, workers=workers_of(bench))


def references(bench: Bench, batch: int, name: str = "deit_tiny") -> dict[str, Callable[[], Stepper]]:
    """The rivals written in the reference style; autocast is what a GPU would be used with."""
    found = {"reference style, fp32": lambda: reference(bench, batch, name)}
    if bench.gpu:
        found["reference style, autocast"] = lambda: reference(bench, batch, name, autocast=True)
    return found


def end_to_end(bench: Bench, batch: int) -> list[float] | None:
    """Returns the seconds of the base, or None where nothing was measured."""
    rivals = {
        **references(bench, batch),
        "guided": made(bench, batch),
        "unguided": made(bench, batch, ["teacher=null"]),
    }
    if not (bench.quick or bench.gpu):
        rivals.update(rest(bench, batch))
    if bench.fits(f"DeiT-Ti, batch {batch}", 40 if bench.gpu else 6):
        return race(bench, rivals, "DeiT-Ti", batch, kind="end to end", turns=3 if bench.quick else 7)
    return None


def rest(bench: Bench, batch: int) -> dict[str, Callable[[], Stepper]]:
    return {
        "guided, cached teacher": lambda: Ours(config_of(bench, "deit_tiny_cached", batch)),
        "guided, synthetic data": lambda: Ours(config_of(bench, "deit_tiny", batch), synthetic=True),
    }


def other_student(bench: Bench, name: str, batch: int) -> None:
    rivals = {**references(bench, batch, name), "guided": lambda: Ours(config_of(bench, name, batch))}
    if bench.gpu:  # fp32 once is enough
        rivals.pop("reference style, fp32")
    if bench.fits(f"{NAMES[name]}, batch {batch}", 20 if bench.gpu else 8):
        race(bench, rivals, NAMES[name], batch, kind="end to end", turns=4)


def ladder(bench: Bench, batch: int) -> None:
    """Each rung is the one before with one change."""
    style, steps = Style(), {"reference style, fp32": {}}
    if bench.gpu:
        steps["bf16 autocast"] = {"autocast": True}
    steps["no host sync per logged value"] = {"syncs": False}
    steps["guided blocks alone, no copies to NCHW"] = {"copies": False}
    steps["guidance loss of fastlg_kernels"] = {"kernel": True}
    steps["fused AdamW"] = {"fused": True}
    rivals: dict[str, Callable[[], Stepper]] = {}
    for name, change in steps.items():
        style = replace(style, **change)
        rivals[name] = lambda style=style: reference(bench, batch, **vars(style))
    off = list(EAGER)
    overrides = [*off, "data.loader=torch"]
    rivals["fastlg's loop, its switches off"] = made(bench, batch, overrides)
    if bench.gpu:
        overrides = off
        rivals["images resident on the device"] = made(bench, batch, overrides)
    for switch in ("channels_last", *(("compile", "graph", "prefetch") if bench.gpu else ())):
        off.remove(f"engine.{switch}=false")
        overrides = list(off) if bench.gpu else [*off, "data.loader=torch"]
        name = "teacher in channels-last" if switch == "channels_last" else f"engine.{switch}"
        rivals[name] = made(bench, batch, overrides)
    if bench.fits(f"ladder, batch {batch}", 60 if bench.gpu else 9):
        race(bench, rivals, "DeiT-Ti", batch, kind="ladder", turns=2 if bench.quick else 5)


def made(bench: Bench, batch: int, overrides: Sequence[str] = ()) -> Callable[[], Stepper]:
    overrides = tuple(overrides)
    return lambda: Ours(config_of(bench, "deit_tiny", batch, *overrides))


def batch_sizes(bench: Bench) -> None:
    for batch in (32, 64, 128, 256, 512, 1024) if bench.gpu else (1, 4, 16, 32):
        style = {"autocast": True} if bench.gpu else {}
        rivals = {
            "reference style": lambda batch=batch, style=style: reference(bench, batch, **style),
            "fastlg": lambda batch=batch: Ours(config_of(bench, "deit_tiny", batch)),
        }
        if bench.fits(f"batch size {batch}", 15 if bench.gpu else 1 + batch * 0.35):
            race(bench, rivals, "DeiT-Ti guided", batch, kind="batch size", turns=3)


def engines(bench: Bench, batch: int) -> None:
    """DeepSpeed's own start takes seconds, so this comes last."""
    rivals = {"plain": made(bench, batch, ["engine.kind=plain"])}
    if importlib.util.find_spec("deepspeed") is None:
        bench.left_out.append("training: DeepSpeed's engine (not installed: pip install 'fastlg[deepspeed]')")
        return
    rivals["deepspeed"] = made(bench, batch, ["engine.kind=deepspeed"])
    if bench.fits("engines", 40 if bench.gpu else 15):
        try:
            race(bench, rivals, "DeiT-Ti guided, engine", batch, kind="engine", turns=4)
        except UserError as error:
            bench.left_out.append(f"training: DeepSpeed's engine ({error})")


def race(
    bench: Bench,
    rivals: dict[str, Callable[[], Stepper]],
    case: str,
    batch: int,
    *,
    kind: str,
    turns: int,
    base: list[float] | None = None,
) -> list[float] | None:
    """Measures rivals and adds their rows; returns the seconds of the base, which is the first rival unless given: of a
    ladder its foot, else the reference style with autocast where there is one. The bound of a reference style is that
    of the guided job."""
    run = one_after_another if bench.gpu else in_turns
    times, works, peaks = run(bench, rivals, batch, turns, with_peaks=kind != "ladder")
    guided = next((works[name] for name in works if "unguided" not in name), None)
    first = () if kind == "ladder" else ("reference style, autocast",)
    base = base or next((times[name] for name in (*first, *times) if times.get(name)), None)
    for name, taken in times.items():
        if not taken:
            bench.left_out.append(f"training: {case}, {name}, batch {batch} (out of time)")
            continue
        own = {"base": base, "work": works.get(name, guided), "peak_mib": peaks[name], "kind": kind}
        bench.add(case, name, taken, batch=batch, **own)
    return base


Measured = tuple[dict[str, list[float]], dict[str, Work], dict[str, float | None]]


def in_turns(
    bench: Bench, rivals: dict[str, Callable[[], Stepper]], batch: int, turns: int, with_peaks: bool
) -> Measured:
    """All rivals built, then one step each, again and again; the first step of each is not counted."""
    steppers, works, peaks = {}, {}, {}
    for name, make in rivals.items():
        steppers[name] = stepper = make()
        if isinstance(stepper, Ours) and not any(same_job(stepper, steppers[other]) for other in works):
            works[name] = stepper.work()
        elif isinstance(stepper, Ours):
            works[name] = works[next(other for other in works if same_job(stepper, steppers[other]))]
        stepper.open()
        peaks[name] = peak_mib(stepper.step, bench.device) if with_peaks else None
    runs = {name: stepper.step for name, stepper in steppers.items()}
    times = bench.turns(runs, turns=turns, seconds=bench.left() * 0.6, warm=0 if with_peaks else 1)
    for stepper in steppers.values():
        stepper.close()
    return times, works, peaks


def same_job(a: Ours, b: Stepper) -> bool:
    """Whether both count the same bytes and FLOPs: the same sections but for engine and data."""
    sections = {"model", "teacher", "guidance", "optim", "augment"}
    dump = [one.parts.config.model_dump(include=sections) if isinstance(one, Ours) else None for one in (a, b)]
    return dump[0] == dump[1]


def one_after_another(
    bench: Bench, rivals: dict[str, Callable[[], Stepper]], batch: int, turns: int, with_peaks: bool
) -> Measured:
    """Each rival built, measured and freed; rivals that no longer fit into the time stay without times."""
    times, works, peaks = {}, {}, {}
    for index, (name, make) in enumerate(rivals.items()):
        times[name], peaks[name] = [], None
        if bench.left() < 5:
            continue
        ends = time.monotonic() + bench.left() / (len(rivals) - index)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        stepper = make()
        if isinstance(stepper, Ours):
            works[name] = stepper.work()
        workers = getattr(stepper, "workers", 0)
        least = max(2, workers)  # workers finish their batches together: a turn holds whole rounds of them
        step_s = one_turn(stepper, bench.device, warm=max(WARM, workers), steps=least)
        steps = min(max(least, round(TURN_S / step_s)), max(least, 2560 // batch))
        for turn in range(turns):
            if turn >= 2 and time.monotonic() > ends:
                break
            times[name].append(one_turn(stepper, bench.device, warm=max(WARM, workers), steps=steps))
        if with_peaks:
            peaks[name] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
        del stepper
        gc.collect()
        torch.compiler.reset()  # compiled code would keep the rival's weights
        torch.cuda.empty_cache()
    return times, works, peaks


def one_turn(stepper: Stepper, device: torch.device, *, warm: int, steps: int) -> float:
    """Seconds per step of ``steps`` steps, after ``warm`` that are not timed."""
    stepper.open()
    for _ in range(warm):
        stepper.step()
    synchronize(device)
    took = wall(lambda: [stepper.step() for _ in range(steps)], device)
    stepper.close()
    return took / steps
