"""The DeepSpeed configuration of a run: what fastlg decides, with the user's JSON laid over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fastlg import ranks
from fastlg.config import EngineConfig
from fastlg.engine.precision import DTYPES
from fastlg.errors import UserError, first_line
from fastlg.files.reading import read_text

# DeepSpeed's key -> the key of fastlg that decides it
LONGEST = 1 << 20  # bytes of the user's file
DECIDED = {
    "train_micro_batch_size_per_gpu": "engine.micro_batch_size",
    "gradient_accumulation_steps": "engine.micro_batch_size",
    "train_batch_size": "optim.global_batch_size",
    "gradient_clipping": "optim.clip_norm",
    "zero_optimization.stage": "engine.zero_stage",
    "torch_autocast.enabled": "engine.precision",
    "torch_autocast.dtype": "engine.precision",
}


def merged_config(
    config: EngineConfig, *, dtype: torch.dtype, per_rank: int, accumulation: int, clip_norm: float
) -> dict:
    """fastlg's DeepSpeed configuration, with the user's JSON file (``engine.deepspeed_config``) laid over it.

    What fastlg decides (batch sizes, clipping, optimizer, schedule, stage) may be "auto" or the same in the file.
    Raises UserError that names the key, both values and the fastlg key to set instead.
    """
    own: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": per_rank // accumulation,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": per_rank * ranks.world_size(),
        "gradient_clipping": clip_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**62,  # never
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it synchronises at every step
    }
    own["torch_autocast"] = {"enabled": dtype != torch.float32, "dtype": str(dtype).removeprefix("torch.")}
    user = {} if config.deepspeed_config is None else _read(config.deepspeed_config)
    where = f"engine.deepspeed_config {config.deepspeed_config}"
    for key in ("optimizer", "scheduler"):
        if key in user:
            raise UserError(f"{where}: {key} is set there, but the optimizer and its schedule are optim.*; remove it")
    for native in ("bf16", "fp16"):
        section = user.get(native)
        if isinstance(section, dict) and section.get("enabled") is True:
            if dtype != DTYPES[native]:
                raise UserError(
                    f"{where}: {native} is enabled, but the run is in {dtype}; set engine.precision={native}"
                )
            if config.zero_stage == 0:
                raise UserError(
                    f"{where}: {native} at stage 0 keeps no float32 weights; set engine.zero_stage=1, or remove it "
                    f"(engine.precision={native} then runs under torch_autocast)"
                )
            own["torch_autocast"]["enabled"] = False
    # DeepSpeed (0.19) scales the gradients of fp16 autocast at stage 0 alone: from stage 1 on an overflow ends all
    # learning, and clipping sees scaled gradients.
    if dtype == torch.float16 and config.zero_stage > 0 and own["torch_autocast"]["enabled"]:
        raise UserError(
            f"engine.precision=fp16 does not work with engine.zero_stage={config.zero_stage}; use bf16, or stage 0, or "
            'DeepSpeed\'s own {"fp16": {"enabled": true}} in engine.deepspeed_config'
        )
    return _merge(own, user, where)


def _merge(own: dict, user: dict, where: str, prefix: str = "") -> dict:
    merged = dict(own)
    for key, value in user.items():
        name = f"{prefix}{key}"
        if value == "auto":  # as other launchers' files say it; DeepSpeed itself takes no "auto"
            continue
        if isinstance(value, dict) and isinstance(own.get(key, {}), dict):
            merged[key] = _merge(own.get(key, {}), value, where, f"{name}.")
        elif name in DECIDED and key in own:
            if value != own[key]:
                raise UserError(f"{where}: {name} is {value}, but the run has {own[key]}; set {DECIDED[name]} instead")
        else:
            merged[key] = value
    return merged


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _read(path: Path) -> dict:
    try:
        text = read_text(path, LONGEST)
    except ValueError as error:
        raise UserError(f"engine.deepspeed_config {path} cannot be read: {error}") from None
    try:
        user = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise UserError(f"engine.deepspeed_config {path} nests too deep; make it flat") from None
    except ValueError as error:
        raise UserError(f"engine.deepspeed_config {path} is not valid JSON: {first_line(error)}") from None
    if not isinstance(user, dict):
        raise UserError(f"engine.deepspeed_config {path} holds a {type(user).__name__}; it must be an object")
    return user
