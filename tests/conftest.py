"""Fixtures every test may use. Threads are pinned so that results do not depend on the machine."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent

with contextlib.suppress(ImportError):  # a machine that runs a part of the tests may lack it
    from hypothesis import HealthCheck, settings

    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")  # no clock decides, however busy the machine is


LONG = (  # half a minute each, or more: begun first, so that no process is left alone with one at the end
    "test_ranks_killed.py",
    "test_resume.py",
    "test_engines.py",
    "test_gpu_stages.py",
    "test_guidance_triton.py",
    "test_models_own.py",
    "test_page_commands.py",
    "test_many_runs.py",
    "test_run_lock.py",
    "test_augment_triton.py",
    "test_quiet.py",
    "test_recipe.py",
    "test_bench.py",
)
TOGETHER = ("tests/fastlg/commands/report/",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Files that share what a session makes for them go to one process, which makes it once."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return os.path.dirname(file) if file.startswith(TOGETHER) else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


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


@pytest.fixture(scope="module", autouse=True)
def compiled_afresh():
    """torch.compile takes eight versions of a function in a process: those of other files do not count."""
    if (dynamo := sys.modules.get("torch._dynamo")) is not None:
        dynamo.reset()
