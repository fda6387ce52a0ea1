"""Counts the operations that torch dispatches: on a GPU a kernel each, views and fresh memory aside."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Dispatched(TorchDispatchMode):
    """``counts``: operations by name; ``cast``: the shapes of what was only cast, one by one."""

    def __init__(self):
        super().__init__()
        self.counts, self.cast = Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.counts[name] += 1
        if name == "_to_copy" and isinstance(result, torch.Tensor):
            self.cast.append(tuple(result.shape))
        return result
