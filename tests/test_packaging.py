"""fastlg's wheel holds the two packages and the configs; the kernels' holds fastlg_kernels and needs torch alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from patience import HANG_S

import fastlg

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"


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
    subprocess.run(command, check=True, capture_output=True, timeout=HANG_S)
    return next(out.glob("fastlg-*.whl"))


def kernel_sources() -> set[str]:
    return {str(path.relative_to(KERNELS / "torch-ext")) for path in (KERNELS / "torch-ext").rglob("*.py")}


def test_the_wheel_holds_exactly_two_packages_and_the_configs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fastlg", "fastlg_kernels"}
    shipped = {str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml")}
    assert shipped and {n.removeprefix("fastlg/configs/") for n in names if n.startswith("fastlg/configs/")} == shipped
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "fastlg").rglob("*.py")}
    assert sources <= set(names)
    assert kernel_sources() <= set(names)


def test_an_installed_wheel_answers_and_finds_configs_by_name(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import fastlg, fastlg_kernels\n"
        "from fastlg.config import load_config\n"
        "assert fastlg.__file__.startswith(sys.argv[1]) and fastlg_kernels.__file__.startswith(sys.argv[1])\n"
        "print(load_config('cifar100/deit_tiny').model.name, load_config('quickstart').run.name)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "site")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=HANG_S)
    assert result.stdout.split() == ["deit_tiny_patch16_224", "quickstart"], result.stderr


@pytest.fixture(scope="module")
def kernels_wheel(tmp_path_factory):
    """Built from the source distribution, which was built in a clone."""
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(KERNELS, clone / "kernels", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    (clone / "fastlg").mkdir()
    shutil.copy(ROOT / "fastlg" / "__init__.py", clone / "fastlg")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(clone / "dist"), str(clone / "kernels")]
    subprocess.run(command, check=True, capture_output=True, timeout=HANG_S, cwd=clone)
    return next((clone / "dist").glob("fastlg_kernels-*.whl"))


def test_the_kernels_wheel_holds_the_package_and_needs_torch_and_triton_alone(kernels_wheel):
    archive = zipfile.ZipFile(kernels_wheel)
    shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert shipped == kernel_sources()
    info = f"fastlg_kernels-{fastlg.__version__}.dist-info"
    metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
    assert metadata["Name"] == "fastlg-kernels" and metadata["Version"] == fastlg.__version__
    assert {need.split(">")[0] for need in metadata.get_all("Requires-Dist")} == {"torch", "triton"}
    assert b"Apache License" in archive.read(f"{info}/licenses/LICENSE")


def test_the_kernels_wheel_works_without_fastlg_and_what_fastlg_needs(kernels_wheel, tmp_path):
    zipfile.ZipFile(kernels_wheel).extractall(tmp_path / "site")
    blocked = ["fastlg", "timm", "torchvision", "pydantic", "typer", "rich", "yaml", "safetensors", "PIL"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked}))
sys.path.insert(0, sys.argv[1])
import fastlg_kernels, torch
import torch.nn.functional as F
assert fastlg_kernels.__file__.startswith(sys.argv[1]), fastlg_kernels.__file__
torch.manual_seed(0)
module = fastlg_kernels.GuidanceLoss([5], [3], grids=[(4, 6)])
tokens, maps = torch.randn(2, 25, 5, requires_grad=True), torch.randn(2, 3, 8, 7)
loss = module(tokens, maps)
ours = torch.autograd.grad(loss, [tokens, *module.parameters()])
layer, wide = module.double().projections[0], tokens.detach().double().requires_grad_()
student = F.conv2d(wide[:, 1:].mT.unflatten(2, (4, 6)), layer.weight[..., None, None], layer.bias)
resized = [F.interpolate(m, (8, 7), mode="bilinear", align_corners=False) for m in (student, maps.double())]
truth = F.mse_loss(*resized)
torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
for mine, theirs in zip(ours, torch.autograd.grad(truth, [wide, *module.parameters()])):
    torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-6)
print("exact")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "site")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=HANG_S)
    assert result.stdout.strip() == "exact", result.stderr


def test_the_kernels_library_imports_from_the_repository_root():
    pytest.importorskip("kernels", reason="Hugging Face's kernels package is not installed")
    result = subprocess.run(
        [sys.executable, "-c", "import kernels; print(kernels.get_kernel.__module__)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert result.stdout.startswith("kernels"), result.stderr


def test_help_imports_nothing_heavy():
    code = "import sys, fastlg.cli; print([m for m in ('torch', 'timm', 'numpy', 'pydantic') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=HANG_S)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
    helped = subprocess.run(
        [sys.executable, "-m", "fastlg", "--help"], capture_output=True, text=True, cwd=ROOT, timeout=HANG_S
    )
    assert helped.returncode == 0
    for command in ("train", "compare", "reproduce", "sweep", "eval", "export", "doctor"):
        assert command in helped.stdout
