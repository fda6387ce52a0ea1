"""A student's blocks on the fused parts of ``fastlg_kernels``, once these were seen to compute the same."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from fastlg.errors import first_line
from fastlg_kernels import fuse, unfuse
from fastlg_kernels.devices import triton_obstacle

SAMPLES = 3
APART = 0.03  # of the length of an output or gradient: ten times what rounding to bfloat16 does to one


def why_unfused(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """What keeps the blocks of ``model`` from running on fused parts on a GPU; "" where nothing does, and elsewhere.
    The model stays what it is."""
    if device.type != "cuda":
        return ""
    if obstacle := triton_obstacle(device, {dtype}):
        return obstacle
    return obstacle_of(model) or disagreement(model, device, dtype)


def obstacle_of(model: nn.Module) -> str:
    """What ``fuse`` says of ``model``, a student or a network; "" where it takes it."""
    try:
        unfuse(fuse(_bare(model)))
    except ValueError as error:
        return str(error).partition(";")[0]
    return ""


def disagreement(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """In which value the first block of ``model``, fused on ``device``, strays from itself, or how it fails; "" where
    output and gradients are alike. Draws from no generator but its own."""
    bare = _bare(model)
    block = (
        copy.deepcopy(next(own for own in bare.modules() if unfused_type(own).__name__ == "Block")).to(device).eval()
    )
    count = getattr(bare.patch_embed, "num_patches", 1) + getattr(bare, "num_prefix_tokens", 0)
    generator = torch.Generator().manual_seed(0)
    shape = (SAMPLES, count, block.norm1.normalized_shape[0])
    tokens, above = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    with torch.random.fork_rng(devices=[]):
        wanted = _answers(block, tokens, above, dtype)
        try:
            found = _answers(fuse(block), tokens, above, dtype)
        except Exception as error:  # a kernel that does not compile or start; the run goes on without
            return f"its first block fails on them: {first_line(error)}"
    for name, truth in wanted.items():
        apart = (found[name] - truth).norm() / truth.norm().clamp(min=1e-6)
        if not apart <= APART:  # nor where it is no number
            return f"{name} of its first block strays by {apart:.1%} on them"
    return ""


def use_fused_blocks(model: nn.Module) -> None:
    """Only where ``why_unfused`` has nothing to say."""
    fuse(_bare(model))


def unfused_type(module: nn.Module) -> type:
    return getattr(type(module), "fused_from", type(module))


def _bare(model: nn.Module) -> nn.Module:
    """timm's network, which knows how many tokens there are."""
    return getattr(model, "bare", model)


def _answers(block: nn.Module, tokens: Tensor, above: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The block's output, and the gradients of its tokens and of each parameter that ``above`` makes; float32."""
    tokens = tokens.clone().requires_grad_()
    is_half = dtype.itemsize == 2
    with torch.enable_grad(), torch.autocast(tokens.device.type, dtype) if is_half else nullcontext():
        out = block(tokens)
    parameters = dict(block.named_parameters())
    grads = torch.autograd.grad(out.float(), [tokens, *parameters.values()], above, allow_unused=True)
    named = {
        "the output": out,
        **{f"the gradient of {own}": grad for own, grad in zip(("its input", *parameters), grads, strict=True)},
    }
    return {name: value.detach().float() for name, value in named.items() if value is not None}
