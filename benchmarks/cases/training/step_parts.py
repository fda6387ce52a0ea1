"""Where a training step's time goes: input wait, views, teacher, student forward, backward, optimizer, other.

The step is taken apart into the calls that the engine makes, with a clock between them: events on a GPU, where the
parts are replayed from CUDA graphs of their own if the engine captures its step, the wall clock elsewhere. "other" is
what lies between the parts and, for the reference style, the host syncs of its logged values. The parts run one after
another: what prefetching hides is seen here. ``engine_ms`` is the step as the engine takes it, in turns with the other.

With --profile a torch.profiler trace of engine steps is written (chrome://tracing, or perfetto.dev).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch

from benchmarks.harness.bench import Bench, wall
from benchmarks.harness.ours import Ours, config_of, made_teacher, workers_of
from benchmarks.harness.reference_style import ReferenceStyle, Style
from fastlg.data.stores import open_stores
from fastlg.engine.protocol import autocast

PARTS = ("input wait", "views", "teacher", "student forward", "backward", "optimizer", "other")
WARM_UP = 3


class Clock:
    """``start``, then a name after each part; ``read`` gives {part: ms}, everything unnamed as "other", and the sum."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[tuple[str, object]] = []

    def start(self) -> None:
        self.marks = [("", self.now())]

    def __call__(self, name: str) -> None:
        self.marks.append((name, self.now()))

    def now(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> dict[str, float]:
        """Milliseconds of each part; parts named twice add up."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found = dict.fromkeys(PARTS, 0.0)
        for (_, begin), (name, end) in zip(self.marks, self.marks[1:], strict=False):
            found[name] += begin.elapsed_time(end) if self.device.type == "cuda" else 1e3 * (end - begin)
        return found


class TakenApart:
    """fastlg's step as a list of calls that the engine makes in one."""

    def __init__(self, ours: Ours):
        self.ours, self.parts, self.engine = ours, ours.parts, ours.parts.engine
        self.batches, self.epoch = None, 0
        self.views = self.batch = self.guide = self.out = None
        self.weights = ExitStack()
        self.calls: dict[str, Callable[[], None]] = {
            "teacher": self.teach,
            "student forward": self.forward,
            "backward": self.backward,
            "optimizer": self.update,
        }
        self.is_captured, self.steps = False, 0

    def next_batch(self):
        batch = next(self.batches, None) if self.batches is not None else None
        if batch is None:
            self.epoch += 1
            self.batches = self.parts.train_loader.epoch(self.epoch)
            batch = next(self.batches)
        return batch

    def teach(self) -> None:
        self.guide = self.engine.guide(self.views, self.batch)

    def forward(self) -> None:
        self.weights.enter_context(self.engine.weights())
        with autocast(self.engine.device, self.engine.dtype):
            self.out = self.engine.trained(self.views.student, self.views.targets, self.guide)

    def backward(self) -> None:
        self.out.loss.backward()
        self.out = self.out._replace(loss=self.out.loss.detach())  # a graph would stay beside the next step's
        self.weights.close()

    def update(self) -> None:
        self.engine.optimizer.step()
        self.engine.optimizer.zero_grad(set_to_none=True)

    def step(self, clock: Clock) -> None:
        batch = self.next_batch()
        clock("input wait")
        views = self.parts.views(batch, self.epoch)
        clock("views")
        if self.is_captured:
            for own, new in zip((*self.views, *self.batch), (*views, *batch), strict=True):
                own.copy_(new)
        else:
            self.views, self.batch = views, batch
        clock("other")
        with self.stream():
            for name, call in self.calls.items():
                call()
                clock(name)
        self.ours.meter.update(self.out, self.steps)
        clock("other")
        self.steps += 1
        if self.parts.switches.graph and self.steps == WARM_UP:
            self.capture()

    def stream(self):
        """Until its calls are captured a step runs on another stream: what backward keeps there must not be tied to
        the default one."""
        if not self.parts.switches.graph or self.is_captured:
            return nullcontext()
        return aside()

    def capture(self) -> None:
        """Each call becomes a CUDA graph; all share memory, so that they are replayed in this order alone."""
        self.views = type(self.views)(*(value.clone() for value in self.views))
        self.batch = type(self.batch)(*(value.clone() for value in self.batch))
        torch.cuda.synchronize()
        pool, graphs = torch.cuda.graph_pool_handle(), {}
        for name, call in self.calls.items():
            graphs[name] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[name], pool=pool, capture_error_mode="thread_local"):
                call()
        self.calls = {name: graph.replay for name, graph in graphs.items()}
        self.is_captured = True


@contextmanager
def aside() -> Iterator[None]:
    """A CUDA stream of its own that begins after the current one's work and that the current one waits for."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


def rows(bench: Bench) -> None:
    for batch in ((128,) if bench.quick else (128, 1024)) if bench.gpu else (8,):
        if bench.fits(f"ours, batch {batch}", 15 if bench.gpu else 3):
            of_ours(bench, batch)
        gc.collect()
        if bench.fits(f"reference style, batch {batch}", 8 if bench.gpu else 3):
            of_reference(bench, batch)


def of_ours(bench: Bench, batch: int) -> None:
    """The whole step first on a GPU, for its graph's memory cannot lie beside the parts'; else in turns."""
    ours = Ours(config_of(bench, "deit_tiny", batch))
    work = ours.work()
    ours.open()
    turns, whole = (20 if bench.gpu else 3 if bench.quick else 7), []
    if bench.gpu:
        for _ in range(2 * WARM_UP):
            ours.step()
        for _ in range(turns):
            whole.append(wall(lambda: [ours.step() for _ in range(4)], bench.device) / 4)
    else:
        ours.step()
    profile(bench, ours, f"step-batch{batch}")
    if bench.gpu:
        ours.parts.engine.graph = None  # gives its memory back
        torch.cuda.empty_cache()
    apart, clock, taken = TakenApart(ours), Clock(bench.device), []
    ends = time.monotonic() + bench.left() * 0.5
    for turn in range(-1 if not bench.gpu else -2 * WARM_UP, turns):
        if turn >= 2 and time.monotonic() > ends:
            break
        clock.start()
        apart.step(clock)
        parts = clock.read()
        if turn >= 0:
            taken.append(parts)
            if not bench.gpu:
                whole.append(wall(ours.step, bench.device))
    ours.close()
    add(bench, "fastlg, guided", batch, taken, work, engine_ms=round(1e3 * statistics.median(whole), 3))


def of_reference(bench: Bench, batch: int) -> None:
    config = config_of(bench, "deit_tiny", batch)
    stores = open_stores(config.data)
    teacher, style = made_teacher(len(stores.class_names)), Style(autocast=bench.gpu)
    stepper = ReferenceStyle(config, stores.train, teacher, style, device=bench.device, workers=workers_of(bench))
    stepper.open()
    clock, taken = Clock(bench.device), []
    turns = 20 if bench.gpu else 3 if bench.quick else 7
    ends = time.monotonic() + bench.left() * 0.8
    for turn in range(-max(1, stepper.workers), turns):
        if turn >= 2 and time.monotonic() > ends:
            break
        clock.start()
        stepper.step(clock)
        if turn >= 0:
            taken.append(clock.read())
    stepper.close()
    add(bench, "reference style" + (", autocast" if bench.gpu else ""), batch, taken, None)


def add(bench: Bench, provider: str, batch: int, taken: list[dict[str, float]], work, **extra) -> None:
    """One row: the median step, and its parts' medians, which add up to it but for what medians do not share."""
    steps = [sum(parts.values()) / 1e3 for parts in taken]
    medians = {name: statistics.median(parts[name] for parts in taken) for name in PARTS}
    breakdown = {name: float(f"{value:.4g}") for name, value in medians.items() if value}
    bench.add("DeiT-Ti", provider, steps, batch=batch, work=work, breakdown_ms=breakdown, **extra)


def profile(bench: Bench, ours: Ours, name: str) -> None:
    """A trace of three steps, when it was asked for."""
    if bench.profile is None:
        return
    bench.profile.mkdir(parents=True, exist_ok=True)
    with torch.profiler.profile() as profiler:
        for _ in range(3):
            ours.step()
    path = bench.profile / f"{name}.json.gz"
    profiler.export_chrome_trace(str(path))
    bench.notice(f"trace in {path}")
