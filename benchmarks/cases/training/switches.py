"""What each switch of the engine is worth: guided DeiT-Ti steps with it on against off, the rest as a run has it.

    python benchmarks/run.py switches

On a GPU the eight switches, two passes per update, and bf16; rivals of one switch take turns. On a CPU those that a CPU
has, and all rivals take turns, since they fit into memory together; graph and prefetch need CUDA and are left out by
name. Norms can be folded with running statistics only, so both rivals of that switch use them.
"""

from __future__ import annotations

import gc
from functools import partial
from typing import NamedTuple

from benchmarks.harness.bench import Bench
from benchmarks.harness.ours import Ours, config_of

SWITCHES = (
    "compile",
    "graph",
    "prefetch",
    "channels_last",
    "fold_norms",
    "fused_attention",
    "fuse",
    "tune_convolutions",
)
RUNNING = "teacher.norm_stats=running"
Overrides = tuple[str, ...]


class Pair(NamedTuple):
    """Two rivals by their overrides; ``before`` is what speed is against."""

    name: str
    before: Overrides
    after: Overrides
    labels: tuple[str, str] = ("off", "on")


def rows(bench: Bench) -> None:
    batch = 128 if bench.gpu else 8
    pairs = pairs_for(bench, batch)
    groups = [[pair] for pair in pairs] if bench.gpu else [pairs]
    for group in groups:
        names = ", ".join(pair.name for pair in group)
        if bench.fits(names, (20 if bench.gpu else 5) * len(group)):
            measure(bench, group, batch, (bench.left() - 5) / max(1, len(groups)))
        gc.collect()


def pairs_for(bench: Bench, batch: int) -> list[Pair]:
    """What this device and run allow; the rest is left out with its reason."""
    pairs = []
    decided = {
        common: Ours(config_of(bench, "deit_tiny", batch, *common)).parts.switches for common in ((), (RUNNING,))
    }
    for name in SWITCHES:
        common = (RUNNING,) if name == "fold_norms" else ()
        switches = decided[common]
        if getattr(switches, name):
            pairs.append(Pair(name, (*common, f"engine.{name}=false"), common))
        elif name == "compile" and not bench.quick:  # possible where it is not the default
            pairs.append(Pair(name, common, (*common, "engine.compile=true")))
        else:
            bench.left_out.append(f"{bench.name}: {name} ({switches.why_off[name]})")
    graph = ("engine.graph=false",) if bench.gpu else ()  # two passes cannot be captured: compare what is the same
    passes = (*graph, f"engine.micro_batch_size={batch // 2}")
    pairs.append(Pair("accumulation", graph, passes, ("one pass", "two passes")))
    pairs.append(Pair("precision", ("engine.precision=fp32",), ("engine.precision=bf16",), ("fp32", "bf16")))
    return pairs


def measure(bench: Bench, pairs: list[Pair], batch: int, seconds: float) -> None:
    """Rivals that several pairs share are built and timed once."""
    rivals = dict.fromkeys(overrides for pair in pairs for overrides in (pair.before, pair.after))
    calls = 4 if bench.gpu else 1  # steps between two looks at the clock
    trainings = {}
    for overrides in rivals:
        trainings[overrides] = Ours(config_of(bench, "deit_tiny", batch, *overrides), synthetic=not bench.gpu)
        trainings[overrides].open()
        for _ in range(6 if bench.gpu else 2):  # compiles, captures
            trainings[overrides].step()
    runs = {overrides: partial(steps, ours, calls) for overrides, ours in trainings.items()}
    times = bench.turns(runs, turns=20 if bench.gpu else 3 if bench.quick else 15, seconds=seconds)
    for ours in trainings.values():
        ours.close()
    for pair in pairs:
        for overrides, label in ((pair.before, pair.labels[0]), (pair.after, pair.labels[1])):
            taken = [took / calls for took in times[overrides]]
            base = [took / calls for took in times[pair.before]]
            on = trainings[overrides].parts.switches.on()
            case = f"DeiT-Ti, {pair.name}"
            bench.add(case, label, taken, batch=batch, base=base, overrides=list(overrides), switches_on=on)


def steps(ours: Ours, count: int) -> None:
    for _ in range(count):
        ours.step()
