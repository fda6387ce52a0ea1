"""How guided DeiT-Ti would scale from 1 to 1,024 GPUs. A model: none of its times was measured.

Every number it starts from is a field of ``Assumptions``. Bytes and numbers of collectives are the counted ones (see
study.py and its test); rates of devices and networks are estimates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MODES = ("weak", "strong")


@dataclass(frozen=True)
class Assumptions:
    """Units are in the names: us and ms of time, GB = 1e9 bytes, MB = 1e6 bytes. Each is an option of study.py."""

    # One GPU. An estimate for compiled bf16 DeiT-Ti on an H200, from bytes moved per image; page.py shows it beside a
    # measured step.
    student_images_per_s: float = 27_000.0  # forward, backward and update, batch 128 or more
    teacher_us: float = 2.5  # ResNet-56 forward at 32 px, per image
    backward_share: float = 0.6  # of the step's time: what the exchange of gradients can hide behind
    kernels: int = 700  # launches of one compiled step; their time bounds a small batch's step
    launch_us: float = 4.0  # per kernel from the host: several ranks cannot replay the step as one CUDA graph
    replay_us: float = 1.5  # per kernel in a CUDA graph: a lone GPU

    # What a step exchanges, per rank: counted in a real step of two processes.
    gradient_values: int = 5_565_332  # student and projections
    gradient_bits: int = 32  # 16: sent as bf16
    norm_stats: str = "batch"  # batch: synced teacher norms; running: nothing
    norm_all_reduces: int = 57  # one for each of 57 norms, each waiting for the one before
    norm_bytes: int = 17_252  # in all of them
    first_bucket_mb: float = 5.5  # DistributedDataParallel's buckets of 5 MiB, as counted: the first
    bucket_mb: float = 5.34  # and the others; each ends with the tensor that fills it
    flag_hop_us: float = 30.0  # stop flag over TCP between hosts: per hop, hidden behind one step

    # Machines and networks.
    gpus_per_node: int = 8
    node_gb_per_s: float = 360.0  # all-reduce bus bandwidth inside a node
    nics_per_node: int = 8
    nic_gbit_per_s: float = 400.0
    nic_share: float = 0.8  # of it that a large all-reduce gets
    node_hop_us: float = 1.0  # latency between two GPUs of a node
    net_hop_us: float = 5.0  # and between two nodes
    call_us: float = 8.0  # of one collective call, whatever it sends

    # Data, evaluation, checkpoint.
    batch_per_gpu: int = 128  # weak scaling
    global_batch: int = 1024  # strong scaling
    train_images: int = 50_000  # CIFAR-100
    test_images: int = 10_000
    input: str = "resident"  # resident: the store lies on every GPU; jpeg: decoded by the node's CPUs
    store_mb: float = 184.0  # decoded CIFAR-100, train and test
    cpus_per_node: int = 128
    jpeg_per_cpu_per_s: float = 326.0  # images of 512 px, FFCV's own figure
    eval_images_per_s: float = 80_000.0  # forward only
    eval_fixed_ms: float = 20.0
    eval_epochs: int = 1  # log.eval_epochs
    checkpoint_epochs: int = 1  # fastlg saves after every epoch
    disk_gb_per_s: float = 1.0  # rank 0 writes weights and two moments in float32, the others wait
    checkpoint_fixed_ms: float = 30.0

    @property
    def gradient_bytes(self) -> float:
        return self.gradient_values * self.gradient_bits / 8

    @property
    def net_gb_per_s(self) -> float:
        """All-reduce bus bandwidth between nodes: every NIC of a node carries its share."""
        return min(self.node_gb_per_s, self.nics_per_node * self.nic_gbit_per_s / 8 * self.nic_share)


@dataclass(frozen=True)
class Step:
    """Milliseconds of one step on each of ``gpus``; the parts add up to ``step_ms``."""

    compute_ms: float
    norms_ms: float  # synced teacher norms: on the critical path, hidden behind nothing
    gradients_ms: float  # what of the all-reduce the backward pass does not hide
    flag_ms: float  # the same of the stop flag
    input_ms: float  # waiting for images

    @property
    def step_ms(self) -> float:
        return self.compute_ms + self.norms_ms + self.gradients_ms + self.flag_ms + self.input_ms


def all_reduce_s(size: float, gpus: int, a: Assumptions, algorithm: str = "auto") -> float:
    """Seconds of an all-reduce of ``size`` bytes; nothing on one GPU.

    ring  2 (n-1)/n size at the slowest link's bandwidth, and 2 (n-1) hops one after another
    tree  2 size at that bandwidth, and twice the tree's depth of hops
    auto  the faster one, as NCCL chooses
    """
    if algorithm == "auto":
        return min(all_reduce_s(size, gpus, a, name) for name in ("ring", "tree"))
    if gpus == 1:
        return 0.0
    inside = min(gpus, a.gpus_per_node)
    nodes = math.ceil(gpus / a.gpus_per_node)
    bandwidth = 1e9 * (a.node_gb_per_s if nodes == 1 else a.net_gb_per_s)
    if algorithm == "ring":
        hops_us = (gpus - nodes) * a.node_hop_us + (nodes - 1) * a.net_hop_us
        sent = 2 * (gpus - 1) / gpus * size
    else:
        hops_us = math.ceil(math.log2(inside)) * a.node_hop_us + math.ceil(math.log2(nodes)) * a.net_hop_us
        sent = 2 * size
    return sent / bandwidth + 1e-6 * (a.call_us + 2 * hops_us)


def exposed_s(backward_s: float, gpus: int, a: Assumptions) -> float:
    """Seconds that the exchange of gradients goes on after the backward pass has ended.

    Gradients appear evenly over it; a bucket is sent once it is full and the bucket before it is through.
    """
    if gpus == 1:
        return 0.0
    left, ready, done = a.gradient_bytes, 0.0, 0.0
    scale = a.gradient_bits / 32  # buckets are cut by the float32 values that they hold
    size = a.first_bucket_mb * 1e6 * scale
    while left > 1e-6:
        part = min(left, size)
        left, ready = left - part, ready + part
        done = max(done, backward_s * ready / a.gradient_bytes) + all_reduce_s(part, gpus, a)
        size = a.bucket_mb * 1e6 * scale
    return done - backward_s


def step_of(batch: int, gpus: int, a: Assumptions) -> Step:
    """One step of ``batch`` images on each of ``gpus``."""
    per_image_s = 1 / a.student_images_per_s + 1e-6 * a.teacher_us
    floor_s = 1e-6 * a.kernels * (a.replay_us if gpus == 1 else a.launch_us)
    compute = max(batch * per_image_s, floor_s)
    norms = 0.0
    if a.norm_stats == "batch" and gpus > 1:
        norms = a.norm_all_reduces * all_reduce_s(a.norm_bytes / a.norm_all_reduces, gpus, a)
    gradients = exposed_s(a.backward_share * compute, gpus, a)
    busy = compute + norms + gradients
    flag = max(0.0, 2 * math.ceil(math.log2(gpus)) * 1e-6 * a.flag_hop_us - busy)
    wait = 0.0
    if a.input == "jpeg":
        rate = a.cpus_per_node * a.jpeg_per_cpu_per_s / min(gpus, a.gpus_per_node)
        wait = max(0.0, batch / rate - busy - flag)
    return Step(*(1e3 * seconds for seconds in (compute, norms, gradients, flag, wait)))


def epoch_s(batch: int, gpus: int, a: Assumptions) -> float | None:
    """Seconds of an epoch with its share of evaluation and checkpoint; None where a step would be longer than it."""
    steps = a.train_images // (batch * gpus)
    if steps == 0:
        return None
    evaluation = math.ceil(a.test_images / gpus) / a.eval_images_per_s + a.eval_fixed_ms / 1e3
    checkpoint = 12 * a.gradient_values / (1e9 * a.disk_gb_per_s) + a.checkpoint_fixed_ms / 1e3
    training = steps * step_of(batch, gpus, a).step_ms / 1e3
    return training + evaluation / a.eval_epochs + checkpoint / a.checkpoint_epochs


def row(mode: str, gpus: int, a: Assumptions, **labels) -> dict:
    """Efficiency is images/s per GPU against one GPU: of the steps alone, and of whole epochs (``run_efficiency``)."""
    weak = mode == "weak"
    batch = a.batch_per_gpu if weak else a.global_batch // gpus
    first = a.batch_per_gpu if weak else a.global_batch
    step, base = step_of(batch, gpus, a), step_of(first, 1, a)
    rate, base_rate = 1e3 * batch * gpus / step.step_ms, 1e3 * first / base.step_ms
    epoch, base_epoch = epoch_s(batch, gpus, a), epoch_s(first, 1, a)
    run = None
    if epoch is not None and base_epoch is not None:
        seen, base_seen = (a.train_images // (b * g) * b * g for b, g in ((batch, gpus), (first, 1)))
        run = seen / epoch / gpus / (base_seen / base_epoch)
    parts = {name: _short(value) for name, value in vars(step).items()}
    return {
        "kind": "modelled, not measured",
        **labels,
        "mode": mode,
        "gpus": gpus,
        "batch_per_gpu": batch,
        "step_ms": _short(step.step_ms),
        **parts,
        "images_per_s": _short(rate),
        "efficiency": _short(rate / gpus / base_rate),
        "epoch_s": None if epoch is None else _short(epoch),
        "run_efficiency": None if run is None else _short(run),
    }


SLOW = {"nics_per_node": 1, "nic_gbit_per_s": 100.0, "net_hop_us": 15.0}  # one 100 Gbit/s Ethernet port per node
NETWORKS = {"8 x 400 Gbit/s": {}, "1 x 100 Gbit/s": SLOW}
ONE_BUCKET = {"first_bucket_mb": 26.2, "bucket_mb": 26.2}  # 25 MiB: more than all gradients
RUNNING, HALF = {"norm_stats": "running"}, {"gradient_bits": 16, **ONE_BUCKET}  # DeepSpeed's, counted: one bucket
SCENARIOS = {
    "batch statistics, fp32 gradients": {},
    "batch statistics, bf16 gradients": HALF,
    "running statistics, fp32 gradients": RUNNING,
    "running statistics, bf16 gradients": {**RUNNING, **HALF},
    "running, fp32, one bucket of 25 MB": {**RUNNING, **ONE_BUCKET},
    "running, fp32, batch 512 per GPU": {**RUNNING, "batch_per_gpu": 512},
    "batch, fp32, batch 512 per GPU": {"batch_per_gpu": 512},
    "cached features, fp32": {**RUNNING, "teacher_us": 0.0},
    "running, fp32, evaluation every 10 epochs": {**RUNNING, "eval_epochs": 10},
    "running, fp32, evaluation and checkpoint every 10": {**RUNNING, "eval_epochs": 10, "checkpoint_epochs": 10},
    "running, fp32, JPEG decoded on the node": {**RUNNING, "input": "jpeg"},
}


def all_rows(a: Assumptions) -> list[dict]:
    """Every scenario on every network; scenarios lay their changes over ``a``. A batch per GPU means weak scaling."""
    return [
        row(mode, gpus, replace(a, **faster, **changes), network=network, scenario=name)
        for network, faster in NETWORKS.items()
        for name, changes in SCENARIOS.items()
        for mode in (MODES if "batch_per_gpu" not in changes else MODES[:1])
        for gpus in GPUS
        if mode == "weak" or gpus <= a.global_batch
    ]


def limit(rows: list[dict], share: float, key: str = "efficiency") -> int:
    """The most GPUs up to which ``key`` never falls below ``share``."""
    most = 1
    for own in sorted(rows, key=lambda own: own["gpus"]):
        if own[key] is None or own[key] < share:
            return most
        most = own["gpus"]
    return most


def _short(value: float) -> float:
    return float(f"{value:.4g}")
