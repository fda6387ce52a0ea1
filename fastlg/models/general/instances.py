"""Networks that a Python session hands in as objects. A config calls them by a name that no file leads to:
``instance::CLASS_DIGEST``, the digest of the names and shapes of their weights."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fastlg.config.keys import OBJECT
from fastlg.errors import UserError

_offered: dict[tuple[str, str], nn.Module] = {}  # (model or teacher, name), for both may be of one build


def name_of(network: nn.Module) -> str:
    """What a config calls a network: the same for two of one build, whatever their weights are."""
    shapes = [[name, list(value.shape)] for name, value in network.state_dict().items()]
    digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:8]
    return f"{OBJECT}{type(network).__name__}_{digest}"


@contextmanager
def offered(*, model: object = None, teacher: object = None) -> Iterator[None]:
    """Inside, configs find these networks by ``name_of`` them; what is none is not offered."""
    before = dict(_offered)
    for field, network in (("model", model), ("teacher", teacher)):
        if isinstance(network, nn.Module):
            _offered[field, name_of(network)] = network
    try:
        yield
    finally:
        _offered.clear()
        _offered.update(before)


def taken(name: str, field: str) -> nn.Module:
    """A copy of the network that is offered by ``name`` as ``field`` (model or teacher), on the CPU, trainable; the
    user's own is left as it is. Raises UserError, which names the argument that offers it, where none is.
    """
    if (field, name) not in _offered:
        raise UserError(
            f"{field} {name.removeprefix(OBJECT)} was a Python object, which no folder keeps: hand it in again from "
            f"Python (fastlg.train, fastlg.evaluate or fastlg.open_run with {field}=...)"
        )
    return copy.deepcopy(_offered[field, name]).cpu().float().requires_grad_(True)


def expect_classes(network: nn.Module, num_classes: int) -> nn.Module:
    """Raises UserError for a network that says it has another number of classes than the images."""
    own = getattr(network, "num_classes", num_classes)
    if own != num_classes:
        fix = f"; call its reset_classifier({num_classes})" if hasattr(network, "reset_classifier") else ""
        raise UserError(f"the {type(network).__name__} has {own} classes, the images have {num_classes}{fix}")
    return network
