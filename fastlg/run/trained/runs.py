"""The network of a run folder, with the weights of one of its checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fastlg.config import Config, read_saved_config, saved_config
from fastlg.engine.switches import takes_fused_attention
from fastlg.errors import UserError
from fastlg.models.build import new_model
from fastlg.models.general.residual import round_residual
from fastlg.models.student import use_fused_attention
from fastlg.run.checkpoint import load_checkpoint
from fastlg.run.folder import expect_run, refuse_other


def load_trained(folder: Path, which: str = "last", *, fix: str = "") -> tuple[Config, nn.Module, list[str]]:
    """(config, model with its trained weights on the CPU, class names) of a run folder; averaged ones with optim.ema.

    ``which`` is last or best. Raises UserError when the folder holds no run or no whole checkpoint; ``fix`` says what
    to do about one that is missing or damaged.
    """
    expect_run(folder)
    saved, path = folder / "config.yaml", folder / "checkpoints" / f"{which}.pt"
    if not path.is_file():
        there = ", ".join(sorted(own.stem for own in path.parent.glob("*.pt")))
        own = f"there is --which {there}" if there else "it was stopped before its first one; train it on"
        raise UserError(f"{folder} holds no checkpoint {path.relative_to(folder)}; {fix or own}")
    other = "best" if which == "last" else "last"
    state = load_checkpoint(path, fix=fix or f"take the run's other one (--which {other}) or another run")
    config = read_saved_config(saved)
    if config.pretrain is not None:
        raise UserError(
            f"{folder} was trained without labels (fastlg pretrain), so that it tells no classes apart; begin a run "
            f"from it with model.weights={folder}"
        )
    unit, class_names = state.get("unit"), state.get("class_names")
    if not isinstance(unit, dict) or not isinstance(class_names, list) or not class_names:
        raise UserError(f"checkpoint {path} holds no weights and class names of a run; it was altered")
    if isinstance(state.get("config"), dict):
        refuse_other(saved_config(state["config"], str(path)), config, str(path), fix="put the run's own file back")
    model = new_model(config.model, config.teacher, len(class_names))
    prefix = "student."
    weights = {k.removeprefix(prefix): v for k, v in unit.items() if str(k).startswith(prefix)}
    if config.optim.ema:
        weights = averaged(state, path)
    _fill(model, weights, path)
    return config, model.eval(), class_names


def as_tested(model: nn.Module, config: Config, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """``model`` itself on ``device``, computing as the evaluation of its run does, but for blocks that it fused there;
    its residual stream is rounded where this device, too, computes in bf16."""
    use_fused_attention(model, takes_fused_attention(config.engine, device, dtype))
    if config.engine.residual == "bf16" and dtype == torch.bfloat16 and not config.model.is_cnn:
        round_residual(model.bare, config.model.name, dtype)
    return model.to(device)


def averaged(state: dict, path: Path) -> dict:
    """The running mean of a student's weights. Raises UserError."""
    average = state["engine"].get("average") if isinstance(state.get("engine"), dict) else None
    if not isinstance(average, dict) or not isinstance(average.get("weights"), dict):
        raise UserError(f"checkpoint {path} holds no averaged weights, though its run has optim.ema; it was altered")
    return average["weights"]


def _fill(model: nn.Module, weights: dict, path: Path) -> None:
    """Raises UserError for weights that are not those of ``model``, or not finite."""
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | weights.keys(), key=str):
        value = weights.get(name)
        if name not in wanted or not isinstance(value, Tensor) or value.shape != wanted[name].shape:
            found = list(value.shape) if isinstance(value, Tensor) else "nothing" if value is None else "no tensor"
            raise UserError(
                f"checkpoint {path} does not fit its run's config.yaml: {name} is {found} there and "
                f"{list(wanted[name].shape) if name in wanted else 'nothing'} in the model; one of the two files was "
                "altered or replaced"
            )
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"checkpoint {path} holds weights that are not finite ({name}); take another checkpoint")
    model.load_state_dict(weights)
