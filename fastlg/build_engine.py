"""From a config to the engine that trains a unit."""

from __future__ import annotations

import torch
from torch import nn

from fastlg import ranks
from fastlg.config import Config
from fastlg.engine.deepspeed import DeepSpeedEngine, library
from fastlg.engine.deepspeed_config import merged_config
from fastlg.engine.plain import PlainEngine
from fastlg.engine.precision import build_optimizer, pick_device, pick_dtype
from fastlg.engine.protocol import Engine, Share, share_batch
from fastlg.engine.switches import Switches
from fastlg.errors import UserError
from fastlg.models.param_groups import param_groups


def engine_kind(config: Config) -> str:
    """plain or deepspeed; ``auto`` takes DeepSpeed where something that only it has is asked for."""
    engine = config.engine
    wants = engine.zero_stage > 0 or engine.deepspeed_config is not None
    if engine.kind == "plain" and wants:
        key = "zero_stage" if engine.zero_stage else "deepspeed_config"
        raise UserError(f"engine.{key} is set, but engine.kind is plain; use engine.kind=deepspeed or auto")
    return "deepspeed" if wants else engine.kind.replace("auto", "plain")


def rehearsed_engine(config: Config) -> Config:
    """For parts that are built to be tried alone: the plain engine in the place of DeepSpeed, which a process starts
    once; its library and configuration are looked at. Raises UserError."""
    if engine_kind(config) == "plain":
        return config
    device, optim = pick_device(config.engine), config.optim
    share = share_batch(optim.global_batch_size, ranks.world_size(), config.engine.micro_batch_size)
    per_step = {"per_rank": share.per_rank, "accumulation": share.accumulation, "clip_norm": optim.clip_norm}
    merged_config(config.engine, dtype=pick_dtype(config.engine, device), **per_step)
    library(device)
    return config.replace({"engine.kind": "plain", "engine.zero_stage": 0, "engine.deepspeed_config": None})


def new_engine(
    config: Config, unit: nn.Module, teacher, device: torch.device, dtype: torch.dtype, share: Share, switches: Switches
) -> Engine:
    """The engine of a run, its optimizer over the unit's parameters. Raises UserError."""
    groups = param_groups(unit, config.optim.weight_decay, muon=config.optim.name == "muon")
    optimizer = build_optimizer(groups, config.optim, on_device=switches.graph)
    common = {"device": device, "dtype": dtype, "accumulation": share.accumulation, "is_compiled": switches.compile}
    clip_norm = config.optim.clip_norm
    if engine_kind(config) == "plain":
        return PlainEngine(unit, teacher, optimizer, clip_norm=clip_norm, is_captured=switches.graph, **common)
    merged = merged_config(
        config.engine, dtype=dtype, per_rank=share.per_rank, accumulation=share.accumulation, clip_norm=clip_norm
    )
    return DeepSpeedEngine(unit, teacher, optimizer, config=merged, **common)
