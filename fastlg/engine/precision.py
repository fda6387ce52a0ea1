"""Where an engine computes and in which precision, and the optimizer it steps."""

from __future__ import annotations

import warnings

import torch

from fastlg.config import EngineConfig, OptimConfig
from fastlg.engine.update.muon import Muon
from fastlg.engine.update.timm_optimizers import timm_optimizer
from fastlg.errors import UserError
from fastlg_kernels import AdamW

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def uses_cuda(config: EngineConfig) -> bool:
    """Raises UserError when CUDA is asked for and torch sees none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device is cuda, but torch sees no CUDA device; use engine.device=cpu or auto")
    return config.device != "cpu" and torch.cuda.is_available()


def pick_device(config: EngineConfig) -> torch.device:
    """This process's device. Raises UserError when CUDA is asked for and torch sees none."""
    return torch.device("cuda", torch.cuda.current_device()) if uses_cuda(config) else torch.device("cpu")


def pick_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """Autocast dtype; fp32 means no autocast. ``auto`` takes bf16 where the device multiplies it natively.

    Raises UserError for fp16 on a CPU, which cannot scale gradients.
    """
    if config.precision == "auto":
        is_native = torch.cuda.is_bf16_supported() if device.type == "cuda" else multiplies_bf16()
        return torch.bfloat16 if is_native else torch.float32
    if config.precision == "fp16" and device.type == "cpu":
        raise UserError("engine.precision is fp16, but the device is a CPU; use fp32 or bf16")
    return DTYPES[config.precision]


def residual_dtype(config: EngineConfig, dtype: torch.dtype) -> torch.dtype | None:
    """What tokens between blocks are rounded to, None where they are left. Raises UserError outside of bf16 runs."""
    if config.residual == "fp32":
        return None
    if dtype != torch.bfloat16:
        own = str(dtype).removeprefix("torch.")
        raise UserError(
            f"engine.residual is bf16, but the run is in {own}; set engine.precision=bf16, or engine.residual=fp32"
        )
    return dtype


def multiplies_bf16() -> bool:
    """Whether this processor has instructions for products in bf16 (AVX512-BF16, AMX), and torch the oneDNN that uses
    them. Without them oneDNN converts to float32 and back, which is slower than float32 itself."""
    has = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(has.get(name) for name in ("avx512_bf16", "amx_bf16"))


def build_optimizer(
    groups: list[dict], config: OptimConfig, *, on_device: bool = False, in_one_launch: bool = False
) -> torch.optim.Optimizer:
    """Fused AdamW, Nesterov SGD, Muon beside AdamW, or one of timm's, over parameter groups that carry their own weight
    decay, and where layers have learning rates of their own ``lr_scale``, their share of the rate.

    ``on_device`` keeps learning rate and step count in tensors there, which a captured CUDA graph reads anew each time.
    ``in_one_launch`` takes fastlg_kernels' AdamW for torch's; either reads what the other left. Raises UserError for
    what timm does not have.
    """
    lr: float | torch.Tensor = config.lr
    if on_device:
        lr = torch.tensor(config.lr, device=groups[0]["params"][0].device)
        groups = [{**group, "lr": lr.clone()} for group in groups]  # one that all share could not be scaled
        warnings.filterwarnings("ignore", message=".*capturable=True")  # the first steps and odd batches run uncaptured
    if config.of_timm:
        return timm_optimizer(groups, config, lr, on_device=on_device)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    if config.name == "muon":
        return Muon(groups, lr, momentum=config.muon_momentum, betas=config.betas, capturable=on_device)
    if in_one_launch:
        return AdamW(groups, lr=lr, betas=config.betas)
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, fused=True, capturable=on_device)


def set_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Every group's share (``lr_scale``, or all) of the learning rate; where it lies in a tensor, in the same one."""
    for group in optimizer.param_groups:
        own = lr * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own
