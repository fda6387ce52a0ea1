"""The namespace of this copy's operators. A Kernel Hub build replaces this file, so that copies live side by side."""

from __future__ import annotations

import torch

NAMESPACE = "fastlg_kernels"
ops = getattr(torch.ops, NAMESPACE)


def add_op_namespace_prefix(op_name: str) -> str:
    """``guidance_forward`` -> ``fastlg_kernels::guidance_forward``."""
    return f"{NAMESPACE}::{op_name}"
