"""``fastlg eval``: a trained run measured on its own test images, or on others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from fastlg.assemble import make_views
from fastlg.config import Config
from fastlg.config.sections import scheme_of
from fastlg.data.loaders.of_run import new_loader
from fastlg.data.sources.base import some
from fastlg.data.store.store import Store, open_store
from fastlg.data.stores import open_stores, store_to_measure
from fastlg.engine.precision import pick_device, pick_dtype
from fastlg.engine.protocol import autocast
from fastlg.errors import UserError
from fastlg.run.evaluate import classify, measure
from fastlg.run.metrics import Accuracy
from fastlg.run.report import Pulse
from fastlg.run.trained import as_tested, load_trained


class Tested(NamedTuple):
    """A trained run and what it is tested on.

    config       the run's, with what was overridden of data and engine
    network      on the CPU, in evaluation mode
    class_names  in label order
    store        the test images
    weights      what the network hashes to, as it was read (``digest_of``)
    """

    folder: Path
    which: str
    config: Config
    network: nn.Module
    class_names: list[str]
    store: Store
    weights: str


def to_test(folder: Path, which: str, overrides: dict) -> Tested:
    """A run and its test split; ``overrides`` are dotted keys.

    With another data.source its test split is meant, or all of its images where it has no splits; classes are matched
    by name, and some may be missing. Raises UserError.
    """
    foreign = [key for key in overrides if not key.startswith(("data.", "engine.", "log.eval_batch_size"))]
    if foreign:
        raise UserError(
            f"eval cannot change {foreign[0]}: it is part of the trained run; data.* and engine.* may differ"
        )
    trained, model, class_names = load_trained(folder, which)
    store = open_store(_test_store(trained, overrides, class_names), "test")
    weights = digest_of(trained, model)
    return Tested(folder, which, trained.replace(overrides), model, class_names, store, weights)


def digest_of(config: Config, network: nn.Module) -> str:
    """Hex digest of what a network on the CPU computes of an image: its tensors, and how both are set.

    Not of its checkpoint's file, which a run that goes on replaces between two looks at it.
    """
    shaping = config.model_dump(mode="json", include={"model", "augment"}, exclude={"model": {"weights"}})
    digest = hashlib.blake2b(json.dumps(shaping, sort_keys=True).encode(), digest_size=16)
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def evaluate_run(folder: Path, which: str, overrides: dict) -> Accuracy:
    """Top-1, top-5 and cross entropy of a trained run; arguments and errors as in ``to_test``."""
    with Pulse(lambda: f"testing  {folder}"):
        own = to_test(folder, which, overrides)
        return over(measure, own.config, own.network, own.store)


def classify_run(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(label, class that it is taken for), int64 [N], of every test image of a run, by its last checkpoint.

    All ranks call it alike. Raises UserError.
    """
    trained, model, class_names = load_trained(folder)
    store = open_store(_test_store(trained, {}, class_names), "test")
    found = over(partial(classify, count=len(store)), trained, model, store)
    return np.asarray(store.labels, dtype=np.int64), found.numpy()


class Pass:
    """A network and the images of a store, where and as precise as the config says; called once per pass over them.

    size  of the images that the loader gives, px; None: what the network sees
    """

    def __init__(self, config: Config, model: nn.Module, store: Store, *, size: int | None = None):
        self.device = pick_device(config.engine)
        self.dtype = pick_dtype(config.engine, self.device)
        self.loader = new_loader(config, store, self.device, train=False, size=size)
        self.views = make_views(config, None, dtype=self.dtype)
        self.model = as_tested(model, config, self.device, self.dtype)

    def __call__(self, what: Callable, change: Callable | None = None):
        """``what``, of run/evaluate.py; ``change``: what is made of the loader before it is read."""
        loader = self.loader if change is None else change(self.loader)
        with autocast(self.device, self.dtype):
            return what(lambda images: self.model(images)[0], loader, self.views, self.device)


def over(what: Callable, config: Config, model: nn.Module, store: Store):
    """One ``Pass``."""
    return Pass(config, model, store)(what)


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
        if data.val != trained.data.val:
            raise UserError(f"eval cannot change data.val={trained.data.val} of the run's own images; leave it out")
        stores = open_stores(trained.replace(overrides).data)
        expect_classes(stores.class_names, class_names, data.source)
        return stores.path
    if overrides.get("data.holdout"):
        raise UserError("eval measures all test images of another source; drop data.holdout")
    return store_to_measure(data, class_names)


def expect_classes(found: Sequence[str], trained: Sequence[str], source: str) -> None:
    """Raises UserError where the images of a run have other classes than it was trained on."""
    if list(found) != list(trained):
        raise UserError(
            f"{source} holds classes {some(found, 3)}; the run was trained on {some(trained, 3)}: its images have "
            "changed since"
        )


def _same_source(one: str, other: str) -> bool:
    if scheme_of(one) or scheme_of(other):
        return one == other
    return os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(other))
