"""Launches of the guidance kernels: which kernel a pair takes, how it is tiled, and where its partial sums go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .guidance_configs import Config, choose
from .guidance_torch import residual_scale
from .guidance_triton_forward import flat_kernel, window_kernel
from .guidance_triton_gradients import reduce_kernel, token_grad_kernel, weight_grad_kernel

Grid = tuple[int, int]
WINDOW = 16  # side of a window of tokens: the smallest a tensor-core product contracts over


class Plan(NamedTuple):
    """How the forward pass of one pair is run."""

    kernel: object
    constants: dict
    config: Config
    tiles: int
    blocks: int  # of the teacher's channels


def plan_pair(batch: int, channels: int, grid: Grid, teacher: Sequence[int], itemsize: int, family: str) -> Plan:
    """Kernel, constants and tiles for students of C channels on ``grid`` and teacher maps [N, D, h, w]."""
    _, dim, height, width = teacher
    constants = {"C": channels, "D": dim, "HS": grid[0], "WS": grid[1], "HT": height, "WT": width}
    if grid[0] >= height and grid[1] >= width:
        kernel, config = flat_kernel, choose("flat", family, channels, dim, itemsize)
        constants["BT"] = config.tokens
        tiles = triton.cdiv(batch * grid[0] * grid[1], config.tokens)
    else:
        kernel, config = window_kernel, choose("window", family, channels, dim, itemsize)
        window = window_constants(grid, (height, width), config)
        constants.update(window, RESIDUAL_SCALE=residual_scale(grid, teacher))
        tiles = triton.cdiv(batch, window["PACK"] ** 2) * window["TILES_Y"] * window["TILES_X"]
    constants.update(BC=config.channels, BD=config.dims, CHUNKS=triton.cdiv(channels, config.channels))
    return Plan(kernel, constants, config, tiles, triton.cdiv(dim, config.dims))


def window_constants(grid: Grid, teacher: Grid, config: Config) -> dict:
    """Windows over the student's grid, blocks over the larger grid; samples of at most 8 x 8 share a window."""
    pack = 2 if max(*grid, *teacher) <= WINDOW // 2 else 1
    constants = {"S": WINDOW, "PACK": pack, "H": max(grid[0], teacher[0]), "W": max(grid[1], teacher[1])}
    for axis, size, big, block in zip("YX", grid, teacher, (config.rows, config.columns), strict=True):
        whole = size <= WINDOW // pack
        halo = 0 if whole or size >= big else 1
        own = size if whole else WINDOW - 2 * halo
        constants |= {f"OWN_{axis}": own, f"HALO_{axis}": halo, f"TILES_{axis}": triton.cdiv(size, own)}
        # where the axis is not resized, a block of the larger grid is the window itself
        side = WINDOW if size >= big or pack > 1 else min(block, max(WINDOW, triton.next_power_of_2(big)))
        constants["BH" if axis == "Y" else "BW"] = side
    return constants


def device_family(device: torch.device) -> tuple[str, int]:
    """Name of the family of tuned configurations, and the number of multiprocessors."""
    if device.type != "cuda":
        return "interpreter", 2
    properties = torch.cuda.get_device_properties(device)
    return f"sm{properties.major}{properties.minor}", properties.multi_processor_count


def student_strides(student: Tensor, grid: Grid) -> tuple[Tensor, tuple[int, int, int, int]]:
    """The student without its prefix tokens, and its strides along sample, row, column and channel."""
    if student.dim() == 4:
        n, c, y, x = student.stride()
        return student, (n, y, x, c)
    student = student[:, student.shape[1] - grid[0] * grid[1] :]
    n, t, c = student.stride()
    return student, (n, t * grid[1], t, c)


def needs_64_bit(student: Tensor, strides: Sequence[int], teacher: Tensor, grid: Grid, plan: Plan) -> bool:
    """Whether offsets within one tile pass 2^31; those between tiles are always 64-bit."""
    samples = plan.constants.get("PACK", 1) ** 2 + plan.config.tokens // (grid[0] * grid[1]) + 1
    samples = min(samples, student.shape[0])
    own = sum(size * stride for size, stride in zip((samples, *grid, plan.constants["C"]), strides, strict=True))
    theirs = sum(size * stride for size, stride in zip((samples, *teacher.shape[1:]), teacher.stride(), strict=True))
    return max(own, theirs) >= 2**31


def precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    """Of tensor-core products of float32 values: three TF32 products make float32, one is enough for half inputs."""
    return "tf32" if allow_tf32 or dtype != torch.float32 else "tf32x3"


def forward(
    pairs: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, Grid]],
    counts: Sequence[int],
    with_residuals: bool,
    with_weights: bool,
    allow_tf32: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Loss, residuals, and all weight and bias gradients in one flat tensor (W0, b0, W1, ...).

    Loss and gradients are divided by counts; residuals are E times ``residual_scale``.
    """
    device = pairs[0][0].device
    family, processors = device_family(device)
    plans = [
        plan_pair(student.shape[0], weight.shape[1], grid, teacher.shape, student.element_size(), family)
        for student, teacher, weight, _, grid in pairs
    ]
    losses = sum(plan.blocks for plan in plans)
    sizes = [w.numel() + b.numel() if with_weights else 0 for _, _, w, b, _ in pairs]
    programs = max(min(plan.tiles, processors * plan.config.programs) for plan in plans)
    partials = torch.empty((programs, losses + sum(sizes)), dtype=torch.float32, device=device)
    residuals, columns = [], [0, losses]
    with torch.cuda.device_of(partials):
        for pair, plan, count, size in zip(pairs, plans, counts, sizes, strict=True):
            flags = (with_residuals, with_weights, allow_tf32)
            residuals.append(_forward_pair(pair, plan, partials, columns, 1 / count, family, *flags))
            columns[0] += plan.blocks
            columns[1] += size
        loss, grads = partials.new_empty(()), partials.new_empty(sum(sizes))
        reduce_kernel[(1 + triton.cdiv(sum(sizes), 128),)](
            partials, loss, grads, programs, partials.shape[1],
            LOSSES=losses, BL=triton.next_power_of_2(losses), BP=32, BX=128, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return loss, residuals if with_residuals else [], grads


def _forward_pair(
    pair: tuple,
    plan: Plan,
    partials: Tensor,
    columns: list[int],
    scale: float,
    family: str,
    with_residuals: bool,
    with_weights: bool,
    allow_tf32: bool,
) -> Tensor:
    """Launch one pair: partial sums into ``partials`` at ``columns`` (loss, gradients); returns the residual."""
    student, teacher, weight, bias, grid = pair
    dim, channels = weight.shape
    fused = plan.config.fused and with_weights
    store = with_residuals or (with_weights and not fused)
    residual = student.new_empty((student.shape[0], grid[0] * grid[1], dim) if store else (0,))
    tokens, strides = student_strides(student, grid)
    rows = student.shape[0] * grid[0] * grid[1]
    constants = dict(plan.constants)
    if plan.kernel is flat_kernel:
        constants["CHANNELS_LAST"] = teacher.stride(1) == 1
    programs, width = partials.shape
    common = {
        "PRECISION": precision(student.dtype, allow_tf32),
        "WIDE": needs_64_bit(student, strides, teacher, grid, plan),
    }
    plan.kernel[(plan.blocks, programs)](
        tokens, teacher, weight.contiguous(), bias.contiguous(), residual, partials, *strides, *teacher.stride(),
        rows if plan.kernel is flat_kernel else student.shape[0],
        triton.cdiv(plan.tiles, programs), scale, width, *columns,
        **constants, FUSED=fused, WITH_RESIDUAL=store, **common, **plan.config.launch,
    )  # fmt: skip
    if with_weights and not fused:
        config = choose("weight_grad", family, channels, dim, student.element_size())
        blocks = triton.cdiv(channels, config.channels), triton.cdiv(dim, config.dims)
        weight_grad_kernel[(*blocks, programs)](
            tokens, residual, partials, *strides,
            rows, triton.cdiv(triton.cdiv(rows, config.tokens), programs),
            2 * scale / residual_scale(grid, teacher.shape), width, columns[1],
            C=channels, D=dim, HS=grid[0], WS=grid[1], BT=config.tokens, BC=config.channels, BD=config.dims,
            **common, **config.launch,
        )  # fmt: skip
    return residual


def token_grad(residual: Tensor, weight: Tensor, upstream: Tensor, scale: float, out: Tensor, allow_tf32: bool) -> None:
    """``upstream * scale * residual W`` into ``out`` [N, L, C] or [N, C, H, W] (dense), zeros on prefix tokens."""
    dim, channels = weight.shape
    if out.dim() == 3:
        length, (n, t, c) = out.shape[1], out.stride()
    else:
        length, (n, c, _, t) = out.shape[2] * out.shape[3], out.stride()
    config = choose("token_grad", device_family(out.device)[0], channels, dim, out.element_size())
    rows = out.shape[0] * length
    with torch.cuda.device_of(out):
        token_grad_kernel[(triton.cdiv(rows, config.tokens),)](
            upstream, residual, weight.contiguous(), out, n, t, c, rows, scale,
            C=channels, D=dim, LENGTH=length, PREFIX=length - residual.shape[1],
            BT=config.tokens, BC=config.channels, BD=config.dims,
            PRECISION=precision(out.dtype, allow_tf32), **config.launch,
        )  # fmt: skip
