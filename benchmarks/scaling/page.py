"""docs/scaling.md and its plot, made from results files alone: every number on the page follows from theirs."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.harness.plots import BLUE, ORANGE
from benchmarks.harness.report import ROOT, number
from benchmarks.scaling.model import GPUS, NETWORKS, SCENARIOS, Assumptions, all_rows, limit

ONE_GPU = ROOT / "benchmarks" / "results" / "2026-11-27-nvidia-h200-1492f739ae08-gpu.json"
COMMAND = "python benchmarks/scaling/study.py"
SHOWN = (1, 8, 16, 64, 256, 1024)
FAST, SLOW = NETWORKS
BATCH, BATCH_HALF, RUNNING, RUNNING_HALF, ONE_BUCKET = list(SCENARIOS)[:5]
GOOD = 0.8  # the efficiency down to which the page says that it scales


def select(results: dict, network: str, scenario: str, mode: str) -> list[dict]:
    wanted = (network, scenario, mode)
    return [r for r in results["modelled"]["rows"] if (r["network"], r["scenario"], r["mode"]) == wanted]


def conditions(row: dict) -> str:
    """Where and when a row was measured."""
    versions, dirty = row["versions"], " with local changes" if row["dirty"] else ""
    others = "" if row["others"] is None else f"; {row['others']:g} threads of other programs were running"
    return (
        f"{row['device']}, torch {versions['torch']}, Python {versions['python']}; "
        f"commit {row['commit'] or '?'}{dirty}; {row['date'][:10]}{others}"
    )


def flowed(text: str) -> str:
    """Paragraphs and numbered points at 120 columns; tables, pictures and headings as they are."""
    parts = []
    for part in text.split("\n\n"):
        if part.startswith(("|", "!", "#")):
            parts.append(part)
            continue
        points = part.replace("\n   ", " ").split("\n") if part.startswith("1. ") else [part]
        for point in points:
            after = "   " if part.startswith("1. ") else ""
            wrap = {"subsequent_indent": after, "break_long_words": False, "break_on_hyphens": False}
            points[points.index(point)] = textwrap.fill(" ".join(point.split()), 120, **wrap)
        parts.append("\n".join(points))
    return "\n\n".join(parts) + "\n"


def measured_table(rows: list[dict]) -> str:
    lines = ["| training | processes | ms per step | ± | images/s | efficiency |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        cells = (number(row["median_ms"]), f"{row['spread']:.0%}", number(row["images_per_s"]), f"{row['ratio']:.2f}")
        name = row["case"].removeprefix("DeiT-Ti, guided: ")
        lines.append(f"| {name} | {row['extra']['processes']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bytes_table(rows: list[dict]) -> str:
    lines = [
        "| training | collectives | bytes on paper | counted | a rank of a ring sends | the kernel sent |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        extra = row["extra"]
        if extra.get("paper_bytes"):
            paper, found = (sum(extra[key].values()) for key in ("paper_bytes", "counted_bytes"))
            cells = (extra["collectives"], *map("{:,}".format, (paper, found, extra["sent_bytes"])))
            name = row["case"].removeprefix("DeiT-Ti, guided: ")
            lines.append(f"| {name} | " + " | ".join(map(str, cells)) + f" | {extra['loopback_bytes']:,} |")
    return "\n".join(lines)


def efficiency_table(results: dict, mode: str, key: str = "efficiency") -> str:
    """One line per network and scenario; empty where an epoch holds no step."""
    head = [f"{gpus:,} GPU{'s' if gpus > 1 else ''}" for gpus in SHOWN]
    lines = ["| network per node | what | " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(SHOWN)]
    for network in NETWORKS:
        for scenario in SCENARIOS:
            own = {row["gpus"]: row for row in select(results, network, scenario, mode)}
            if own:
                cells = [own[gpus][key] if gpus in own else None for gpus in SHOWN]
                shown = ["" if value is None else f"{value:.2f}" for value in cells]
                lines.append(f"| {network} | {scenario} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def assumptions_table(values: dict) -> str:
    lines = ["| assumption | value |", "|---|---:|"]
    return "\n".join([*lines, *(f"| `{name}` | {value} |" for name, value in values.items())])


def findings(results: dict) -> str:
    """The short answer; every number from the rows."""
    a = Assumptions(**results["modelled"]["assumptions"])

    def reach(scenario: str, mode: str = "weak", network: str = FAST, key: str = "efficiency") -> str:
        most = limit(select(results, network, scenario, mode), GOOD, key)
        return f"{most:,} GPU{'s' if most > 1 else ''}"

    def at(scenario: str, gpus: int, key: str, mode: str = "weak", network: str = FAST):
        return next(row[key] for row in select(results, network, scenario, mode) if row["gpus"] == gpus)

    per_epoch = a.train_images // a.batch_per_gpu
    return f"""\
"Scales" means an efficiency of {GOOD} or more. Everything in this section is modelled, not measured.

1. **Batch statistics of the teacher are the first limit.** Synchronising them over the ranks takes
   {a.norm_all_reduces} small all-reduces, one per norm, each after the one before:
   {number(at(BATCH, 8, "norms_ms"))} ms of a step on 8 GPUs and {number(at(BATCH, 64, "norms_ms"))} ms on 64, in
   addition to {number(at(BATCH, 64, "compute_ms"))} ms of computation. The weak efficiency is
   {at(BATCH, 8, "efficiency"):.2f} on 8 GPUs and {at(BATCH, 64, "efficiency"):.2f} on 64. With
   `teacher.norm_stats=running` nothing is exchanged: the efficiency is {at(RUNNING, 64, "efficiency"):.2f} on 64, and
   training scales to {reach(RUNNING)}. Cached features (`teacher.mode=cache`) exchange nothing either and scale to
   {reach("cached features, fp32")}. If batch statistics are required, 512 images per GPU
   (`optim.global_batch_size`) give {at("batch, fp32, batch 512 per GPU", 64, "efficiency"):.2f} on 64 GPUs.
2. **The all-reduce of the gradients** ({number(a.gradient_values * 4, 1e6)} MB in float32) matters only on slow
   networks: the part that the backward pass does not hide takes {number(at(RUNNING, 64, "gradients_ms"))} ms with
   {FAST} per node and {number(at(RUNNING, 64, "gradients_ms", network=SLOW))} ms with {SLOW}, where running statistics
   scale to {reach(RUNNING, network=SLOW)}. Buckets of about {a.bucket_mb:.0f} MB are sent during the backward pass.
   With torch's 25 MB, all gradients would be one bucket, sent only after that pass: the efficiency on 64 GPUs with
   {SLOW} would be {at(ONE_BUCKET, 64, "efficiency", network=SLOW):.2f} instead of
   {at(RUNNING, 64, "efficiency", network=SLOW):.2f}. Gradients in bf16
   (`{"{"}"communication_data_type": "bf16"{"}"}` in the file of `engine.deepspeed_config`) raise it to
   {at(RUNNING_HALF, 64, "efficiency", network=SLOW):.2f}, as DeepSpeed sends half the bytes, but in one bucket; with
   {FAST} it is {at(RUNNING_HALF, 64, "efficiency"):.3f} instead of {at(RUNNING, 64, "efficiency"):.3f}. 512 images per
   GPU raise it to {at("running, fp32, batch 512 per GPU", 64, "efficiency", network=SLOW):.2f}. ZeRO 1 and 2 send half
   as much again and save no memory that a model of this size needs.
3. **A fixed global batch of {a.global_batch:,}** scales to {reach(RUNNING, "strong")} with running statistics and to
   {reach(BATCH, "strong")} with batch statistics. Beyond that, each GPU has so few images that launching the kernels of
   a step takes longer than computing them ({number(at(RUNNING, 1024, "compute_ms", "strong"))} ms at any batch size),
   because several ranks cannot replay their step as one CUDA graph.
4. **A small dataset has few steps per epoch.** {a.train_images:,} images are {per_epoch} batches of
   {a.batch_per_gpu}: with more GPUs than that, an epoch is less than one step. On 64 GPUs an epoch takes
   {number(at(RUNNING, 64, "epoch_s"), 1e-3)} ms including evaluation and checkpoint, and the efficiency of whole epochs
   is only {at(RUNNING, 64, "run_efficiency"):.2f}. With `log.eval_epochs=10` it is
   {at("running, fp32, evaluation every 10 epochs", 64, "run_efficiency"):.2f}; if checkpoints were as rare, it would be
   {at("running, fp32, evaluation and checkpoint every 10", 64, "run_efficiency"):.2f} (fastlg saves after every epoch).
   By this measure a CIFAR-100 run scales to {reach(RUNNING, key="run_efficiency")}.
5. **Input is free while the store is resident** ({a.store_mb:g} MB on every GPU). Decoding JPEGs of 512 px at every
   step would limit a node of {a.gpus_per_node} GPUs to {number(a.cpus_per_node * a.jpeg_per_cpu_per_s)} images/s, an
   efficiency of {at("running, fp32, JPEG decoded on the node", 8, "efficiency"):.2f} on one node or more: run
   `fastlg prepare` once instead.

In short: use one node per run, and spend more GPUs on more runs (seeds, datasets, students). For a large dataset, first
use running statistics or cached features, then a fast network or more images per GPU."""


def one_gpu(results: dict) -> str:
    """The model's estimate for one GPU beside what a GPU took, and what the difference means for the model."""
    a = Assumptions(**results["modelled"]["assumptions"])
    rows = json.loads(ONE_GPU.read_text(encoding="utf-8"))["rows"]
    taken = next(r for r in rows if r["case"] == "DeiT-Ti guided, epochs" and r["batch"] == a.batch_per_gpu)
    launched = next(r for r in rows if (r["case"], r["provider"]) == ("DeiT-Ti, first steps", "compile"))
    alone = next(r for r in select(results, FAST, RUNNING, "weak") if r["gpus"] == 1)
    rate = 1 / (1 / taken["images_per_s"] - 1e-6 * a.teacher_us)
    anew = {"modelled": {"rows": all_rows(replace(a, student_images_per_s=rate))}}

    def change(scenario: str, gpus: int) -> str:
        old, new = (
            next(r["efficiency"] for r in select(own, FAST, scenario, "weak") if r["gpus"] == gpus)
            for own in (results, anew)
        )
        return f"{new:.2f} instead of {old:.2f} on {gpus}"

    return f"""\
The model starts from an estimate for one GPU: {number(alone["compute_ms"])} ms for {a.batch_per_gpu} images, or
{number(alone["images_per_s"])} images/s. One {taken["device"]} has been **measured** since:
{number(taken["median_ms"])} ms, or {number(taken["images_per_s"])} images/s, including augmentation, with the step
replayed as a CUDA graph ([rows](../benchmarks/results/{ONE_GPU.stem}.md)). That is
{taken["median_ms"] / alone["compute_ms"]:.1f} times the estimated time. A slower step makes the exchanges weigh less:
with the measured time, batch statistics and {FAST} per node, the weak efficiency would be {change(BATCH, 8)} GPUs and
{change(BATCH, 64)}.

The model's cost of launches, on the other hand, is too low for that GPU. Several ranks cannot use a CUDA graph. Without
one, a compiled step took {number(launched["median_ms"])} ms on the {taken["device"]}, measured step by step with
prefetching and the other switches off; the model allows {1e-3 * a.kernels * a.launch_us:.2f} ms for launches. If
launches take nearly as long on several ranks, all modelled efficiencies on this page are too high."""


def page(results: dict) -> str:
    rows, modelled = results["rows"], results["modelled"]
    first = rows[0]
    processes = max(row["extra"]["processes"] for row in rows)
    return flowed(f"""\
# How far this workload scales

Generated by `benchmarks/scaling/study.py` from `benchmarks/results/scaling-cpu.json`; do not edit. Guided DeiT-Ti,
ResNet-56 at 32 px as the teacher, CIFAR-100. Two processes are **measured**, on a CPU. 8 to 1,024 GPUs are **modelled,
not measured**, from an estimate for one GPU that was made before a GPU was measured
([below](#one-gpu-estimated-and-measured)). To change any assumption:
`{COMMAND} --student-images-per-s 15000 --nic-gbit-per-s 200 --docs FOLDER --results COPY`.

## Where it stops, and what to turn on then (modelled)

{findings(results)}

![efficiency against GPUs, modelled](scaling.png)

## One GPU: estimated and measured

{one_gpu(results)}

## Measured: 1 and {processes} processes

`{COMMAND}{first["command"].partition(".py")[2]}` on {conditions(first)}.
{first["batch"]} images and {first["extra"]["threads_per_process"]} thread per process; the step
alone, on a repeated batch; all variants take turns. Efficiency is the time of one process
divided by the time of {processes} with {processes} times the images. In the first line the processes share only the
machine: its loss comes from the machine, not from the exchange. ± is the interquartile range over the median within
this run. Whole runs differ by more than that, so small differences between lines mean nothing. Part of the loss with
batch statistics is computation: a synchronised norm consists of more operations than torch's own, which a single
process uses.

{measured_table(rows)}

## Counted: bytes of one step, per rank

On paper: four bytes for each of {first["extra"].get("parameters") or rows[0]["extra"]["parameters"]:,} trained values;
8 bytes per channel and 4 per norm for synchronised teacher norms; 8 for the stop flag; ZeRO 1 and 2 also gather the
parameters and reduce two scalars. Counted: the tensors of every collective that passed torch's dispatcher in a real
step of {processes} processes. The kernel's count is that of the loopback device, including TCP headers. A report (every
`log.every_steps`) gathers {first["extra"]["report_bytes"]} bytes per rank.

{bytes_table(rows)}

## Modelled, not measured: efficiency

Weak scaling, {modelled["assumptions"]["batch_per_gpu"]} images per GPU unless said otherwise; the step alone:

{efficiency_table(results, "weak")}

Weak scaling, whole epochs including evaluation and checkpoint; empty where an epoch would be less than one step:

{efficiency_table(results, "weak", "run_efficiency")}

Strong scaling, a global batch of {modelled["assumptions"]["global_batch"]:,}; the step alone:

{efficiency_table(results, "strong")}

## Assumptions

Each is an option of `benchmarks/scaling/study.py`; `benchmarks/scaling/model.py` defines them. A step is modelled as
the sum of the computation of the images or, if longer, the launches; the teacher's all-reduces, one after another; and
the part of the gradients' all-reduce (ring or tree, whichever is faster) that the backward pass does not hide, bucket
by bucket. {SLOW} per node stands for a plain Ethernet cluster. Augmentation is assumed to be hidden behind the previous
step.

{assumptions_table(modelled["assumptions"])}""")


def draw(results: dict, path: Path) -> None:
    """Efficiency against GPUs: weak and strong, both networks; colour: statistics, dashes: bf16 gradients."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for line, network in enumerate(NETWORKS):
        for column, mode in enumerate(("weak", "strong")):
            own = axes[line][column]
            for scenario in (BATCH, BATCH_HALF, RUNNING, RUNNING_HALF):
                rows = select(results, network, scenario, mode)
                colour = ORANGE if scenario.startswith("batch") else BLUE
                style = "--" if "bf16" in scenario else "-"
                values = [row["efficiency"] for row in rows]
                own.plot([row["gpus"] for row in rows], values, style, color=colour, marker="o", ms=3, label=scenario)
            a = results["modelled"]["assumptions"]
            what = f"weak, {a['batch_per_gpu']} per GPU" if mode == "weak" else f"strong, {a['global_batch']:,} in all"
            own.set_title(f"{what}; {network} per node", fontsize=10, loc="left")
            own.set_xscale("log", base=2)
            own.set_xticks(GPUS, [str(gpus) for gpus in GPUS], fontsize=8)
            own.set_ylim(0, 1.05)
            own.grid(alpha=0.3)
            own.spines[["top", "right"]].set_visible(False)
    for own in axes[1]:
        own.set_xlabel("GPUs")
    for own in axes[:, 0]:
        own.set_ylabel("efficiency")
    figure.suptitle("Guided DeiT-Ti: modelled, not measured (steps alone)", fontsize=11)
    labels = axes[0][0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=100)
