"""The wheel holds the two packages and the configs, and nothing that could shadow somebody else's package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source") / "fastlg"
    ignore = shutil.ignore_patterns(
        ".git", ".venv", ".whl", "build", "runs", "*.egg-info", "__pycache__", ".hypothesis"
    )
    shutil.copytree(ROOT, source, ignore=ignore)
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    return next(out.glob("fastlg-*.whl"))


def test_the_wheel_holds_exactly_two_packages_and_the_configs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fastlg", "fastlg_kernels"}
    shipped = {str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml")}
    assert shipped and {n.removeprefix("fastlg/configs/") for n in names if n.startswith("fastlg/configs/")} == shipped
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "fastlg").rglob("*.py")}
    assert sources <= set(names)
    kernels = ROOT / "kernels" / "torch-ext" / "fastlg_kernels"
    assert {f"fastlg_kernels/{p.name}" for p in kernels.iterdir() if p.suffix in (".py", ".json")} <= set(names)


def test_an_installed_wheel_answers_and_finds_configs_by_name(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import fastlg, fastlg_kernels\n"
        "from fastlg.config import load_config\n"
        "assert fastlg.__file__.startswith(sys.argv[1]) and fastlg_kernels.__file__.startswith(sys.argv[1])\n"
        "print(load_config('cifar100/deit_tiny').model.name, load_config('quickstart').run.name)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "site")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.stdout.split() == ["deit_tiny_patch16_224", "quickstart"], result.stderr


def test_the_kernels_library_imports_from_the_repository_root():
    pytest.importorskip("kernels", reason="Hugging Face's kernels package is not installed")
    result = subprocess.run(
        [sys.executable, "-c", "import kernels; print(kernels.get_kernel.__module__)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.startswith("kernels"), result.stderr


def test_help_imports_nothing_heavy():
    code = "import sys, fastlg.cli; print([m for m in ('torch', 'timm', 'numpy', 'pydantic') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
    helped = subprocess.run(
        [sys.executable, "-m", "fastlg", "--help"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert helped.returncode == 0
    for command in ("train", "compare", "eval", "export", "doctor"):
        assert command in helped.stdout
