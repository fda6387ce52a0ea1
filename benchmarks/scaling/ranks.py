"""Trainings that wait for orders: one process, or several that share each step, driven step by step by a benchmark.

``Job`` starts the processes; this file run as a program is one of them. Its place among the others comes from the
environment, what it trains from its one argument, orders from standard input. A job that is not ordered to do anything
sleeps, so that jobs of different size can take turns on the same machine.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

if __name__ == "__main__":  # the root, not this folder, whose names could hide installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness.ours import Ours
from fastlg import ranks
from fastlg.config import load_config
from fastlg.engine.precision import uses_cuda
from fastlg.ranks.say import console
from fastlg.ranks.stop import StopRequest

RUNNING = "teacher.norm_stats=running"
DEEPSPEED = (RUNNING, "engine.kind=deepspeed")
WHAT = {  # case -> (overrides, ZeRO stage, bytes in which each gradient value is sent)
    "plain, batch statistics": (("teacher.norm_stats=batch",), 0, 4),
    "plain, running statistics": ((RUNNING,), 0, 4),
    **{
        f"DeepSpeed stage {stage}, running statistics": ((*DEEPSPEED, f"engine.zero_stage={stage}"), stage, 4)
        for stage in (0, 1, 2)
    },
    "DeepSpeed stage 0, running statistics, bf16 gradients": ((*DEEPSPEED, "engine.deepspeed_config=HALF"), 0, 2),
}
HALF = {"communication_data_type": "bf16"}
PASSES = {"allreduce": 2, "allgather": 1, "reduce_scatter": 1}  # times (n-1)/n: bytes a rank sends in a ring
NOT_SENT = ("wait_tensor", "barrier", "monitored_barrier_")


class Collectives(TorchDispatchMode):
    """Notes every collective that passes torch's dispatcher: (operation, dtype, bytes of the tensor it is about).

    For an all-gather or a reduce-scatter that is the whole tensor, not one rank's part. DistributedDataParallel's own
    are among them, for its reducer calls the same operations.
    """

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func._opname.strip("_").removesuffix("_base")
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if func._opname not in NOT_SENT and tensors:
                one_of_all = name.startswith(("allgather", "reduce_scatter"))
                sizes = [t.numel() * t.element_size() for t in tensors]
                whole = max(sizes) if one_of_all else sum(sizes)
                self.seen.append((name, str(tensors[0].dtype).removeprefix("torch."), whole))
        return func(*args, **(kwargs or {}))


class Training:
    """One case: fastlg's engine on one finished batch that is repeated, as ``fit`` steps it, with the meter and the
    ranks' control flag. ``alone`` is built before the ranks meet: nothing of its step is exchanged."""

    def __init__(self, overrides: list[str]):
        self.ours = Ours(load_config("cifar100/deit_tiny", overrides), synthetic=True)
        self.ours.open()
        self.views, self.batch = self.ours.next_pair()
        self.total = len(self.batch.labels) * int(os.environ.get("WORLD_SIZE", 1))
        self.stop = StopRequest()

    def step(self) -> None:
        ours = self.ours
        ours.meter.update(ours.parts.engine.step(self.views, self.batch, self.total), ours.done)
        ours.done += 1

    def steps(self, count: int, *, alone: bool) -> None:
        for _ in range(count):
            self.step()
            if not alone:
                self.stop.poll()
        if self.ours.parts.device.type == "cuda":
            torch.cuda.synchronize()

    def report(self) -> None:
        self.ours.meter.read()

    def sizes(self) -> dict:
        """What the count on paper starts from."""
        parts = self.ours.parts
        modules = parts.teacher.model.modules() if parts.teacher is not None else ()
        norms = [m.num_features for m in modules if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training]
        parameters = [p.numel() for p in parts.unit.parameters()]
        return {"parameters": sum(parameters), "tensors": len(parameters), "norms": norms}


def on_paper(sizes: dict, stage: int, width: int, world: int) -> dict[str, int]:
    """Bytes of the tensors that one step is to exchange, per kind of collective.

    sizes: ``parameters`` of the trained unit and channels of each synced norm (``norms``); width: bytes of a gradient
    value. All-reduced: gradients; of each norm its float32 sums, squares and count at once; the stop flag, one int64.
    ZeRO 1 and 2 also reduce a norm and an overflow mark, and gather the updated float32 parameters.
    """
    if world == 1:
        return {}
    parts = {"allreduce": width * sizes["parameters"] + 8 * sum(sizes["norms"]) + 4 * len(sizes["norms"]) + 8}
    if stage:
        parts["allreduce"] += 8
        parts["allgather"] = 4 * sizes["parameters"]
    return parts


def counted(seen: list) -> dict[str, int]:
    """The same from what passed torch's dispatcher."""
    found: Counter[str] = Counter()
    for operation, _, size in seen:
        found[operation] += size
    return dict(found)


def sent(payload: dict[str, int], world: int) -> float:
    """Bytes that each rank of a ring sends for it."""
    return sum(PASSES[kind] * size * (world - 1) / world for kind, size in payload.items())


class Job:
    """``count`` processes with the same cases: {name: {"overrides": [...], "alone": bool}}. Use as a context."""

    def __init__(self, cases: dict[str, dict], count: int, *, threads: int):
        self.count = count
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, json.dumps(cases)],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                | {"OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def order(self, **what) -> list[dict]:
        """Every process's answer. Raises RuntimeError when one has left."""
        for process in self.processes:
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
        answers = [process.stdout.readline() for process in self.processes]
        if not all(answers):
            raise RuntimeError(f"a process of the benchmark left at {what}; its message is above")
        return [json.loads(answer) for answer in answers]


def obey(cases: dict[str, dict], trainings: dict[str, Training], order: dict) -> dict:
    name = order["case"]
    alone = cases[name]["alone"]
    if name not in trainings:
        trainings[name] = Training(cases[name]["overrides"])
    training = trainings[name]
    if not order.get("counted"):
        training.steps(order["steps"], alone=alone)
        return {}
    before = loopback_bytes()
    training.steps(order["steps"], alone=alone)
    sent = loopback_bytes() - before
    with Collectives() as step:
        training.steps(1, alone=alone)
    with Collectives() as told:
        training.report()
    return {"step": step.seen, "report": told.seen, "loopback": sent, **training.sizes()}


def loopback_bytes() -> int:
    """What the kernel has sent over the loopback device so far, of whatever processes share this network namespace."""
    for line in Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines():
        name, _, fields = line.partition(":")
        if name.strip() == "lo":
            return int(fields.split()[8])
    return 0


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    console.quiet = True
    cases = json.loads(sys.argv[1])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    trainings = {name: Training(case["overrides"]) for name, case in cases.items() if case["alone"]}
    first = load_config("cifar100/deit_tiny", next(iter(cases.values()))["overrides"])
    with ranks.joined(cuda=uses_cuda(first.engine), timeout_s=120):
        for line in sys.stdin:
            print(json.dumps(obey(cases, trainings, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
