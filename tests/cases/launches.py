"""Counts what a call launches on a device that is not there: tensors without memory, kernels that are not run."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KERNELS = {
    "resize": ("coefficients_kernel", "first_pass_kernel", "second_pass_kernel"),
    "launch": ("maps_kernel", "tables_kernel", "blur_kernel", "layer_kernel", "erase_kernel"),
}


class Launches(TorchDispatchMode):
    """``counts``: kernels and torch's operations on the device by name, views and fresh memory left out."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        name = function.overloadpacket.__name__
        if any(x.is_meta for x in tensors) and not function.is_view and "empty" not in name:
            self.counts[name] += 1
        return result

    @property
    def total(self) -> int:
        return self.counts.total()


class Kernel:
    """Stands in for a Triton kernel."""

    def __init__(self, name: str, launches: Launches):
        self.name, self.launches = name, launches

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launches.counts.update([self.name])


@contextmanager
def counted():
    """Public augmentation calls take the Triton path on tensors of the device "meta"; yields the Launches."""
    import importlib

    from fastlg_kernels.augment import api as augment
    from fastlg_kernels.augment import views

    with pytest.MonkeyPatch.context() as patch, Launches() as launches:
        for module in (augment, views):
            patch.setattr(module, "takes_triton", lambda _: True)
        for module, names in KERNELS.items():
            for name in names:
                patch.setattr(
                    importlib.import_module(f"fastlg_kernels.augment.triton.{module}"), name, Kernel(name, launches)
                )
        yield launches
