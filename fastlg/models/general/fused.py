"""A student's blocks on the fused parts of ``fastlg_kernels``, once these were seen to compute the same."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from fastlg.config import EngineConfig
from fastlg.errors import first_line
from fastlg.ranks.say import say
from fastlg_kernels import fuse, unfuse
from fastlg_kernels.blocks import FusedBlock
from fastlg_kernels.devices import triton_obstacle

SAMPLES = 3
APART = 0.03  # of the length of an output or gradient: ten times what rounding to bfloat16 does to one


class _Skips(nn.Module):
    """A path of stochastic depth that always skips the first sample and doubles the others."""

    drop_prob, scale_by_keep = 0.5, True

    def factors(self, x: Tensor) -> Tensor:
        factors = torch.full((len(x),), 2.0, dtype=x.dtype, device=x.device)
        return torch.cat((factors[:1] * 0, factors[1:]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors(x).view(-1, *[1] * (x.dim() - 1))


def why_unfused(model: nn.Module, device: torch.device, dtype: torch.dtype, engine: EngineConfig) -> str:
    """What keeps the blocks of ``model`` from running on fused parts on a GPU; "" where nothing does, and where they
    shall not anyway. The model stays what it is."""
    if device.type != "cuda" or engine.fuse is False or engine.zero_stage == 3:
        return ""
    stream = dtype if engine.residual == "bf16" and dtype == torch.bfloat16 else torch.float32
    return device_obstacle(device, dtype) or obstacle_of(model) or disagreement(model, device, dtype, stream)


def device_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """What keeps fused parts from running on ``device`` whatever the model; "" where nothing does."""
    return triton_obstacle(device, {dtype}) if device.type == "cuda" else ""


def obstacle_of(model: nn.Module) -> str:
    """What ``fuse`` says of ``model``, a student or a network; "" where it takes it."""
    try:
        _fused(_bare(model))
    except ValueError as error:
        return str(error).partition(";")[0]
    unfuse(_bare(model))
    return ""


def disagreement(
    model: nn.Module, device: torch.device, dtype: torch.dtype, stream: torch.dtype = torch.float32
) -> str:
    """In which value a block like those of ``model``, fused on ``device``, strays from itself or fails; "" where
    output and gradients are alike, whole and with paths skipped.

    stream  of the tokens between blocks

    Weights and tokens are drawn from a generator of its own, so that a resumed run is told the same.
    """
    bare = _bare(model)
    with torch.random.fork_rng(devices=[]):
        try:
            kind = next(own for own in _fused(copy.deepcopy(bare)).modules() if isinstance(own, FusedBlock))
            block = _redrawn(unfuse(kind)).to(device)
            count = getattr(getattr(bare, "patch_embed", None), "num_patches", None) or 1
            count += getattr(bare, "num_prefix_tokens", 0)
            shape = (SAMPLES, count, block.norm1.normalized_shape[0])
            tokens, above = (own.to(device) for own in torch.randn(2, *shape, generator=_own_generator()))
            for skips in (False, True):
                if skips:
                    block.train()
                    block.drop_path1 = block.drop_path2 = _Skips()
                wanted = _answers(block, tokens.to(stream), above, dtype)
                found = _answers(_fused(block), tokens.to(stream), above, dtype)
                unfuse(block)
                for name, truth in wanted.items():
                    apart = (found[name] - truth).norm() / truth.norm().clamp(min=1e-6)
                    if not apart <= APART:  # nor where it is no number
                        return f"{name} of a block strays by {apart:.1%} on them"
        except Exception as error:  # a kernel that does not compile or start; the run goes on without
            return f"a block fails on them: {first_line(error)}"
    return ""


def use_fused_blocks(model: nn.Module) -> None:
    """Only where ``why_unfused`` has nothing to say. Parts that are left as they are, are told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fuse(_bare(model))
    for warning in told:
        say(f"fuse     {warning.message}")


def _fused(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fuse(model)


def _bare(model: nn.Module) -> nn.Module:
    """timm's network, which knows how many tokens there are."""
    return getattr(model, "bare", model)


def _own_generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _redrawn(block: nn.Module) -> nn.Module:
    """``block`` in evaluation mode, with weights of usual lengths."""
    generator = _own_generator()
    with torch.no_grad():
        for name, own in block.named_parameters():
            own.normal_(generator=generator)
            if own.ndim > 1:
                own.mul_(own[0].numel() ** -0.5)
            else:
                own.mul_(0.1).add_(float("norm" in name and name.endswith("weight")))
    return block.eval()


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
