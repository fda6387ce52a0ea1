"""Which of the engine's accelerations are on for a run, and why the others are not."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastlg.config import EngineConfig
from fastlg.errors import UserError

NO_TEACHER = "no teacher is run"
NO_CNN = "no CNN is run"
NO_BLOCKS = "no transformer is trained"
NOTHING_TO_ACT_ON = (NO_TEACHER, NO_CNN, NO_BLOCKS)


class Switches(NamedTuple):
    """``why_off`` names a reason for every switch that is off and has something to act on."""

    compile: bool
    graph: bool
    prefetch: bool
    channels_last: bool
    fold_norms: bool
    fused_attention: bool
    fuse: bool
    tune_convolutions: bool
    why_off: dict[str, str]

    def on(self) -> str:
        """For the start of a run: the names of those that are on."""
        return ", ".join(name for name in self._fields if getattr(self, name) is True)

    def off(self) -> str:
        """``graph (needs CUDA), ...``"""
        return ", ".join(f"{name} ({reason})" for name, reason in self.why_off.items())


def takes_fused_attention(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention is torch's scaled_dot_product_attention; in bf16
    a CPU's takes 2.4 times as long as the steps one by one, whose products are oneDNN's (197 tokens, with backward)."""
    if config.fused_attention != "auto":
        return config.fused_attention
    return device.type != "cpu" or dtype == torch.float32


def decide(
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    kind: str,
    world_size: int,
    accumulation: int,
    norm_stats: str | None,
    is_on_device: bool = True,
    is_cnn: bool = False,
    optimizer: str = "",
    unfusable: str = "",
) -> Switches:
    """Resolves every ``auto``. Raises UserError for a switch that is asked for and cannot be.

    norm_stats    the online teacher's, None without one
    is_on_device  all that the teacher reads is there
    is_cnn        what is trained is a CNN
    optimizer     why its updates cannot be captured, "" where they can
    unfusable     why the student's blocks cannot run on fused parts, "" where they can
    """
    cuda = "" if device.type == "cuda" else "needs CUDA"
    impossible = {
        "compile": "ZeRO stage 3 moves its weights between forward and backward" if config.zero_stage == 3 else "",
        "graph": cuda
        or ("DeepSpeed's step runs on the host" if kind == "deepspeed" else "")
        or ("ranks exchange gradients from the host" if world_size > 1 else "")
        or ("fp16 scales gradients from the host" if dtype == torch.float16 else "")
        or ("several forward passes make one update" if accumulation > 1 else "")
        or ("teacher features come from the host" if not is_on_device else "")
        or ("checkpointing keeps random states on the host" if config.checkpointing else "")
        or optimizer,
        "prefetch": cuda,
        "channels_last": "" if norm_stats or is_cnn else NO_CNN,
        "fold_norms": {
            None: NO_TEACHER,
            "batch": "teacher.norm_stats=batch is known only at each step",
            "running": "",
        }[norm_stats],
        "fused_attention": "",
        "fuse": (NO_BLOCKS if is_cnn else "")
        or cuda
        or ("ZeRO stage 3 gathers weights layer by layer" if config.zero_stage == 3 else "")
        or unfusable,
        "tune_convolutions": NO_CNN if not (norm_stats or is_cnn) else cuda,
    }
    unwanted = {"tune_convolutions": "a resumed run might take other algorithms"}  # auto leaves off what could be
    if kind == "deepspeed":
        unwanted["compile"] = "DeepSpeed's hooks run eagerly"
    elif cuda:
        unwanted["compile"] = "compiling takes minutes on a CPU"
    if not takes_fused_attention(config, device, dtype):
        unwanted["fused_attention"] = "its steps are faster in bf16 on a CPU"
    chosen, why_off = {}, {}
    for name, reason in impossible.items():
        wanted = getattr(config, name)
        if wanted is True and reason and reason not in NOTHING_TO_ACT_ON:
            raise UserError(f"engine.{name} is true, but {reason}; use auto")
        reason = reason or (unwanted.get(name, "") if wanted == "auto" else "")
        chosen[name] = wanted is not False and not reason
        if not chosen[name] and reason not in NOTHING_TO_ACT_ON:
            why_off[name] = "switched off" if wanted is False else reason
    return Switches(**chosen, why_off=why_off)
