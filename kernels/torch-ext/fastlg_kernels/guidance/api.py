"""``guidance_loss``: the L2 between a student's projected tokens and a frozen teacher's maps, for all pairs at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..devices import check_impl
from .op import guidance_forward

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REDUCTIONS = ("mean", "sum_channels")


def guidance_loss(
    students: Tensor | Iterable[Tensor],
    teachers: Tensor | Iterable[Tensor],
    weights: Tensor | Iterable[Tensor],
    biases: Tensor | Iterable[Tensor | None] | None,
    *,
    grids: Sequence | None = None,
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """Locality guidance (arXiv 2207.10026, Eqs. 3-5), summed over the pairs.

    Per pair the student is projected to the teacher's channels, both maps are resized to the larger size of each axis
    (bilinear, ``align_corners=False``), and the squared difference is reduced.

    students   tokens [N, L, C], whose leading L - H*W prefix tokens are skipped, or maps [N, C, H, W]; any strides
    teachers   maps [N, Cj, Hj, Wj] without gradient
    weights    [Cj, C] or [Cj, C, 1, 1]
    biases     [Cj] or None, per pair; None for none at all
    grids      (H, W) per student (None for maps), or one (H, W) for all; None reads every token input as a square grid
               with no prefix token
    reduction  "mean": over N, Cj and positions, what the reference code computes (its factor 2.5 belongs to it);
               "sum_channels": summed over Cj, mean over N and positions (Eq. 5)
    impl       "auto" takes the Triton kernels where they run and torch elsewhere; "triton" and "torch" insist

    float16, bfloat16, float32 and float64 may be mixed. Returns a 0-d float32 tensor (float64 where an input is
    float64). Gradients reach students, weights and biases, each in its own dtype. Second derivatives are refused.
    Raises TypeError for a wrong type or dtype, ValueError for shapes, devices or options that do not fit, and
    RuntimeError where ``impl="triton"`` cannot run.
    """
    check_options(reduction, impl)
    students, teachers, weights = listed("students", students), listed("teachers", teachers), listed("weights", weights)
    biases = [None] * len(students) if biases is None else listed("biases", biases)
    _check_counts(students, teachers, weights, biases)
    grids = student_grids(students, grids)
    for index, pair in enumerate(zip(students, teachers, weights, biases, strict=True)):
        check_maps(index, *pair[:2], device=students[0].device)
        _check_projection(index, *pair, device=students[0].device)
    weights = [weight.flatten(1) for weight in weights]
    biases = [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)]
    grad_mode = torch.is_grad_enabled()
    return guidance_forward(
        students,
        teachers,
        weights,
        biases,
        [size for grid in grids for size in grid],
        reduction == "sum_channels",
        grad_mode and any(student.requires_grad for student in students),
        grad_mode and any(tensor.requires_grad for tensor in (*weights, *biases)),
        impl,
        not students[0].is_meta and torch.is_autocast_enabled(students[0].device.type),
    )[0]


def check_options(reduction: str, impl: str) -> None:
    """Raises ValueError for a reduction or an implementation that does not exist."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; use one of {', '.join(map(repr, REDUCTIONS))}")
    check_impl(impl)


def student_grids(students: Sequence[Tensor], grids: Sequence | None) -> list[tuple[int, int]]:
    """The (H, W) of every student, checked against its tokens or map; see ``guidance_loss`` for ``grids``."""
    if grids is None:
        grids = [None] * len(students)
    elif not isinstance(grids, Sequence):
        raise TypeError(f"grids is {grids!r}; give one (H, W) per student")
    elif len(grids) == 2 and all(isinstance(size, int) for size in grids):
        grids = [grids] * len(students)
    if len(grids) != len(students):
        raise ValueError(f"{len(grids)} grids for {len(students)} students; give one (H, W) per student")
    return [_student_grid(index, *pair) for index, pair in enumerate(zip(students, grids, strict=True))]


def _student_grid(index: int, student: Tensor, grid: Sequence[int] | None) -> tuple[int, int]:
    name = f"students[{index}]"
    if not isinstance(student, Tensor):
        raise TypeError(f"{name} is a {type(student).__name__}; pass a tensor [N, L, C] or [N, C, H, W]")
    if student.dim() not in (3, 4):
        raise ValueError(f"{name} has shape {_shape(student)}; pass tokens [N, L, C] or a map [N, C, H, W]")
    if grid is not None:
        if not isinstance(grid, Sequence) or len(grid) != 2 or any(size != int(size) for size in grid):
            raise ValueError(f"grids[{index}] is {grid!r}; give (H, W), two whole numbers")
        height, width = (int(size) for size in grid)
        if height < 1 or width < 1:
            raise ValueError(f"grids[{index}] is {(height, width)}; both sizes must be at least 1")
    if student.dim() == 4:
        if grid is not None and (height, width) != tuple(student.shape[2:]):
            raise ValueError(f"grids[{index}] is {(height, width)}, but {name} is a map {_shape(student)}; pass None")
        return int(student.shape[2]), int(student.shape[3])
    length = int(student.shape[1])
    if grid is None:
        height = width = int((length + 0.5) ** 0.5)
        if height * width != length:
            raise ValueError(
                f"{name} has {length} tokens, which is no square grid; pass its (H, W) in grids "
                f"(leading prefix tokens are then skipped, e.g. {height, width} skips {length - height * width})"
            )
    if height * width > length:
        raise ValueError(f"grids[{index}] is {(height, width)} = {height * width} tokens, but {name} has {length}")
    return height, width


def listed(name: str, value: Tensor | Iterable) -> list:
    """One tensor, or any iterable of them, as a list."""
    if isinstance(value, Tensor):
        return [value]
    if not hasattr(value, "__iter__"):
        raise TypeError(f"{name} is a {type(value).__name__}; pass a tensor or a sequence of tensors")
    return list(value)


def _check_counts(students: list, teachers: list, weights: list, biases: list) -> None:
    counts = [len(group) for group in (students, teachers, weights, biases)]
    if not students:
        raise ValueError("no pairs; pass at least one student")
    if len(set(counts)) > 1:
        numbers = "{} students, {} teachers, {} weights, {} biases".format(*counts)
        raise ValueError(f"{numbers}; give one of each per pair (None for a bias that is not there)")


def check_maps(index: int, student: Tensor, teacher: Tensor, device: torch.device) -> None:
    """Raises TypeError or ValueError where a student and a teacher's maps cannot be one pair."""
    _check_tensor(f"students[{index}]", student, device)
    _check_tensor(f"teachers[{index}]", teacher, device)
    if teacher.requires_grad:
        raise ValueError(f"teachers[{index}] requires grad, but no gradient reaches it; pass its .detach()")
    if teacher.dim() != 4:
        raise ValueError(f"teachers[{index}] has shape {_shape(teacher)}; pass a map [N, Cj, Hj, Wj]")
    if teacher.shape[0] != student.shape[0]:
        raise ValueError(
            f"students[{index}] holds {student.shape[0]} samples, teachers[{index}] {teacher.shape[0]}; they must agree"
        )


def _check_projection(
    index: int, student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor | None, device: torch.device
) -> None:
    _check_tensor(f"weights[{index}]", weight, device)
    channels = student.shape[2] if student.dim() == 3 else student.shape[1]
    expected = (int(teacher.shape[1]), int(channels))
    if tuple(weight.shape[:2]) != expected or tuple(weight.shape[2:]) not in ((), (1, 1)):
        is_last = student.dim() == 4 and weight.dim() > 1 and tuple(weight.shape[:2]) == (expected[0], student.shape[3])
        hint = f"; students[{index}] seems to be [N, H, W, C], pass its .permute(0, 3, 1, 2)" if is_last else ""
        raise ValueError(
            f"weights[{index}] has shape {_shape(weight)}; teacher channels x student channels is "
            f"{expected} or {(*expected, 1, 1)}{hint}"
        )
    if bias is None:
        return
    _check_tensor(f"biases[{index}]", bias, device)
    if tuple(bias.shape) != expected[:1]:
        raise ValueError(f"biases[{index}] has shape {_shape(bias)}; the teacher's channels need {expected[:1]}")


def _check_tensor(name: str, tensor: Tensor, device: torch.device) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; pass a tensor")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} is {tensor.dtype}; use float16, bfloat16, float32 or float64")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, but students[0] is on {device}; move it there")
    if tensor.numel() == 0:
        raise ValueError(f"{name} is empty, its shape is {_shape(tensor)}; the batch and all sizes must be >= 1")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape)
