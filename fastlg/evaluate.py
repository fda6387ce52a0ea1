"""Top-1 and top-5 over the test split, every image once; and trained models read back from their run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fastlg import ranks
from fastlg.assemble import Parts, make_views, new_loader, new_model, open_stores
from fastlg.checkpoint import load_checkpoint
from fastlg.config import Config, read_saved_config
from fastlg.engine.precision import autocast, pick_device, pick_dtype
from fastlg.errors import UserError
from fastlg.metrics import Accuracy, AccuracyMeter


def evaluate(parts: Parts) -> Accuracy:
    """Accuracy of the bare student on the test split, in evaluation mode, every image once over all ranks. One sync."""
    parts.unit.eval()
    accuracy = measure(parts.engine.predict, parts.test_loader, parts.views, parts.device)
    parts.unit.train()
    return accuracy


@torch.inference_mode()
def measure(predict: Callable[[Tensor], Tensor], loader, views, device: torch.device) -> Accuracy:
    """``predict(images) -> logits`` over all of ``loader``; the model is already in evaluation mode."""
    meter, images = AccuracyMeter(device), None
    for batch in loader.epoch(0):
        images = views(batch, 0, train=False).student
        meter.update(predict(images), batch.labels)
    for _ in range(len(loader), ranks.Agreement().settle(len(loader))):
        predict(images)  # other ranks have a step more, and a forward pass of ZeRO stage 3 is an exchange
    return meter.read()


def load_trained(folder: Path, which: str = "last") -> tuple[Config, nn.Module, list[str]]:
    """(config, model with its trained weights on the CPU, class names) of a run folder.

    ``which`` is last or best. Raises UserError when the folder holds no run or no checkpoint.
    """
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise UserError(f"{folder} is no run folder: it holds no config.yaml")
    config = read_saved_config(saved)
    state = load_checkpoint(folder / "checkpoints" / f"{which}.pt")
    model = new_model(config, len(state["class_names"]))
    prefix = "student."
    weights = {k.removeprefix(prefix): v for k, v in state["unit"].items() if k.startswith(prefix)}
    model.load_state_dict(weights)
    return config, model.eval(), state["class_names"]


def evaluate_run(folder: Path, which: str, overrides: dict) -> Accuracy:
    """Evaluates a trained run on its test split (``fastlg eval``); ``overrides`` are dotted keys, data.source say."""
    foreign = [key for key in overrides if not key.startswith(("data.", "engine.", "log.eval_batch_size"))]
    if foreign:
        raise UserError(
            f"eval cannot change {foreign[0]}: it is part of the trained run; data.* and engine.* may differ"
        )
    config, model, class_names = load_trained(folder, which)
    config = config.replace(overrides)
    stores = open_stores(config)
    if list(stores.class_names) != list(class_names):
        raise UserError(
            f"{config.data.source} holds classes {stores.class_names[:3]}...; "
            f"the run was trained on {class_names[:3]}..."
        )
    device = pick_device(config.engine)
    dtype = pick_dtype(config.engine, device)
    loader, views = new_loader(config, stores.test, device, train=False), make_views(config, None, dtype=dtype)
    model = model.to(device)
    with autocast(device, dtype):
        return measure(lambda images: model(images)[0], loader, views, device)
