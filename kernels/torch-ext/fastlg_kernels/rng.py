"""Counter-based randomness: every draw is a pure function of a sample's seed and the draw's index.

A sample keeps its draws whatever the batch, the device, the loader or the number of processes. The hash is
SplitMix64's finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) over a
Weyl sequence. All integer arithmetic is int64 and wraps, so CPU and CUDA agree bit for bit.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def sample_seeds(seed: int, epoch: int, sample_ids: Tensor, purpose: int | str) -> Tensor:
    """One seed per sample, a pure function of (seed, epoch, sample_id, purpose).

    Args:
        seed: the run's seed, any Python integer that fits 64 bits.
        epoch: number of the epoch, any Python integer that fits 64 bits.
        sample_ids: integer tensor [N], the samples' numbers in the data set.
        purpose: what the draws are for ("crop", "rand_augment", ...), so that purposes do not share draws.

    Returns:
        int64 [N] on the device of `sample_ids`.

    Raises:
        TypeError: `sample_ids` is not an integer tensor, or a number is not an integer.
        ValueError: `sample_ids` is not one-dimensional, or a number does not fit 64 bits.
    """
    _check_integers(sample_ids, "sample_ids")
    key = 0
    for part in (_whole(seed, "seed"), _whole(epoch, "epoch"), _purpose_number(purpose)):
        key = _mix_python((_mix_python(key + GAMMA) ^ part) + GAMMA)
    return mix(mix(sample_ids.to(torch.int64) + _signed(GAMMA)) ^ _signed(key))


def uniforms(seeds: Tensor, count: int, *, offset: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) with 53 random bits.

    Args:
        seeds: int64 [N], one per sample.
        count: how many numbers each sample gets.
        offset: index of the first one; draws offset .. offset + count - 1 of a seed's sequence.

    Returns:
        float64 [N, count] on the device of `seeds`.

    Raises:
        TypeError, ValueError: as `sample_seeds`, or a negative `count` or `offset`.
    """
    return _shift_right(random_bits(seeds, count, offset=offset), 11).to(torch.float64) * 2.0**-53


def normals(seeds: Tensor, count: int, *, offset: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers (Box-Muller, both values of a pair used, 32 random bits each).

    Args, errors: as `uniforms`; `offset` counts pairs, so that draws of neighbouring calls need not be split.
        `normals(seeds, n)` and `uniforms(seeds, ceil(n / 2))` share bits: take different seeds or offsets.

    Returns:
        `dtype` [N, count], on the device of `seeds`.
    """
    bits = random_bits(seeds, (count + 1) // 2, offset=offset)
    return normals_from_bits(bits, dtype).flatten(1)[:, :count]


def normals_from_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Two standard normals per 64 random bits: int64 [...] -> `dtype` [..., 2]."""
    radius = _shift_right(bits, 32).to(dtype).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = (bits & 0xFFFFFFFF).to(dtype).mul_(2.0 * math.pi * 2.0**-32)
    return torch.stack((angle.cos().mul_(radius), angle.sin_().mul_(radius)), dim=-1)


def random_bits(seeds: Tensor, count: int, *, offset: int = 0) -> Tensor:
    """64 random bits per draw: int64 [N, count], draws offset .. offset + count - 1 of each seed's sequence."""
    _check_integers(seeds, "seeds")
    if count < 0 or offset < 0:
        raise ValueError(f"count and offset must not be negative, got count={count}, offset={offset}")
    index = torch.arange(offset + 1, offset + count + 1, device=seeds.device, dtype=torch.int64)
    return mix(mix(seeds.to(torch.int64))[:, None] + index * _signed(GAMMA))


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit words, on int64 tensors of any shape; a new tensor."""
    z = z.bitwise_xor(_shift_right(z, 30)).mul_(_signed(MIX_1))
    z = z.bitwise_xor_(_shift_right(z, 27)).mul_(_signed(MIX_2))
    return z.bitwise_xor_(_shift_right(z, 31))


def _shift_right(z: Tensor, places: int) -> Tensor:
    """Logical shift: torch's own copies the sign bit."""
    return (z >> places).bitwise_and_((1 << (64 - places)) - 1)


def _mix_python(z: int) -> int:
    z &= _MASK64
    z = ((z ^ (z >> 30)) * MIX_1) & _MASK64
    z = ((z ^ (z >> 27)) * MIX_2) & _MASK64
    return z ^ (z >> 31)


def _signed(value: int) -> int:
    """The 64-bit word as the int64 with the same bits."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _whole(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"{name} must fit 64 bits, got {value}")
    return value & _MASK64


def _purpose_number(purpose: int | str) -> int:
    if isinstance(purpose, str):
        # Python's own hash() of a string changes from process to process.
        return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    return _whole(purpose, "purpose (a name or an integer)")


def _check_integers(values: Tensor, name: str) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor of integers, got {type(values).__name__}: use torch.tensor(...)")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {values.dtype}: convert with .to(torch.int64)")
    if values.dim() != 1:
        raise ValueError(f"{name} must be one-dimensional [N], got shape {tuple(values.shape)}: use .reshape(-1)")
