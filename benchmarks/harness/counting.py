"""What a piece of work has to do, counted, and what the device could do at best, measured in the same run.

FLOPs are torch's own count of matrix products, convolutions and attention. Bytes are the operands read and the results
written by those same operations: the traffic that stays when everything else is fused into them. The bound is the
slower of the two at the measured ceilings; code that fuses products with each other, or a CPU whose caches hold the
operands, can pass it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

ADAMW_BYTES = 7 * 4  # per parameter: read weight, gradient and both moments, write weight and moments, in fp32


@dataclass(frozen=True)
class Ceilings:
    """Best of a few tries. copy: bytes read and written per second; matmul: FLOP/s by dtype name."""

    copy_bytes_per_s: float
    matmul_flops_per_s: dict[str, float]


@dataclass(frozen=True)
class Work:
    """Of one call. dtype: of its matrix products, 'float32' or 'bfloat16'."""

    bytes: int
    flops: int
    dtype: str = "float32"

    def bound_s(self, ceilings: Ceilings) -> float:
        """Seconds that the device needs at least."""
        rate = ceilings.matmul_flops_per_s.get(self.dtype, ceilings.matmul_flops_per_s["float32"])
        return max(self.bytes / ceilings.copy_bytes_per_s, self.flops / rate)

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops, self.dtype)


class ProductBytes(TorchDispatchMode):
    """Sums the bytes of tensors that go into and come out of every operation that has FLOPs."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.bytes += sum(x.numel() * x.element_size() for x in tree_leaves((args, out)) if isinstance(x, Tensor))
        return out


def count(run: Callable[[], object], dtype: str = "float32") -> Work:
    """Counts one eager call; compiled code and CUDA graphs hide their operations from the count."""
    own = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    traffic, flops = ProductBytes(), FlopCounterMode(display=False, custom_mapping=own)
    with flops, traffic:
        run()
    return Work(traffic.bytes, flops.get_total_flops(), dtype)


def _convolution_backward_flops(grad_shape, x_shape, w_shape, *rest, out_shape=None, **_) -> int:
    """Of the gradients that are asked for, each as much as the forward pass.

    torch's own formula counts every pair of channels, also where they are in groups: a depthwise convolution as many
    times too much as it has channels.
    """
    output_mask = rest[-1]
    spatial = math.prod(grad_shape[2:])
    return sum(output_mask[:2]) * 2 * grad_shape[0] * spatial * math.prod(w_shape)


def count_per_batch(run: Callable[[int], object], batch: int, dtype: str = "float32") -> Work:
    """Counts ``run(n)`` at n = 2 and 4 and goes on along that line to ``batch``: exact, and never out of memory."""
    two, four = count(lambda: run(2), dtype), count(lambda: run(4), dtype)

    def line(low: int, high: int) -> int:
        return low + (high - low) * (batch - 2) // 2

    return Work(line(two.bytes, four.bytes), line(two.flops, four.flops), dtype)


def measure_ceilings(device: torch.device, timed: Callable[[Callable, torch.device], float], quick: bool) -> Ceilings:
    """A large copy, and square matrix products in float32 (as torch is set) and bfloat16."""
    gpu = device.type == "cuda"
    tries = range(11 if gpu else 12 if quick else 24)

    def copied() -> float:
        source = torch.randint(256, ((1 << 30) if gpu else (1 << 26),), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return 2 * source.numel() / min(timed(lambda: target.copy_(source), device) for _ in tries)

    products = {}
    for dtype, size in ((torch.float32, 8192 if gpu else 1024), (torch.bfloat16, 8192 if gpu else 512)):
        a = torch.randn(size, size, device=device, dtype=dtype)  # a product of equal numbers draws less power
        took = min(timed(lambda a=a: a @ a, device) for _ in tries)
        products[str(dtype).removeprefix("torch.")] = 2 * size**3 / took
    return Ceilings(copied(), products)
