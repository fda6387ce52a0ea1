"""AdamW in one launch is torch's AdamW to a run: the same weights, either's checkpoint, and torch's where it strays."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from fastlg.config import OptimConfig
from fastlg.engine.precision import build_optimizer, set_rates
from fastlg.engine.protocol import group_keys, load_optimizer_state, optimizer_state
from fastlg.engine.update import one_launch
from fastlg.models.param_groups import param_groups
from fastlg_kernels import AdamW

CPU, ADAMW = torch.device("cpu"), OptimConfig(lr=1e-2)


def trained(*kinds: bool, steps: int = 4) -> torch.Tensor:
    """Weights after so many clipped steps of two passes each, by one optimizer after the other, each going on from the
    checkpoint of the last; the projection has no gradient after the first step."""
    torch.manual_seed(0)
    unit = nn.ModuleDict({"body": nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5)), "projection": nn.Linear(5, 2)})
    generator, state = torch.Generator().manual_seed(1), None
    for number, in_one_launch in enumerate(kinds):
        optimizer = build_optimizer(param_groups(unit, 0.3), ADAMW, in_one_launch=in_one_launch)
        assert isinstance(optimizer, AdamW) is in_one_launch
        known = group_keys(optimizer)
        if state is not None:
            load_optimizer_state(unit, optimizer, torch.load(io.BytesIO(state), weights_only=True))
        for step in range(steps):
            set_rates(optimizer, 1e-2 / (1 + step + steps * number))
            for _ in range(2):
                out = unit["body"](torch.randn(9, 6, generator=generator))
                (unit["projection"](out) if step + number == 0 else out).pow(3).sum().backward()
            nn.utils.clip_grad_norm_(unit.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        written = io.BytesIO()
        torch.save(optimizer_state(unit, optimizer, known), written)
        state = written.getvalue()
    return torch.cat([value.detach().flatten() for value in unit.parameters()])


def test_a_run_may_change_between_both_at_any_checkpoint():
    truth = trained(False, False)
    for kinds in ((True, True), (True, False), (False, True)):
        torch.testing.assert_close(trained(*kinds), truth, rtol=0, atol=2e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(trained(False), truth, rtol=0, atol=2e-6)
    assert torch.equal(trained(True, True, steps=2), trained(True, steps=4)), "stopping changes nothing"


@pytest.mark.parametrize(
    ("name", "dtype", "kind", "expected"),
    [
        ("adamw", torch.bfloat16, "plain", True),
        ("adamw", torch.float32, "plain", True),
        ("adamw", torch.float16, "plain", False),
        ("adamw", torch.float32, "deepspeed", False),
        ("sgd", torch.float32, "plain", False),
        ("timm:adamw", torch.float32, "plain", False),
    ],
)
def test_it_is_taken_for_adamw_of_the_plain_engine(name, dtype, kind, expected):
    assert one_launch.takes_one_launch(OptimConfig(name=name), CPU, dtype, kind) is expected


def test_a_device_that_strays_or_fails_is_told_in_one_line(monkeypatch, capsys):
    stray = one_launch.stray
    assert stray(CPU) == ""
    monkeypatch.setattr(one_launch, "AdamW", torch.optim.Adam)
    assert "strays by" in stray(CPU)

    def failing(*_, **__):
        raise RuntimeError("no such kernel\nat all")

    monkeypatch.setattr(one_launch, "AdamW", failing)
    monkeypatch.setattr(one_launch, "stray", lambda _: stray(CPU))
    assert not one_launch.takes_one_launch(ADAMW, torch.device("cuda"), torch.float32, "plain")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("fuse     AdamW is torch's: a launch fails here: no such kernel")
