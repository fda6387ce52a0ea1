"""The residual stream in half precision: half the bytes between blocks, and half of what guidance reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlg.errors import UserError
from fastlg.models.families import family_of
from fastlg.models.general.recompute import BLOCK


def round_residual(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    """From now on what goes into every block of ``model``, called ``name``, and what comes out of it is in ``dtype``.

    Under autocast it is float32 otherwise, for the position embedding is. Weights and products stay as they are. Raises
    UserError for networks whose blocks are not known here.
    """
    blocks = [block for own, block in model.named_modules() if BLOCK.search(own)] if family_of(model) else []
    if not blocks:
        raise UserError(
            f"engine.residual is bf16, but the blocks of {name} are not known here, so that its residual stream "
            "cannot be rounded; set engine.residual=fp32"
        )

    def taken(_block: nn.Module, inputs: tuple) -> tuple:
        return (inputs[0].to(dtype), *inputs[1:])

    def given(_block: nn.Module, _inputs: tuple, tokens: Tensor) -> Tensor:
        return tokens.to(dtype)

    for block in blocks if not getattr(model, "is_rounded", False) else ():
        block.register_forward_pre_hook(taken)
        block.register_forward_hook(given)
    model.is_rounded = True  # done twice it is done once
