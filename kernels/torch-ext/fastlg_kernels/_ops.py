"""The namespace of this copy's operators, so that copies live side by side. A Kernel Hub build replaces this file."""

from __future__ import annotations

import torch

NAMESPACE = __package__.replace(".", "_")  # a folder copied into another package registers under that name
ops = getattr(torch.ops, NAMESPACE)


def add_op_namespace_prefix(op_name: str) -> str:
    """``guidance_forward`` -> ``fastlg_kernels::guidance_forward``."""
    return f"{NAMESPACE}::{op_name}"
