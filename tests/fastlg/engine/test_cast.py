"""In half precision a step rounds all weights in one copy, and learns to the bit what autocast learns."""

from __future__ import annotations

import pytest
import torch
from dispatched import Dispatched
from reach import BARE, first_batch
from torch import nn

from fastlg.engine.cast import of_products, rounded

STEP = (*BARE, "engine.precision=bf16", "optim.warmup_epochs=0")
FORMS = {
    "one pass": (),
    "two passes": ("engine.micro_batch_size=8",),
    "sharpness": ("optim.sam_rho=0.5",),
    "blocks computed again": ("engine.checkpointing=true", "model.drop_path=0.3"),
}


def stepped(*overrides: str, is_rounded: bool) -> tuple[dict, Dispatched]:
    """(the unit's weights after two steps, what the second dispatched)."""
    parts, batch, views = first_batch(*STEP, *overrides)
    if not is_rounded:
        parts.engine.rounded = []
    for _ in range(2):
        torch.manual_seed(4)
        with Dispatched() as seen:
            parts.engine.step(views, batch, 16)
    return parts.unit.state_dict(), seen


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_rounded_at_once_and_learn_the_same_bits(project, form):
    (found, once), (truth, one_by_one) = (stepped(*FORMS[form], is_rounded=own) for own in (True, False))
    assert all(torch.equal(truth[name], own) for name, own in found.items()) and found.keys() == truth.keys()
    shapes = [tuple(value.shape) for name, value in found.items() if name.endswith(("qkv.weight", "fc1.weight"))]
    assert len(shapes) == 6
    passes = 2 if form in ("two passes", "sharpness") else 1
    assert once.counts["_foreach_copy_"] == 2 * passes and not set(shapes) & set(once.cast)
    assert sum(one_by_one.cast.count(shape) for shape in set(shapes)) >= 2 * passes * len(shapes), "and back"


def test_what_is_more_than_a_product_or_shared_stays_whole():
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * self.weight.mean()

    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), Scaled(2, 2), nn.Linear(2, 2), nn.Conv2d(3, 2, 1, bias=False))
    net.append(nn.Linear(2, 2))
    net[5].weight = net[3].weight
    before = dict(net.named_parameters())
    names = {id(value): name for name, value in before.items()}
    found = {names[id(own[name])] for own, name in of_products(net)}
    assert found == {"0.weight", "0.bias", "3.bias", "4.weight", "5.bias"}
    with pytest.raises(RuntimeError, match="on the way"), rounded(of_products(net), torch.bfloat16):
        assert net[0].weight.dtype == net[4].weight.dtype == torch.bfloat16
        assert net[1].weight.dtype == net[3].weight.dtype == torch.float32
        raise RuntimeError("on the way")
    assert all(value is before[name] for name, value in net.named_parameters()), "whatever happened inside"


@pytest.mark.parametrize("hooked", [nn.utils.spectral_norm, nn.utils.weight_norm])
def test_weights_that_hooks_make_and_weights_that_rest_are_left_to_autocast(hooked):
    net = nn.ModuleList([hooked(nn.Linear(4, 3)), nn.Linear(3, 2)])
    net[1].weight.requires_grad_(False)
    assert [name for _, name in of_products(net)] == ["bias"]
    with torch.autocast("cpu", torch.bfloat16), rounded(of_products(net), torch.bfloat16):
        net[1](net[0](torch.ones(1, 4))).float().sum().backward()
    assert net[1].weight.grad is None and net[1].bias.grad.dtype == torch.float32


def test_a_weight_that_nothing_read_has_no_gradient():
    net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with rounded(of_products(net), torch.bfloat16):
        net[0](torch.ones(1, 2, dtype=torch.bfloat16)).float().sum().backward()
    assert net[0].weight.grad.dtype == torch.float32 and torch.equal(net[0].weight.grad, torch.ones(2, 2))
    assert net[1].weight.grad is None


def test_float32_runs_round_nothing(project):
    parts, batch, views = first_batch(*BARE)
    with Dispatched() as seen:
        parts.engine.step(views, batch, 16)
    assert parts.engine.rounded == [] and seen.counts["_foreach_copy_"] == 0
