"""Rows of test_config_reaches.py for the section engine: precision, switches, passes of an update, ranks that wait."""

from __future__ import annotations

from datetime import timedelta
from importlib import import_module

import pytest
import torch
import torch.distributed as dist
from reach import ALONE, BARE, config_of, first_batch, parts_of, reaches
from torch import nn

import fastlg.assemble as assembling
import fastlg.engine.build as build_engine
from fastlg.config import Config
from fastlg.engine.build import engine_kind, new_engine
from fastlg.engine.protocol import share_batch
from fastlg.engine.switches import decide
from fastlg.errors import UserError
from fastlg_kernels import AdamW
from fastlg_kernels.blocks import FusedBlock

training = import_module("fastlg.train")  # the module; the attribute of the package is the verb

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


@reaches("engine.device", "engine.precision")
def device_and_precision(tmp_path, monkeypatch):
    parts, _, views = first_batch(*ALONE, "engine.precision=bf16")
    assert parts.device.type == views.student.device.type == "cpu" and views.student.dtype == torch.bfloat16
    assert parts.engine.predict(views.student).dtype == torch.bfloat16
    assert first_batch(*ALONE)[2].student.dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="engine.device is cuda"):
        parts_of(*ALONE, "engine.device=cuda")
    with pytest.raises(UserError, match="engine.precision is fp16"):
        parts_of(*ALONE, "engine.precision=fp16")


@reaches("engine.micro_batch_size")
def micro_batches(tmp_path, monkeypatch):
    for size, wanted in (("null", [16]), ("4", [4] * 4)):
        parts, batch, views = first_batch(*BARE, f"engine.micro_batch_size={size}")
        seen = []
        parts.unit.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(len(inputs[0])))
        parts.engine.step(views, batch, 16)
        assert seen == wanted


@reaches(*(f"engine.{name}" for name in SWITCHES))
def switches(tmp_path, monkeypatch):
    cuda, common = torch.device("cuda"), {"kind": "plain", "world_size": 1, "accumulation": 1, "norm_stats": "running"}
    for name in SWITCHES:
        for value in (True, False):
            config = config_of(*BARE, f"engine.{name}={value}").engine
            chosen = decide(config, cuda, torch.bfloat16, **common)
            others = {other: getattr(chosen, other) for other in SWITCHES if other != name}
            assert getattr(chosen, name) is value
            assert all(own is (other != "tune_convolutions") for other, own in others.items()), "auto leaves it off"


@reaches("engine.compile", "engine.fused_attention", "engine.channels_last", "engine.fold_norms")
def switches_on_a_cpu(tmp_path, monkeypatch):
    compiled, torch_compile = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **k: (compiled.append(model), torch_compile(model, **k))[1])
    for value in ("true", "false"):
        options = [f"engine.{name}={value}" for name in ("compile", "fused_attention", "channels_last", "fold_norms")]
        parts, on = parts_of(*BARE, "teacher.norm_stats=running", *options), value == "true"
        assert compiled == ([parts.teacher.model, parts.unit] if on else [])
        compiled.clear()
        attention = [m.fused_attn for m in parts.unit.student.modules() if hasattr(m, "fused_attn")]
        assert attention and all(fused is on for fused in attention)
        convolution = parts.teacher.model.stages[1][0].conv2
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last) is on
        assert any(isinstance(m, nn.BatchNorm2d) for m in parts.teacher.model.modules()) is not on


def engine_of(config: Config, parts, share, switches):
    """Another engine for the unit of ``parts``."""
    groups = [{"params": list(parts.unit.parameters())}]
    own = {"device": parts.device, "dtype": torch.float32, "share": share, "switches": switches}
    return new_engine(config.engine, config.optim, groups, parts.unit, None, **own)


@reaches("engine.checkpointing")
def checkpointing(tmp_path, monkeypatch):
    seen = {}
    for value, times in (("true", 2), ("false", 1)):
        parts, batch, views = first_batch(*BARE, "model.drop_path=0.3", f"engine.checkpointing={value}")
        calls = []
        for block in parts.unit.student.bare.blocks:
            block.norm1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(4)
        parts.engine.step(views, batch, 16)
        assert len(calls) == 3 * times
        seen[value] = parts.unit.state_dict()
    assert all(torch.equal(own, seen["false"][name]) for name, own in seen["true"].items())


@reaches("engine.fuse", "engine.tune_convolutions")
def switches_of_a_gpu(tmp_path, monkeypatch):
    decided = assembling.decide
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for value in (True, False):
        on = {"fuse": value, "tune_convolutions": value}
        monkeypatch.setattr(assembling, "decide", lambda *a, on=on, **k: decided(*a, **k)._replace(**on))
        parts = parts_of(*BARE, "model.args.embed_dim=64", "model.args.num_heads=2")
        assert torch.backends.cudnn.benchmark is value
        assert [isinstance(block, FusedBlock) for block in parts.unit.student.bare.blocks] == [value] * 3
        assert isinstance(parts.engine.optimizer, AdamW) is value


@reaches("engine.residual")
def residual(tmp_path, monkeypatch):
    for value, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        parts, _, views = first_batch(*ALONE, "engine.precision=bf16", f"engine.residual={value}")
        seen = []
        parts.unit.student.bare.blocks[1].register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].dtype))
        with torch.no_grad():
            parts.engine.predict(views.student)
        assert seen == [dtype]


@reaches("engine.graph", "engine.prefetch")
def graph_and_prefetch(tmp_path, monkeypatch):
    parts = parts_of(*ALONE)
    for is_captured in (True, False):
        share, switches = share_batch(16, 1, None), parts.switches._replace(graph=is_captured)
        engine = engine_of(parts.config, parts, share, switches)
        assert (engine.graph is not None) is is_captured
        assert isinstance(engine.optimizer.param_groups[0]["lr"], torch.Tensor) is is_captured, "read anew by a graph"
    monkeypatch.setattr(training, "prefetched", lambda batches, *arguments: "ahead")
    for is_ahead in (True, False):
        parts.switches = parts.switches._replace(prefetch=is_ahead)
        assert (training.batches(parts, 0) == "ahead") is is_ahead


@reaches("engine.kind", "engine.zero_stage", "engine.deepspeed_config", "optim.clip_norm", "engine.micro_batch_size")
def deepspeed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(build_engine, "DeepSpeedEngine", lambda *arguments, config, **_: seen.append(config))
    (tmp_path / "own.json").write_text('{"zero_optimization": {"reduce_bucket_size": 77}}')
    own = (f"engine.deepspeed_config={tmp_path / 'own.json'}", "optim.clip_norm=0.5", "engine.micro_batch_size=8")
    parts = parts_of(*ALONE)
    for extra, stage in ((("engine.zero_stage=2", *own), 2), (("engine.zero_stage=1", *own), 1)):
        config: Config = config_of(*ALONE, *extra)
        share = share_batch(16, 1, config.engine.micro_batch_size)
        engine_of(config, parts, share, parts.switches)
        merged = seen.pop()
        assert merged["zero_optimization"] == {"stage": stage, "reduce_bucket_size": 77}
        assert (merged["gradient_clipping"], merged["train_micro_batch_size_per_gpu"]) == (0.5, 8)
        assert merged["gradient_accumulation_steps"] == 2 and merged["train_batch_size"] == 16
    for value, kind in (("auto", "plain"), ("plain", "plain"), ("deepspeed", "deepspeed")):
        config = config_of(*ALONE, f"engine.kind={value}")
        assert engine_kind(config.engine) == kind
        built = engine_of(config, parts, share, parts.switches)
        assert type(built) is (build_engine.PlainEngine if kind == "plain" else type(None))


@reaches("engine.timeout_s")
def timeout(tmp_path, monkeypatch):
    class Met(Exception):
        pass

    def meet(backend, *, timeout, **_):
        raise Met(timeout)

    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    stores = []
    monkeypatch.setattr(dist, "TCPStore", lambda *_, timeout, **__: (stores.append(timeout), dist.HashStore())[1])
    monkeypatch.setattr(dist, "init_process_group", meet)
    monkeypatch.setattr("fastlg.ranks.contact.Contact.base", None)
    monkeypatch.setattr("fastlg.ranks.group._Meeting.has_begun", False)
    with pytest.raises(Met) as met:
        training.train(config_of(*ALONE, f"run.root={tmp_path}", "engine.timeout_s=37"))
    assert met.value.args == (timedelta(seconds=37),) and stores == [timedelta(seconds=37)]
