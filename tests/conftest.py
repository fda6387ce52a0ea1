"""Fixtures every test may use. Threads are pinned so that results do not depend on the machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent

with contextlib.suppress(ImportError):  # a machine that runs a part of the tests may lack it
    from hypothesis import HealthCheck, settings

    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")  # no clock decides, however busy the machine is


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with golden numbers and real images; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("FASTLG_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder} (set FASTLG_SHARED)")
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Folder of numbers taken from the reference code by running it."""
    return shared / "golden"
