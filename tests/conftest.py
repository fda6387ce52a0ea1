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


LONG = (  # minutes each: begun first, so that no process is left alone with one at the end
    "test_engines.py",
    "test_guidance_triton.py",
    "test_resume.py",
    "test_ranks_killed.py",
    "test_models_own.py",
    "test_augment_triton.py",
    "test_loader_leaks.py",
    "test_many_runs.py",
    "test_gpu_stages.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


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
