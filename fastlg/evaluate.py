"""Top-1 and top-5 over the test split, every image once; and trained models read back from their run folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fastlg import ranks
from fastlg.assemble import Parts, make_views, new_loader, new_model, open_stores
from fastlg.checkpoint import load_checkpoint
from fastlg.config import Config, config_from, read_saved_config
from fastlg.config.sections import scheme_of
from fastlg.data.prepare import find_or_prepare_test, open_store
from fastlg.data.source import some
from fastlg.engine.precision import autocast, pick_device, pick_dtype
from fastlg.errors import UserError
from fastlg.metrics import Accuracy, AccuracyMeter
from fastlg.run_folder import PARTS_OF_COMPARE, is_compare, refuse_other


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


def load_trained(folder: Path, which: str = "last", *, fix: str = "") -> tuple[Config, nn.Module, list[str]]:
    """(config, model with its trained weights on the CPU, class names) of a run folder.

    ``which`` is last or best. Raises UserError when the folder holds no run or no whole checkpoint; ``fix`` says what
    to do about one that is missing or damaged.
    """
    saved, path = folder / "config.yaml", folder / "checkpoints" / f"{which}.pt"
    if not saved.is_file():
        if is_compare(folder):
            parts = " or ".join(str(folder / part) for part in PARTS_OF_COMPARE)
            raise UserError(f"{folder} holds a comparison; name one of its runs: {parts}")
        raise UserError(f"{folder} is no run folder: it holds no config.yaml")
    other = "best" if which == "last" else "last"
    state = load_checkpoint(path, fix=fix or f"take the run's other one (--which {other}) or another run")
    config = read_saved_config(saved)
    unit, class_names = state.get("unit"), state.get("class_names")
    if not isinstance(unit, dict) or not isinstance(class_names, list) or not class_names:
        raise UserError(f"checkpoint {path} holds no weights and class names of a run; it was altered")
    if isinstance(state.get("config"), dict):
        refuse_other(config_from(state["config"], str(path)), config, str(path), fix="put the run's own file back")
    model = new_model(config, len(class_names))
    prefix = "student."
    _fill(model, {k.removeprefix(prefix): v for k, v in unit.items() if str(k).startswith(prefix)}, path)
    return config, model.eval(), class_names


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


def evaluate_run(folder: Path, which: str, overrides: dict) -> Accuracy:
    """Evaluates a trained run on its test split (``fastlg eval``); ``overrides`` are dotted keys.

    With another data.source its test split is measured, or all of its images where it has no splits; classes are
    matched by name, and some may be missing. Raises UserError.
    """
    foreign = [key for key in overrides if not key.startswith(("data.", "engine.", "log.eval_batch_size"))]
    if foreign:
        raise UserError(
            f"eval cannot change {foreign[0]}: it is part of the trained run; data.* and engine.* may differ"
        )
    trained, model, class_names = load_trained(folder, which)
    store = open_store(_test_store(trained, overrides, class_names), "test")
    config = trained.replace(overrides)
    device = pick_device(config.engine)
    dtype = pick_dtype(config.engine, device)
    loader, views = new_loader(config, store, device, train=False), make_views(config, None, dtype=dtype)
    model = model.to(device)
    with autocast(device, dtype):
        return measure(lambda images: model(images)[0], loader, views, device)


def _test_store(trained: Config, overrides: dict, class_names: list[str]) -> Path:
    """The store of the run's own test images, or of the images that ``overrides`` name: theirs of the test split, or
    all of a set without splits. The run's holdout was cut from its own images and says nothing about others."""
    data = trained.replace(overrides).data
    if _same_source(data.source, trained.data.source):
        if data.holdout != trained.data.holdout:
            raise UserError(
                f"eval cannot change data.holdout={trained.data.holdout:g} of the run's own images: some that are "
                "tested would be training images"
            )
        stores = open_stores(trained.replace(overrides))
        if list(stores.class_names) != list(class_names):
            raise UserError(
                f"{data.source} holds classes {some(stores.class_names, 3)}; the run was trained on "
                f"{some(class_names, 3)}: its images have changed since"
            )
        return stores.path
    if overrides.get("data.holdout"):
        raise UserError("eval measures all test images of another source; drop data.holdout")
    return find_or_prepare_test(
        data.source,
        list(class_names),
        data.store,
        on_bad=data.on_bad,
        workers=max(1, data.workers),
        label_column=data.label_column,
        image_column=data.image_column,
        download=data.download,
    )


def _same_source(one: str, other: str) -> bool:
    if scheme_of(one) or scheme_of(other):
        return one == other
    return os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(other))
