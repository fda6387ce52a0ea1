"""Top-1 and top-5 over the test split, every image once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fastlg import ranks
from fastlg.engine.protocol import autocast
from fastlg.models.pretraining.neighbours import neighbours_of
from fastlg.run.metrics import Accuracy, AccuracyMeter
from fastlg.run.parts import Parts


def evaluate(parts: Parts, loader=None, *, latest: bool = False) -> Accuracy:
    """Accuracy of the bare student in evaluation mode, every image once over all ranks. One sync.

    ``loader``: of the split that is measured; None: the one that chooses the best epoch. ``latest``: the weights
    themselves, where their running mean is what counts.
    """
    parts.unit.eval()
    chooser = parts.test_loader if parts.val_loader is None else parts.val_loader
    predict = functools.partial(parts.engine.predict, latest=latest)
    if parts.self_teaching is not None:
        predict = votes_of(parts)
    accuracy = measure(predict, loader or chooser, parts.views, parts.device)
    parts.unit.train()
    return accuracy


def votes_of(parts: Parts) -> Callable[[Tensor], Tensor]:
    """What a run without labels answers in the place of logits: the votes of the nearest training images' classes, by
    the features of its teacher."""
    student = copy.deepcopy(parts.teacher.student).eval()

    def features_of(images: Tensor) -> Tensor:
        with autocast(parts.device, parts.engine.dtype):
            return student(images)[0]

    train, width = parts.stores.train, parts.teacher.head.layers[0].in_features
    own = {"device": parts.device, "shape": (len(train), width), "classes": len(parts.stores.class_names)}
    known = neighbours_of(features_of, parts.known_loader, parts.views, **own)
    return lambda images: known.votes(features_of(images))


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


@torch.inference_mode()
def classify(predict: Callable[[Tensor], Tensor], loader, views, device: torch.device, count: int) -> Tensor:
    """[count] int64 on the CPU: the class that each of the ``count`` images of ``loader``'s split is taken for.

    ``predict`` is that of a model that every rank holds whole; each classifies its own images, and learns all. One
    sync.
    """
    found = torch.zeros(count, dtype=torch.int64, device=device)
    for batch in loader.epoch(0):
        images = views(batch, 0, train=False).student
        found[batch.sample_ids.to(device)] = predict(images).argmax(dim=1) + 1
    return ranks.total(found).cpu() - 1
