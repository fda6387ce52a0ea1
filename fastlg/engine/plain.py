"""One device, plain torch: forward under autocast, backward, update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlg.batch import StepOutput
from fastlg.config import EngineConfig, OptimConfig
from fastlg.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(config: EngineConfig) -> torch.device:
    """Raises UserError when CUDA is asked for and torch sees none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device is cuda, but torch sees no CUDA device; use engine.device=cpu or auto")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def pick_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """Autocast dtype; fp32 means no autocast. Raises UserError for fp16 on a CPU, which cannot scale gradients."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if config.precision == "fp16" and device.type == "cpu":
        raise UserError("engine.precision is fp16, but the device is a CPU; use fp32 or bf16")
    return DTYPES[config.precision]


def build_optimizer(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or Nesterov SGD over parameter groups that carry their own weight decay."""
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


class PlainEngine:
    """Owns precision, gradients and the optimizer of one trainable unit.

    ``unit(images, targets, guide) -> StepOutput``; its parameters and the optimizer's moments stay fp32.
    """

    def __init__(self, unit: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, dtype: torch.dtype):
        self.unit, self.optimizer, self.device, self.dtype = unit, optimizer, device, dtype
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def set_learning_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def step(self, images: Tensor, targets: Tensor, guide) -> StepOutput:
        """One update. ``guide`` is what the teacher gave, or None. No host sync (fp16: GradScaler's own)."""
        with self.autocast():
            out = self.unit(images, targets, guide)
        self.scaler.scale(out.loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return out._replace(loss=out.loss.detach())

    def state_dict(self) -> dict:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
