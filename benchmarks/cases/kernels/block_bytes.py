"""Bytes that one guided DeiT-Ti step moves per image, by part, with timm's blocks and with ``fastlg_kernels.fuse``.

    python benchmarks/cases/kernels/block_bytes.py [--batch 1024] > benchmarks/results/block-bytes.txt

Counted from shapes on tensors without memory, in bfloat16 autocast: every operation that PyTorch runs eagerly reads its
tensors once and writes its results once; views move nothing. So an operation that reads a tensor twice, or keeps its
partial sums in memory, counts too little: torch's own attention and norms on a GPU do, and ``add_layer_norm`` leaves
2 * C floats per program of its backward pass (4 programs per multiprocessor), a few KB per image at this batch. What
the kernels of ``add_mlp`` leave for one another, and their partial sums, are counted, as on an H100. No time is.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

if __name__ == "__main__":  # the root, not this folder, whose names could hide installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import timm
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastlg_kernels import GuidanceLoss, fuse
from fastlg_kernels.mlp.tiles import choose

BLOCKS, TEACHER = [0, 6, 11], {16: 32, 32: 16, 64: 8}  # guided blocks; channels and side of the teacher's maps
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


def count(batch: int, is_fused: bool, drop_path: float) -> Bytes:
    """One step: forward, backward and update of student and projections, the teacher's maps given."""
    student = timm.create_model("deit_tiny_patch16_224", num_classes=100, drop_path_rate=drop_path)
    if is_fused:
        fuse(student)
    with FakeTensorMode() as no_memory:
        for module in student.modules():
            for name, parameter in module._parameters.items():
                module._parameters[name] = None if parameter is None else no_memory.from_tensor(parameter)
        guidance = GuidanceLoss([192] * 3, list(TEACHER))
        parameters = [*student.parameters(), *guidance.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
        images, labels = torch.empty(batch, 3, 224, 224), torch.empty(batch, dtype=torch.int64)
        maps = [torch.empty(batch, dim, side, side) for dim, side in TEACHER.items()]

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                final, tokens = student.forward_intermediates(images, indices=BLOCKS, norm=False, output_fmt="NLC")
                loss = torch.nn.functional.cross_entropy(student.forward_head(final), labels)
                loss = loss + 2.5 * guidance(tokens, maps)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step()  # makes the optimizer's moments
        with Bytes() as counted:
            step()
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--drop-path", type=float, default=0.1)
    parser.add_argument("--operations", action="store_true", help="by operation, too")
    arguments = parser.parse_args()
    eager, fused = (count(arguments.batch, is_fused, arguments.drop_path) for is_fused in (False, True))
    print("# python benchmarks/cases/kernels/block_bytes.py: MB per image, read and written by one guided DeiT-Ti step")
    print(f"# batch {arguments.batch}, drop path {arguments.drop_path}, bfloat16 autocast, float32 residual stream;")
    print(f"# eager, counted from shapes, torch {torch.__version__}, timm {timm.__version__}; nothing was run or timed")
    print(f"{'part':28} {'timm':>8} {'fused':>8}")
    tables = [("parts", eager.parts, fused.parts)]
    if arguments.operations:
        tables.append(("names", eager.names, fused.names))
    for _, left, right in tables:
        for part in sorted({*left, *right}, key=lambda part: -left[part]):
            print(f"{part:28} {left[part] / arguments.batch / 1e6:8.2f} {right[part] / arguments.batch / 1e6:8.2f}")
        totals = [sum(column.values()) / arguments.batch / 1e6 for column in (left, right)]
        print(f"{'all':28} {totals[0]:8.2f} {totals[1]:8.2f}")


if __name__ == "__main__":
    main()
