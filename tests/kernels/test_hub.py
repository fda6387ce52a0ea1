"""Copies of fastlg_kernels: Kernel Hub builds and vendored folders live beside the installed package, and agree."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from guidance_truth import draw, truth

import fastlg_kernels

kernels = pytest.importorskip("kernels")
KERNELS = Path(__file__).resolve().parents[2] / "kernels"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder as a Hub repository is laid out: build/torch-cpu and build/torch-cuda."""
    spec = importlib.util.spec_from_file_location("hub_build", KERNELS / "hub_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("hub")
    assert {path.name for path in module.build(folder / "build")} == {"torch-cpu", "torch-cuda"}
    return folder


def check_same_numbers(kernel) -> None:
    inputs = draw(2, [((4, 6), 5, 3, (8, 7)), ((6, 6), 4, 2, (3, 3))], torch.float64, prefix=1)
    results = []
    for package in (fastlg_kernels, kernel):
        loss = package.guidance_loss(*inputs[:4], grids=inputs.grids)
        results.append([loss, *torch.autograd.grad(loss, inputs.leaves())])
    assert results[0][0].item() == pytest.approx(truth(inputs)[0], rel=1e-12)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_build_toml_is_what_the_kernel_builder_reads():
    from kernels._rust import Build

    assert {str(backend).lower() for backend in Build.open(KERNELS).general.backends} == {"cpu", "cuda"}


def test_variants_load_from_a_folder_beside_the_installed_package(built):
    namespaces = {fastlg_kernels._ops.NAMESPACE}
    for variant in ("torch-cpu", "torch-cuda"):
        kernel = kernels.get_local_kernel(built / "build" / variant)
        metadata = json.loads((built / "build" / variant / "metadata.json").read_text())
        own = sys.modules[f"{metadata['id']}._ops"].NAMESPACE
        assert kernel is not fastlg_kernels and kernel.__name__ == metadata["id"] == own
        assert hasattr(getattr(torch.ops, metadata["id"]), "guidance_forward_v2")
        namespaces.add(metadata["id"])
        check_same_numbers(kernel)
    assert len(namespaces) == 3


def test_one_build_loads_from_two_folders(built, tmp_path):
    shutil.copytree(built / "build", tmp_path / "build")
    for folder in (built, tmp_path, built):
        kernel = kernels.get_local_kernel(folder / "build" / "torch-cpu")
        assert issubclass(kernel.layers.LinearGuidance, torch.nn.Module)
        check_same_numbers(kernel)


def test_the_variant_of_this_machine_is_found(built):
    kernel = kernels.get_local_kernel(built, backend="cpu")
    assert "_cpu_" in kernel.__name__


def test_get_kernel_takes_a_local_build_offline(built, monkeypatch):
    monkeypatch.setenv("LOCAL_KERNELS", f"fastlg/fastlg-kernels={built}")
    from kernels import load

    load._parse_local_kernel_overrides.cache_clear()
    kernel = kernels.get_kernel("fastlg/fastlg-kernels", version=1, backend="cpu", trust_remote_code=True)
    assert kernel.__name__ != "fastlg_kernels"
    check_same_numbers(kernel)


def test_kernelize_puts_the_layer_into_a_model(built):
    @kernels.use_kernel_forward_from_hub("LinearGuidance")
    class PlainGuidance(torch.nn.Module):
        """Somebody's own guidance loss, with the long formulation."""

        def __init__(self):
            super().__init__()
            self.projections = torch.nn.ModuleList([torch.nn.Linear(5, 3)])
            self.grids, self.reduction = [(4, 6)], "mean"

        def forward(self, students, teachers):
            maps = self.projections[0](students[0][:, 1:]).mT.unflatten(2, self.grids[0])
            return F.mse_loss(F.interpolate(maps, (8, 7), mode="bilinear"), teachers[0])

    model = torch.nn.Sequential(PlainGuidance())
    inputs = draw(2, [((4, 6), 5, 3, (8, 7))], prefix=1)
    teachers = [F.interpolate(inputs.teachers[0], (8, 7), mode="bilinear")]
    slow = model[0](inputs.students, teachers)
    repository = kernels.LocalLayerRepository(built / "build" / "torch-cpu", layer_name="LinearGuidance")
    mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
    with kernels.use_kernel_mapping({"LinearGuidance": {"cpu": repository}}, inherit_mapping=False):
        fast_model = kernels.kernelize(model, mode=mode, device="cpu", use_fallback=False)
    loss = fast_model[0](inputs.students, teachers)
    loss.backward()
    torch.testing.assert_close(loss, slow)
    assert "guidance_forward" in str(loss.grad_fn) and fast_model[0].projections[0].weight.grad.abs().sum() > 0


def test_a_copied_variant_needs_nothing_of_this_project(built, tmp_path):
    code = (
        "import sys, torch, kernels\n"
        f"kernel = kernels.get_local_kernel(__import__('pathlib').Path({str(built / 'build' / 'torch-cuda')!r}))\n"
        "tokens = torch.randn(2, 16, 5, requires_grad=True)\n"
        "loss = kernel.guidance_loss(tokens, torch.randn(2, 3, 8, 8), torch.randn(3, 5), None)\n"
        "loss.backward()\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('fastlg', 'fastlg_kernels', 'timm')]\n"
        "print(tokens.grad.isfinite().all().item())\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "True", run.stdout + run.stderr


def test_a_folder_copied_into_another_package_lives_beside_the_installed_one(tmp_path, monkeypatch):
    folder = tmp_path / "somebodys_library" / "kern"
    shutil.copytree(KERNELS / "torch-ext" / "fastlg_kernels", folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(tmp_path)
    inputs = draw(2, [((4, 6), 5, 3, (8, 7))], torch.float64, prefix=1)
    before = fastlg_kernels.guidance_loss(*inputs[:4], grids=inputs.grids)
    own = fastlg_kernels.guidance.op.guidance_forward._opoverload
    copy = importlib.import_module("somebodys_library.kern")
    assert torch.ops.fastlg_kernels.guidance_forward_v2.default is own
    assert copy._ops.NAMESPACE == "somebodys_library_kern" and hasattr(copy._ops.ops, "guidance_backward")
    expected = truth(inputs)
    check_gradients(before, inputs, expected)  # a graph of the installed operators, made before the copy was there
    for package in (fastlg_kernels, copy):
        compiled = torch.compile(package.guidance_loss, fullgraph=True, backend="aot_eager")
        check_gradients(package.guidance_loss(*inputs[:4], grids=inputs.grids), inputs, expected)
        check_gradients(compiled(*inputs[:4], grids=inputs.grids), inputs, expected)
    arguments = [*map(list, inputs[:4]), [4, 6], False, True, True, "torch", False]
    checks = torch.library.opcheck(copy.guidance.op.guidance_forward, arguments)
    assert set(checks.values()) == {"SUCCESS"}


def check_gradients(loss: torch.Tensor, inputs, expected) -> None:
    assert loss.item() == pytest.approx(expected[0], rel=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs.leaves()), expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_sources_import_each_other_relatively_only():
    for path in (KERNELS / "torch-ext" / "fastlg_kernels").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]) and len(words) > 1:
                assert words[1].split(".")[0] not in ("fastlg", "fastlg_kernels", "timm"), f"{path.name}: {line}"
