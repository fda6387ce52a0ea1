"""Bytes that one guided DeiT-Ti step moves per image, by part, with timm's blocks and with ``fastlg_kernels.fuse``,
each run as it is written and as ``torch.compile`` makes it.

    python benchmarks/cases/kernels/block_bytes.py [--batch 1024] > benchmarks/results/block-bytes.txt

Eager is counted from shapes on tensors without memory, in bfloat16 autocast: every operation that PyTorch runs reads
its tensors once and writes its results once; views move nothing. So an operation that reads a tensor twice, or keeps
its partial sums in memory, counts too little: torch's own attention and norms on a GPU do, and ``add_layer_norm``
leaves 2 * C floats per program of its backward pass (4 programs per multiprocessor), a few KB per image. What the
kernels of ``add_mlp`` leave for one another, and their partial sums, are counted, as on an H100. Compiled is
counted on Inductor's schedule for an H100 (compiled_bytes.py); a kernel that makes several parts counts for the first
of them in PARTS. No GPU is needed, nothing is run and no time is taken.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from pathlib import Path

if __name__ == "__main__":  # the root, not this folder, whose names could hide installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import timm
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastlg.models.resnet_cifar import resnet56
from fastlg.teacher.online import OnlineTeacher
from fastlg_kernels import GuidanceLoss, fuse
from fastlg_kernels.mlp.tiles import choose

BLOCKS, TEACHER = [0, 6, 11], {16: 32, 32: 16, 64: 8}  # guided blocks; channels and side of the teacher's maps
HALF = torch.bfloat16
MULTIPROCESSORS = 132  # of an H100
PARTS = {  # by words of an operation's name, first hit
    "attention": ("scaled_dot_product", "attention_forward", "attention_backward", "softmax"),
    "mlp": ("add_mlp",),
    "layer norm": ("native_layer_norm", "add_norm"),
    "guidance": ("guidance",),
    "matrix products": ("mm", "convolution"),
    "optimizer": ("adamw",),
    "casts": ("_to_copy",),
    "gelu": ("gelu",),
}
REST = "adds, drop path, copies"
SAME_MEMORY = ("_unsafe_view", "detach", "lift_fresh")


class Bytes(TorchDispatchMode):
    """``parts``: bytes read and written by every operation that is no view."""

    def __init__(self):
        super().__init__()
        self.parts, self.names = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if function.namespace != "prim" and not function.is_view and "empty" not in name and name not in SAME_MEMORY:
            read = {id(t): t.nbytes for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            if name in ("zeros_like", "ones_like", "new_zeros", "fill_", "zero_", "bernoulli_"):
                read = {}  # only written
            written = {id(t): t.nbytes for t in tree_leaves(result) if isinstance(t, Tensor)}
            moved = sum(read.values()) + sum(written.values()) + left_between(name, args)
            self.parts[part_of(name)] += moved
            self.names[name] += moved
        return result


def left_between(name: str, arguments: tuple) -> int:
    """Bytes that the kernels of ``add_mlp_backward`` write for one another and read once, on an H100."""
    if name != "add_mlp_backward":
        return 0
    x, fc1, dtype = arguments[1], arguments[7], arguments[12]
    hidden, channels = fc1.shape
    rows = x.numel() // channels
    tiles = -(-rows // choose("backward", "sm90", hidden).tokens)
    row = choose("weights", "sm90", hidden)
    splits = min(-(-rows // row.tokens), max(1, MULTIPROCESSORS // (hidden // row.hidden)))
    sums = tiles * 3 * channels + splits * (2 * channels * hidden + hidden)
    return 2 * (2 * rows * channels * dtype.itemsize + 4 * sums)


def part_of(name: str) -> str:
    return next((part for part, words in PARTS.items() if any(word in name for word in words)), REST)


class Step(nn.Module):
    """A guided step's forward pass, to its loss."""

    def __init__(self, name: str, is_fused: bool, drop_path: float):
        super().__init__()
        self.student = timm.create_model(name, num_classes=100, drop_path_rate=drop_path)
        if is_fused:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what stays as it is
                fuse(self.student)
        self.guidance = GuidanceLoss([self.student.embed_dim] * 3, list(TEACHER))

    def forward(self, images: Tensor, labels: Tensor, *maps: Tensor) -> Tensor:
        with torch.autocast("cpu", HALF):
            final, tokens = self.student.forward_intermediates(images, indices=BLOCKS, norm=False, output_fmt="NLC")
            loss = nn.functional.cross_entropy(self.student.forward_head(final), labels)
            return loss + 2.5 * self.guidance(tokens, maps)


class Teacher(nn.Module):
    """ResNet-56 as it runs beside a step, normalising by its batch; what drifts nowhere is left out."""

    def __init__(self):
        super().__init__()
        self.model = OnlineTeacher(resnet56(100), stages=[0, 1, 2], norm_stats="batch", dtype=HALF).model
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = module.running_var = None

    @torch.no_grad()
    def forward(self, view: Tensor) -> Tensor:
        with torch.autocast("cpu", HALF):
            return self.model(view)[1][-1]


def without_memory(module: nn.Module) -> None:
    """Under a FakeTensorMode."""
    for own in module.modules():
        for name, parameter in own._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                own._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)


def inputs(batch: int) -> list[Tensor]:
    """Images, labels and the teacher's maps."""
    maps = [torch.empty(batch, dim, side, side, dtype=HALF) for dim, side in TEACHER.items()]
    return [torch.empty(batch, 3, 224, 224), torch.empty(batch, dtype=torch.int64), *maps]


def eager(step: Step, batch: int) -> Bytes:
    """Of one step: the teacher's forward pass; forward, backward and update of student and projections."""
    teacher = Teacher()
    with FakeTensorMode():
        given = inputs(batch)
        without_memory(step), without_memory(teacher)
        optimizer = torch.optim.AdamW(step.parameters(), lr=1e-3, fused=True)

        def update() -> None:
            step(*given).backward()
            optimizer.step()
            optimizer.zero_grad()

        update()  # makes the optimizer's moments
        with Bytes() as counted:
            update()
        with Bytes() as beside:
            teacher(torch.empty(batch, 3, 32, 32))
    counted.parts["teacher"] = sum(beside.parts.values())
    return counted


def compiled(step: Step, batch: int) -> Counter:
    """The same, each compiled for an H100; but for the update, which moves what it moves in any form."""
    teacher, parts = Teacher(), Counter()
    with FakeTensorMode():
        parts["teacher"] = sum(kernel.bytes for kernel in kernels_of(teacher, torch.empty(batch, 3, 32, 32)))
        for kernel in kernels_of(step, *inputs(batch)):
            between = sum(left_between(name, values) for name, values in kernel.operations) if kernel.bytes else 0
            parts[part_of_kernel([name for name, _ in kernel.operations])] += kernel.bytes + between
    return parts


def kernels_of(module: nn.Module, *given: Tensor) -> list:
    """A compiled_bytes.Kernel for all that a compiled ``module(*given)`` runs, with backward where it has one."""
    from benchmarks.cases.kernels.compiled_bytes import scheduled

    without_memory(module)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def function(*arguments: Tensor) -> Tensor:
        own = dict(zip(names, arguments[: len(names)], strict=True))
        return torch.func.functional_call(module, own, tuple(arguments[len(names) :]))

    return scheduled(function, [*parameters, *given])


def part_of_kernel(names: list[str]) -> str:
    """The first part of PARTS that one of the operations in it belongs to."""
    found = {part_of(name) for name in names}
    return next((part for part in PARTS if part in found), REST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--drop-path", type=float, default=0.1)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="of timm, with blocks of its ViT")
    parser.add_argument("--operations", action="store_true", help="eager by operation, too")
    options = parser.parse_args()
    own = {"name": options.model, "drop_path": options.drop_path}
    steps = [eager(Step(is_fused=is_fused, **own), options.batch) for is_fused in (False, True)]
    made = [compiled(Step(is_fused=is_fused, **own), options.batch) for is_fused in (False, True)]
    for own_eager, own_compiled in zip(steps, made, strict=True):
        own_compiled["optimizer"] = own_eager.parts["optimizer"]
    print(f"# python {' '.join(['benchmarks/cases/kernels/block_bytes.py', *sys.argv[1:]])}")
    print(f"# MB per image, read and written by one guided step of {options.model}, batch {options.batch},")
    print(f"# drop path {options.drop_path}, bfloat16 autocast, float32 residual stream; fused: fastlg_kernels.fuse;")
    print("# eager: counted from shapes; compiled: counted on Inductor's schedule for an H100; nothing was run")
    print(f"# torch {torch.__version__}, timm {timm.__version__}")
    table(("timm, eager", "timm, compiled", "fused, eager", "fused, compiled"),
          [steps[0].parts, made[0], steps[1].parts, made[1]], options.batch)  # fmt: skip
    if options.operations:
        table(("timm, eager", "fused, eager"), [counted.names for counted in steps], options.batch)


def table(heads: tuple[str, ...], columns: list[Counter], batch: int) -> None:
    """MB per image, the largest parts of the first column first, and their sums."""
    print(f"{'part':24}" + "".join(f"{head:>18}" for head in heads))
    for part in sorted(set().union(*columns), key=lambda part: -columns[0][part]):
        print(f"{part:24}" + "".join(f"{column[part] / batch / 1e6:18.2f}" for column in columns))
    print(f"{'all':24}" + "".join(f"{sum(column.values()) / batch / 1e6:18.2f}" for column in columns))


if __name__ == "__main__":
    main()
