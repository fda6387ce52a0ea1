"""Where the Triton kernels run by themselves."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

from torch import Tensor


def takes_triton(values: Tensor) -> bool:
    """Whether ``values`` are worked on by the Triton kernels: they lie on a GPU and Triton is installed."""
    return values.is_cuda and _has_triton()


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None
