"""Every example in kernels/README.md runs as pasted, with what its text says one has, and trains the projections."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from integration_cases import torchdistill_box, torchdistill_config

from fastlg.models.resnet_cifar import resnet56

KERNELS = Path(__file__).resolve().parents[3] / "kernels"
README = KERNELS / "README.md"
PARTS = {  # of a transformer block
    "Residual and layer norm", "Attention over few tokens", "The MLP's half of a block", "Any timm ViT", "AdamW",
}  # fmt: skip


def examples() -> dict[str, str]:
    found = re.findall(r"^### ([^\n]+)\n(.*?)(?=^##)", README.read_text(encoding="utf-8"), re.S | re.M)
    blocks = {title.strip(): re.findall(r"^```python\n(.*?)^```", text, re.S | re.M) for title, text in found}
    assert all(len(code) == 1 for code in blocks.values()), blocks
    return {title: code[0] for title, code in blocks.items()}


def paste(title: str, **scope) -> dict:
    exec(compile(examples()[title], f"{README}: {title}", "exec"), scope)
    return scope


@pytest.fixture(scope="module")
def models() -> dict:
    torch.manual_seed(0)
    teacher = resnet56(5).eval().requires_grad_(False)
    return {"student": timm.create_model("deit_tiny_patch16_224", num_classes=5), "teacher": teacher}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 4])


def assert_moved(before, after) -> None:
    before, after = list(before), list(after)
    assert len(before) == len(after) == 6  # weight and bias of three projections
    assert all(a.isfinite().all() and not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_there_are_these_examples_of_at_most_ten_lines():
    assert set(examples()) == {"Plain PyTorch", "timm", "torchdistill", "Kernel Hub", *PARTS}
    for title, code in examples().items():
        assert len([line for line in code.splitlines() if line.strip()]) <= 10, title


@pytest.mark.parametrize("title", ["Plain PyTorch", "timm"])
def test_training_loop_trains_the_projections(models, title):
    moved = []
    for loader in ([], [batch()]):  # the same seed gives the same projections, before and after one step
        torch.manual_seed(1)
        scope = paste(title, loader=loader, **models)
        guidance = scope["guidance"] if title == "Plain PyTorch" else scope["task"].trainable_module.guidance
        moved.append(guidance.parameters())
    assert_moved(*moved)


def test_torchdistill_configuration_trains_the_projections(models):
    pytest.importorskip("torchdistill", reason="torchdistill is not installed")
    config = paste("torchdistill", config=torchdistill_config())["config"]
    box = torchdistill_box(config, models["teacher"], models["student"], *batch())
    projections = box.student_model.guidance.layers
    before = [parameter.clone() for parameter in projections.parameters()]
    for images, targets, _ in box.train_data_loader:
        box.post_forward_process(box.forward_process(images, targets, None))
    assert_moved(before, projections.parameters())


def test_kernel_hub_example_computes_the_loss(tmp_path, monkeypatch):
    pytest.importorskip("kernels", reason="Hugging Face's kernels package is not installed")
    spec = importlib.util.spec_from_file_location("hub_build", KERNELS / "hub_build.py")
    hub_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hub_build)
    hub_build.build(tmp_path / "kernels" / "build")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    dims, sizes = (16, 32, 64), (32, 16, 8)
    tokens = [torch.randn(2, 197, 192, requires_grad=True) for _ in dims]
    maps = [torch.randn(2, d, s, s) for d, s in zip(dims, sizes, strict=True)]
    weights, biases = [torch.randn(d, 192) / 14 for d in dims], [torch.randn(d) for d in dims]
    loss = paste("Kernel Hub", tokens=tokens, maps=maps, weights=weights, biases=biases)["loss"]
    expected = 0.0
    for token, target, weight, bias in zip(tokens, maps, weights, biases, strict=True):
        student = F.linear(token.detach()[:, 1:].double(), weight.double(), bias.double()).mT.unflatten(2, (14, 14))
        size = max(14, target.shape[2])
        pair = [F.interpolate(m, (size, size), mode="bilinear") for m in (student, target.double())]
        expected += F.mse_loss(*pair).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert all(token.grad[:, 1:].abs().sum() > 0 for token in tokens)


def test_residual_and_layer_norm_example_adds_and_normalises():
    torch.manual_seed(0)
    x, branch, norm = torch.randn(6, 197, 192), torch.randn(6, 197, 192), torch.nn.LayerNorm(192, eps=1e-6)
    leaves = x.requires_grad_(), branch.requires_grad_()
    scope = paste("Residual and layer norm", x=x, branch=branch, norm=norm)
    expected = x.detach() + scope["keep"].view(-1, 1, 1) * branch.detach()
    torch.testing.assert_close(scope["x"], expected)
    torch.testing.assert_close(scope["normed"], norm(expected), rtol=1e-4, atol=1e-5)
    assert all(leaf.grad.isfinite().all() and leaf.grad.any() for leaf in (*leaves, norm.weight, norm.bias))


def test_attention_example_attends():
    torch.manual_seed(0)
    layer, normed = torch.nn.Linear(192, 3 * 192), torch.randn(2, 197, 192)
    scope = paste("Attention over few tokens", layer=layer, normed=normed)
    q, k, v = layer(normed).view(2, 197, 3, 3, 64).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 197, 192)
    torch.testing.assert_close(scope["out"], expected, rtol=1e-4, atol=1e-5)
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.any()


def test_mlp_example_joins_normalises_and_adds():
    torch.manual_seed(0)
    x, branch = torch.randn(2, 9, 192), torch.randn(2, 9, 192)
    norm, mlp = torch.nn.LayerNorm(192, eps=1e-6), timm.layers.Mlp(192, 768)
    scope = paste("The MLP's half of a block", x=x, branch=branch, norm=norm, mlp=mlp)
    torch.testing.assert_close(scope["out"], x + branch + mlp(norm(x + branch)), rtol=2e-2, atol=2e-2)
    assert all(parameter.grad.any() for parameter in (*norm.parameters(), *mlp.parameters()))


def test_adamw_example_takes_a_step():
    model, images = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)), torch.randn(2, 3)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scope = paste("AdamW", model=model, images=images)
    assert [group["weight_decay"] for group in scope["optimizer"].param_groups] == [0.05, 0.0]
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_two_lines_fuse_a_timm_vit():
    student = timm.create_model("deit_tiny_patch16_224", num_classes=5, depth=2).eval()
    images = batch()[0]
    expected = student(images)
    scope = paste("Any timm ViT", student=student, images=images)
    torch.testing.assert_close(scope["loss"], expected.square().mean(), rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is not None for parameter in student.parameters())
