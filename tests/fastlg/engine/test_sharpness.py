"""Sharpness-aware updates are those of a loop by hand in float64, with every optimizer, and of the same images."""

from __future__ import annotations

import copy

import pytest
import torch
from reach import BARE, config_of, first_batch
from torch import Tensor

from fastlg.engine.precision import build_optimizer
from fastlg.engine.switches import decide
from fastlg.engine.update.timm_optimizers import keeps_on_host
from fastlg.errors import UserError

RHO, LR = 0.7, 0.02
COMMON = (*BARE, "model.init=timm", "model.drop_path=0.5", f"optim.sam_rho={RHO}")
DHVT = "model.args={embed_dim: 24, depth: 3, num_heads: 2}"
CASES = {
    "unguided, sgd": ("teacher=null", "optim.name=sgd", "optim.momentum=0"),
    "guided, adamw, in parts": ("optim.name=adamw", "engine.micro_batch_size=4"),
    "guided, muon, clipped": ("optim.name=muon", "optim.clip_norm=0.01"),
    "guided, norms with statistics": ("optim.name=sgd", "model.name=dhvt_tiny_cifar_patch4", DHVT, "model.blocks=auto"),
}


def doubled(value):
    """In float64, also inside a Guide or tuple."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        own = [doubled(part) for part in value]
        return type(value)(*own) if hasattr(value, "_fields") else tuple(own)
    return value


def gradients_of(unit, whole, parts: int) -> list[Tensor]:
    """Of the mean loss over the batch, its parts one after the other, from the same random numbers each time."""
    torch.manual_seed(5)
    size, found = len(whole[0]) // parts, 0
    for part in range(parts):
        rows = slice(part * size, (part + 1) * size)
        loss = unit(*rows_of(whole, rows)).loss / parts
        own = torch.autograd.grad(loss, list(unit.parameters()), allow_unused=True)
        found = [a if b is None else a + b for a, b in zip(found, own, strict=True)] if part else list(own)
    return found


def rows_of(value, rows: slice):
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, tuple):
        own = [rows_of(part, rows) for part in value]
        return type(value)(*own) if hasattr(value, "_fields") else tuple(own)
    return value


@pytest.mark.parametrize("case", CASES)
def test_an_update_is_that_of_a_loop_by_hand(case, project, monkeypatch):
    parts, batch, views = first_batch(*COMMON, *CASES[case])
    guide = doubled(parts.engine.guide(views, batch))
    views = doubled(views)
    monkeypatch.setattr(parts.engine, "guide", lambda *_: guide)
    parts.unit.double()
    parts.engine.set_learning_rate(LR)
    unit = copy.deepcopy(parts.unit)
    groups = [{**group, "params": list(group["params"])} for group in parts.engine.optimizer.param_groups]
    place = {id(weight): name for name, weight in parts.unit.named_parameters()}
    twins = dict(unit.named_parameters())
    for group in groups:
        group["params"] = [twins[place[id(weight)]] for weight in group["params"]]
    optimizer = build_optimizer(groups, parts.config.optim)
    optimizer.dtype = parts.engine.optimizer.dtype = torch.float32  # of Muon's own iteration

    count = 4 if "parts" in case else 1
    whole = (views.student, views.targets, guide, (views.pairs, views.pair_weight))
    weights = list(unit.parameters())
    first = gradients_of(unit, whole, count)
    statistics = {name: value.clone() for name, value in unit.named_buffers()}
    length = torch.sqrt(sum(own.square().sum() for own in first if own is not None))
    with torch.no_grad():
        before = [weight.clone() for weight in weights]
        for weight, own in zip(weights, first, strict=True):
            weight.add_(own * (RHO / length)) if own is not None else None
    second = gradients_of(unit, whole, count)
    length = torch.sqrt(sum(own.square().sum() for own in second if own is not None))
    factor = min(1.0, 0.01 / (length.item() + 1e-6)) if "clipped" in case else 1.0
    with torch.no_grad():
        for weight, old, own in zip(weights, before, second, strict=True):
            weight.copy_(old)
            weight.grad = None if own is None else own * factor
    optimizer.step()

    torch.manual_seed(5)
    parts.engine.step(views, batch, 16)
    tolerance = 1e-6 if "muon" in case else 1e-10  # Muon's own iteration is in float32
    for name, weight in parts.unit.named_parameters():
        torch.testing.assert_close(weight, twins[name], rtol=tolerance, atol=tolerance, msg=name)
        assert weight.grad is None
    for name, value in parts.unit.named_buffers():
        torch.testing.assert_close(value, statistics[name], rtol=1e-10, atol=1e-10, msg=f"{name}: of the first pass")
    assert any((weight - old).abs().max() > 1e-5 for weight, old in zip(weights, before, strict=True))


def test_half_precision_climbs_as_far(project):
    losses = {}
    for precision in ("fp32", "bf16"):
        parts, batch, views = first_batch(*BARE, "optim.sam_rho=0.5", f"engine.precision={precision}")
        parts.engine.set_learning_rate(1e-3)
        losses[precision] = [parts.engine.step(views, batch, 16).loss.item() for _ in range(3)]
        assert all(weight.dtype == torch.float32 for weight in parts.unit.parameters())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)


def test_no_graph_is_captured_and_one_that_is_asked_for_is_refused(project):
    common = {"kind": "plain", "world_size": 1, "accumulation": 1, "norm_stats": None}
    own = (torch.device("cuda"), torch.bfloat16)
    why = keeps_on_host(config_of(*BARE, "optim.sam_rho=0.1").optim)
    chosen = decide(config_of(*BARE).engine, *own, **common, optimizer=why)
    assert not chosen.graph and "random numbers" in chosen.why_off["graph"]
    assert decide(config_of(*BARE).engine, *own, **common).graph
    with pytest.raises(UserError, match="engine.graph is true, but sharpness-aware updates"):
        decide(config_of(*BARE, "engine.graph=true").engine, *own, **common, optimizer=why)
