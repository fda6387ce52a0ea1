"""Where the Triton kernels can run, how precisely they multiply there, and which implementation a call takes."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None  # torch without it runs the plain twins
IMPLS = ("auto", "triton", "torch")


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where one of the inputs that are there is float64, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def triton_obstacle(device: torch.device, dtypes: set[torch.dtype]) -> str:
    """Why the Triton kernels cannot take these inputs; "" where they can."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed"
    if torch.float64 in dtypes:
        return "they know no float64"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return "" if major >= 8 else f"they need compute capability 8.0, this GPU has {major}.{minor}"
    if device.type == "cpu" and triton.knobs.runtime.interpret:
        return "" if dtypes == {torch.float32} else "Triton's interpreter is right in float32 only"
    return f"they do not run on {device.type} tensors (Triton's interpreter needs TRITON_INTERPRET=1)"


def check_impl(impl: str) -> None:
    """Raises ValueError for an implementation that does not exist."""
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}; use one of {', '.join(map(repr, IMPLS))}")


def takes_triton(impl: str, kernels: str, tensors: Iterable[Tensor], limit: str = "") -> bool:
    """Whether this call runs the Triton kernels. Raises RuntimeError where impl="triton" cannot be met.

    kernels: their name in the message. limit: why these kernels cannot take such sizes; "" where they can.
    """
    tensors = list(tensors)
    device = tensors[0].device
    if impl == "torch" or (impl == "auto" and device.type != "cuda"):
        return False
    obstacle = triton_obstacle(device, {tensor.dtype for tensor in tensors}) or limit
    if impl == "triton" and obstacle:
        raise RuntimeError(f"impl='triton' cannot run the {kernels} kernels: {obstacle}; use impl='auto' or 'torch'")
    return not obstacle


def device_family(device: torch.device) -> tuple[str, int]:
    """Name of the family of tuned configurations, and the number of multiprocessors."""
    if device.type != "cuda":
        return "interpreter", 2
    properties = torch.cuda.get_device_properties(device)
    return f"sm{properties.major}{properties.minor}", properties.multi_processor_count


def allows_tf32(autocast: bool) -> bool:
    """One TF32 product instead of three for float32 values, where the caller has given up that precision already."""
    return autocast or torch.backends.cuda.matmul.fp32_precision == "tf32"


def precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    """Of tensor-core products of float32 values: three TF32 products make float32, one is enough for half inputs."""
    return "tf32" if allow_tf32 or dtype != torch.float32 else "tf32x3"
