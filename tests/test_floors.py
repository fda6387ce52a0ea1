"""Who may import whom: strictly down, siblings never, lazy imports included; adapters own their library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastlg"
KERNELS = ROOT / "kernels" / "torch-ext" / "fastlg_kernels"

# Units (a file, or a folder that counts as one) from the ground up. A unit imports from lower floors only.
FLOORS = [
    {"errors", "batch", "__init__"},
    {"files"},
    {"config", "ranks"},
    {"data", "models", "teacher", "engine", "drloc", "callbacks"},
    {"objective", "integrations"},
    {"run", "networks"},
    {"assemble", "features", "derived"},
    {"analysis"},
    {"train"},
    {"commands"},
    {"cli", "api"},
    {"__main__"},
]
USES_KERNELS = {"data", "engine", "models", "teacher", "objective", "integrations"}
ONLY_IN = {
    "ffcv": {"data/loaders/ffcv.py"},
    "nvidia": {"data/loaders/dali.py"},
    "deepspeed": {"engine/deepspeed.py"},
    "triton": set(),
    "wandb": {"integrations/wandb_logger.py"},
    "mlflow": {"integrations/mlflow_logger.py"},
}


def floor_of(unit: str) -> int:
    floors = [index for index, units in enumerate(FLOORS) if unit in units]
    assert floors, f"fastlg/{unit} stands on no floor: add it to FLOORS"
    return floors[0]


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or KERNELS in path.parents, f"{path}: relative import"
            if node.level == 0:
                names += [node.module] if node.module != "fastlg" else [f"fastlg.{a.name}" for a in node.names]
    return names


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_strictly_down(path):
    relative = path.relative_to(PACKAGE)
    unit = relative.parts[0].removesuffix(".py")
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "fastlg" and rest and not rest.startswith("__version__"):
            target = rest.split(".")[0]
            below = floor_of(target) < floor_of(unit)
            assert target == unit or below, f"{relative} imports {name}, which does not stand below it"
        if top == "fastlg_kernels":
            assert unit in USES_KERNELS, f"{relative} imports fastlg_kernels; only {sorted(USES_KERNELS)} may"
        if top in ONLY_IN:
            assert str(relative) in ONLY_IN[top], f"{relative} imports {top}; only {ONLY_IN[top]} may"
        assert top not in ("tests", "benchmarks"), f"{relative} imports {name}"


def test_kernels_need_torch_and_triton_alone():
    allowed = {"torch", "triton", "fastlg_kernels"}
    standard = __import__("sys").stdlib_module_names
    for path in sorted(KERNELS.rglob("*.py")):
        for name in imports(path):
            top = name.split(".")[0]
            assert top in allowed or top in standard, f"{path.name} imports {name}"


def test_no_package_shadows_the_kernels_library():
    assert not (ROOT / "kernels" / "__init__.py").exists()
