"""From the ``engine`` and ``optim`` sections of a config to the engine that trains a unit."""

from __future__ import annotations

import torch
from torch import nn

from fastlg import ranks
from fastlg.config import EngineConfig, OptimConfig
from fastlg.engine.deepspeed import DeepSpeedEngine, library
from fastlg.engine.deepspeed_config import merged_config
from fastlg.engine.plain import PlainEngine
from fastlg.engine.precision import build_optimizer
from fastlg.engine.protocol import Around, Engine, Share, share_batch
from fastlg.engine.schedule import schedule_of
from fastlg.engine.switches import Switches, decide
from fastlg.engine.update.one_launch import takes_one_launch
from fastlg.engine.update.timm_optimizers import check_optimizer, keeps_on_host


def engine_kind(engine: EngineConfig) -> str:
    """plain or deepspeed; ``auto`` takes DeepSpeed where something that only it has is asked for."""
    wants = engine.zero_stage > 0 or engine.deepspeed_config is not None
    return "deepspeed" if wants else engine.kind.replace("auto", "plain")


def check_engine(
    engine: EngineConfig,
    optim: OptimConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    norm_stats: str | None,
    on_host: str = "",
) -> None:
    """Raises UserError for shares of a batch, switches, an optimizer, a schedule or a DeepSpeed file that a run on
    ``device`` cannot have.

    ``norm_stats``: of the teacher that runs at every step, None where none does; ``on_host``: what beside the optimizer
    keeps updates from being captured.
    """
    world_size = ranks.world_size()
    share = share_batch(optim.global_batch_size, world_size, engine.micro_batch_size)
    decide(
        engine,
        device,
        dtype,
        kind=engine_kind(engine),
        world_size=world_size,
        accumulation=share.accumulation,
        norm_stats=norm_stats,
        optimizer=on_host or keeps_on_host(optim),
    )
    check_optimizer(optim)
    schedule_of(optim)
    if engine_kind(engine) == "deepspeed":
        _merged(engine, optim, dtype, share)


def stand_in(engine: EngineConfig, device: torch.device) -> dict:
    """Overrides of a config whose parts are built to be tried alone: the plain engine in the place of DeepSpeed, which
    a process starts once. Raises UserError where DeepSpeed is missing."""
    if engine_kind(engine) == "plain":
        return {}
    library(device)
    return {"engine.kind": "plain", "engine.zero_stage": 0, "engine.deepspeed_config": None}


def new_engine(
    engine: EngineConfig,
    optim: OptimConfig,
    groups: list[dict],
    unit: nn.Module,
    teacher,
    *,
    device: torch.device,
    dtype: torch.dtype,
    share: Share,
    switches: Switches,
    around: Around | None = None,
) -> Engine:
    """The engine of a run, its optimizer over the unit's parameters in ``groups``. Raises UserError."""
    in_one_launch = switches.fuse and takes_one_launch(optim, device, dtype, engine_kind(engine))
    optimizer = build_optimizer(groups, optim, on_device=switches.graph, in_one_launch=in_one_launch)
    common = {"device": device, "dtype": dtype, "accumulation": share.accumulation, "is_compiled": switches.compile}
    if engine_kind(engine) == "plain":
        own = {"clip_norm": optim.clip_norm, "ema": optim.ema, "rho": optim.sam_rho, "is_captured": switches.graph}
        own["around"] = around
        return PlainEngine(unit, teacher, optimizer, **own, **common)
    return DeepSpeedEngine(unit, teacher, optimizer, config=_merged(engine, optim, dtype, share), **common)


def _merged(engine: EngineConfig, optim: OptimConfig, dtype: torch.dtype, share: Share) -> dict:
    return merged_config(
        engine,
        dtype=dtype,
        per_rank=share.per_rank,
        accumulation=share.accumulation,
        clip_norm=optim.clip_norm,
    )
