"""fastlg's own training, opened up so that benchmarks can take it step by step; built by the functions that train."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.harness.bench import Bench
from benchmarks.harness.counting import ADAMW_BYTES, Work, count_per_batch
from benchmarks.harness.images import make_store
from fastlg.assemble import assemble
from fastlg.config import Config, load_config
from fastlg.data.stores import Stores, open_stores
from fastlg.engine.protocol import autocast
from fastlg.features import find_features
from fastlg.models.resnet_cifar import resnet56
from fastlg.run.metrics import Meter
from fastlg.teacher.online import Guide
from fastlg.train import batches

TEACHER_SIZE = 32  # px


def config_of(bench: Bench, name: str, batch: int, *overrides: str) -> Config:
    """A shipped config, of cifar100/ or by its whole name, on made images. On a CPU nothing runs beside the step: no
    loader processes."""
    common = [
        f"data.source={store_of(bench)}",
        f"optim.global_batch_size={batch}",
        f"engine.device={bench.device.type}",
    ]
    common += [f"data.workers={workers_of(bench)}", f"run.root={bench.folder / 'runs'}"]
    return load_config(name if "/" in name else f"cifar100/{name}", [*common, *bench.overrides, *overrides])


def store_of(bench: Bench) -> Path:
    """Made images: on a GPU 20 steps of 1024 and 10,000 to evaluate, on a CPU 32 steps of 8 and 100."""
    return make_store(bench.folder, *((20_480, 10_000) if bench.gpu else (256, 100)))


def workers_of(bench: Bench) -> int:
    """Loader processes: none on a CPU, where they would work on while a rival is timed."""
    return min(16, len(os.sched_getaffinity(0))) if bench.gpu else 0


def made_teacher(num_classes: int) -> nn.Module:
    """ResNet-56 with random weights and running statistics of noise: they change no duration."""
    torch.manual_seed(0)
    model = resnet56(num_classes).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(64, 3, TEACHER_SIZE, TEACHER_SIZE))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


class Ours:
    """One training: ``open``, ``step`` as often as wanted, ``close``. ``synthetic`` repeats one finished batch."""

    def __init__(self, config: Config, *, synthetic: bool = False):
        self.stores: Stores = open_stores(config.data)
        teacher, size, features = None, None, None
        if config.teacher is not None:
            teacher, size = made_teacher(len(self.stores.class_names)), TEACHER_SIZE
            features = find_features(config, self.stores, teacher, size)
        self.parts = assemble(config, self.stores, teacher, size, features)
        self.parts.unit.train()
        self.meter = Meter(self.parts.device)
        self.batch, self.synthetic = config.optim.global_batch_size, synthetic
        self.epoch, self.done = 0, 0
        self.pairs: Iterator | None = None
        self.fixed = None

    def open(self) -> None:
        self.pairs = batches(self.parts, self.epoch)

    def close(self) -> None:
        if self.pairs is not None:
            self.pairs.close()
        self.pairs, self.epoch = None, self.epoch + 1

    def next_pair(self):
        """(views, batch); epochs follow each other."""
        if self.fixed is not None:
            return self.fixed
        pair = next(self.pairs, None)
        if pair is None:
            self.close()
            self.open()
            pair = next(self.pairs)
        if self.synthetic:
            self.fixed = pair
        return pair

    def step(self) -> None:
        """One update as ``fastlg.train.fit`` makes it, without its reports."""
        views, batch = self.next_pair()
        self.meter.update(self.parts.engine.step(views, batch, len(batch.labels)), self.done)
        self.done += 1

    def work(self) -> Work:
        """Bytes and FLOPs of one step: teacher, student and update, counted on an eager pass."""
        parts = self.parts
        batch = next(iter(parts.train_loader.epoch(0)))
        views = parts.views(batch, 0)
        if len(batch.labels) < 4:
            repeat = [torch.cat([value] * 4) for value in (*views, *batch)]
            views, batch = type(views)(*repeat[: len(views)]), type(batch)(*repeat[len(views) :])

        def run(count: int) -> None:
            some = [value[:count] for value in (*views, *batch)]
            few, part = type(views)(*some[: len(views)]), type(batch)(*some[len(views) :])
            with autocast(parts.device, parts.engine.dtype):
                out = parts.unit(few.student, few.targets, self.guide(few, part))
            out.loss.backward()
            parts.unit.zero_grad(set_to_none=True)

        dtype = str(parts.engine.dtype).removeprefix("torch.")
        counted = count_per_batch(run, self.batch, dtype)
        return counted + Work(ADAMW_BYTES * sum(p.numel() for p in parts.unit.parameters()), 0)

    def guide(self, views, batch) -> Guide | None:
        """What the teacher says, run eagerly."""
        teacher = self.parts.teacher
        if teacher is None:
            return None
        if not hasattr(teacher, "model"):  # from the cache
            return teacher(views.teacher, batch)
        with torch.no_grad():
            logits, maps = teacher.model(views.teacher.contiguous(memory_format=teacher.memory_format))
        return Guide(tuple(maps[stage] for stage in teacher.stages), logits)
