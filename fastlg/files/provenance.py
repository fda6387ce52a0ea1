"""Which code, libraries and device made a result; stamped into every summary and benchmark row."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACKAGES = ("fastlg", "torch", "triton", "timm", "numpy", "pillow")


def commit() -> str:
    """Short git commit of the sources, ``-dirty`` when they differ from it; "" outside a checkout.

    Whoever copies the sources without their history can name it in FASTLG_COMMIT.
    """
    if named := os.environ.get("FASTLG_COMMIT"):
        return named
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, timeout=10)
        if head.returncode or tracked.returncode:  # an installed copy may lie inside somebody else's checkout
            return ""
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=10).returncode
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("-dirty" if dirty else "")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def device_name(device: torch.device) -> str:
    """'NVIDIA H200' or 'cpu (x86_64, 2 threads)'."""
    import torch  # late: whoever is refused before a run needs the stamps alone

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
