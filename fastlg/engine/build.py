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
from fastlg.engine.switches import Switches, decide
from fastlg.models.param_groups import param_groups


def engine_kind(config: Config) -> str:
    """plain or deepspeed; ``auto`` takes DeepSpeed where something that only it has is asked for."""
    engine = config.engine
    wants = engine.zero_stage > 0 or engine.deepspeed_config is not None
    return "deepspeed" if wants else engine.kind.replace("auto", "plain")


def check_engine(config: Config, device: torch.device, dtype: torch.dtype) -> None:
    """Raises UserError for shares of a batch, switches or a DeepSpeed file that a run on ``device`` cannot have."""
    world_size = ranks.world_size()
    share = share_batch(config.optim.global_batch_size, world_size, config.engine.micro_batch_size)
    runs_teacher = config.teacher is not None and config.teacher.mode == "online"
    decide(
        config.engine,
        device,
        dtype,
        kind=engine_kind(config),
        world_size=world_size,
        accumulation=share.accumulation,
        norm_stats=config.teacher.norm_stats if runs_teacher else None,
    )
    if engine_kind(config) == "deepspeed":
        _merged(config, dtype, share)


def rehearsed_engine(config: Config) -> Config:
    """For parts that are built to be tried alone: the plain engine in the place of DeepSpeed, which a process starts
    once; its library and configuration are looked at. Raises UserError."""
    if engine_kind(config) == "plain":
        return config
    device = pick_device(config.engine)
    check_engine(config, device, pick_dtype(config.engine, device))
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
    return DeepSpeedEngine(unit, teacher, optimizer, config=_merged(config, dtype, share), **common)


def _merged(config: Config, dtype: torch.dtype, share: Share) -> dict:
    return merged_config(
        config.engine,
        dtype=dtype,
        per_rank=share.per_rank,
        accumulation=share.accumulation,
        clip_norm=config.optim.clip_norm,
    )
