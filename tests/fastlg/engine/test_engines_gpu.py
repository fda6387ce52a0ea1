"""On a CUDA device: each acceleration learns what the eager engine learns, and the host never waits between reports."""

from __future__ import annotations

import pytest
import torch
from cache_cases import PLAIN, built, parts_of
from engine_cases import DRLOC, FADES, RISES, trained

from fastlg.assemble import assemble
from fastlg.config import load_config
from fastlg.data.stores import open_stores
from fastlg.engine.update import one_launch
from fastlg.models.resnet_cifar import resnet20
from fastlg.run.metrics import Meter
from fastlg.train import batches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EAGER = tuple(f"engine.{name}=false" for name in ("compile", "graph", "prefetch", "channels_last", "fold_norms"))
ON = {
    "graph": ("engine.graph=true",),
    "prefetch": ("engine.prefetch=true",),
    "compile": ("engine.compile=true",),
    "channels_last": ("engine.channels_last=true",),
    "all": tuple(f"engine.{name}=true" for name in ("compile", "graph", "prefetch", "channels_last")),
    "graph, a smaller last batch": ("engine.graph=true", "optim.drop_last=false"),
    "graph, drop path": ("engine.graph=true", "model.drop_path=0.3"),
    "graph, muon": ("engine.graph=true", "optim.name=muon"),
    "graph, guidance that ends": ("engine.graph=true", *FADES),
    "graph, rising resolution": ("engine.graph=true", *RISES),
    "compile, rising resolution": ("engine.compile=true", *RISES),
    "graph, averaged weights": ("engine.graph=true", "optim.ema=0.9"),
    "graph, distances": ("engine.graph=true", *DRLOC),
    "compile, distances": ("engine.compile=true", *DRLOC, "drloc.mode=ce"),
    "graph, prefetch, distances alone": ("engine.graph=true", "engine.prefetch=true", *DRLOC, "guidance.weight=0"),
    "compile, guidance that ends": ("engine.compile=true", *FADES),
    "compile, muon": ("engine.compile=true", "optim.name=muon"),
}


@pytest.fixture(autouse=True)
def float32_is_float32():
    """torch multiplies convolutions in TF32 unless told not to, in an order that each form of the engine may choose."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def run(*overrides: str) -> dict:
    return trained("engine.device=cuda", *EAGER, *overrides)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ON)
def test_an_acceleration_learns_as_the_eager_engine(project, name, precision):
    common = [o for o in ON[name] if not o.startswith("engine.")]
    eager = run(f"engine.precision={precision}", *common)
    fast = run(f"engine.precision={precision}", *ON[name])
    tolerance = 1e-3 if precision == "fp32" else 3e-2
    torch.testing.assert_close(fast["losses"], eager["losses"], rtol=tolerance, atol=0)


def test_adamw_in_one_launch_is_torchs():
    assert one_launch.stray(torch.device("cuda")) == ""


def test_a_cached_teacher_is_captured_as_it_runs_eagerly(project):
    losses = []
    for switch in ("engine.graph=false", "engine.graph=true"):
        config, stores, cache = built(*PLAIN, "engine.device=cuda", "engine.compile=false", switch)
        parts = parts_of(config, stores, cache)
        assert parts.teacher.is_on_device and parts.switches.graph == (switch == "engine.graph=true")
        torch.manual_seed(3)
        pairs = [pair for epoch in range(3) for pair in batches(parts, epoch)]
        losses.append([parts.engine.step(*pair, len(pair[1].labels)).loss.item() for pair in pairs])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=0)


def test_folded_norms_learn_as_the_norms_themselves(project):
    running = "teacher.norm_stats=running"
    eager = run("engine.precision=fp32", running)
    folded = run("engine.precision=fp32", running, "engine.fold_norms=true")
    torch.testing.assert_close(folded["losses"], eager["losses"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fp16_scales_its_gradients_and_learns(project, optimizer):
    half, full = (run(f"engine.precision={name}", f"optim.name={optimizer}") for name in ("fp16", "fp32"))
    torch.testing.assert_close(half["losses"], full["losses"], rtol=3e-2, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_captured_run_is_deterministic(project, optimizer):
    one, two = (run("engine.graph=true", "model.drop_path=0.3", f"optim.name={optimizer}") for _ in range(2))
    torch.testing.assert_close(one["losses"], two["losses"], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "switch",
    [(), ("optim.name=muon",), ("optim.ema=0.9",), DRLOC, ("engine.graph=true", "engine.prefetch=true")],
    ids=["eager", "muon", "average", "distances", "graph"],
)
def test_the_host_never_waits_for_the_device_between_reports(project, switch):
    config = load_config("student.yaml", ["engine.device=cuda", "engine.precision=bf16", *EAGER, *switch])
    parts = assemble(config, open_stores(config.data), resnet20(3), 16)
    parts.unit.train()
    meter = Meter(parts.device)
    for epoch in range(2):  # kernels are compiled and the graph is captured
        for step, (views, batch) in enumerate(batches(parts, epoch)):
            meter.update(parts.engine.step(views, batch, parts.step_total(step)), step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, (views, batch) in enumerate(batches(parts, 2)):
            meter.update(parts.engine.step(views, batch, parts.step_total(step)), step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert meter.read()[0].count > 0
