"""The running mean of weights is what its formula says, is what is tested and exported, and goes through a resume."""

from __future__ import annotations

import copy

import pytest
import torch
from reach import ALONE, BARE, config_of, parts_of
from torch import nn

from fastlg.engine.average import Average
from fastlg.errors import UserError
from fastlg.run.checkpoint import load_checkpoint, save_checkpoint
from fastlg.run.evaluate import evaluate
from fastlg.run.report import read_metrics
from fastlg.run.trained import load_trained
from fastlg.train import train

TINY = (*ALONE, "model.args.depth=1", "model.blocks=[0]", "optim.ema=0.9", "model.init=timm")


def mean_of(values: list[torch.Tensor], decay: float) -> torch.Tensor:
    """In float64, of the first value and those after each update."""
    mean = values[0].double()
    for t, value in enumerate(values[1:], start=1):
        rate = max(1 - decay, 9 / (10 + t))
        mean = (1 - rate) * mean + rate * value.double()
    return mean


@pytest.mark.parametrize("decay", [0.2, 0.9, 0.999])
def test_the_mean_of_weights_and_statistics_is_that_of_the_formula(decay):
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    average, seen = Average(student, decay), []
    for _ in range(100):
        seen.append({name: value.clone() for name, value in student.state_dict().items()})
        student(torch.randn(2, 3, 5, 5) * 3)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
    seen.append(student.state_dict())
    for name, value in average.weights.items():
        history = [each[name] for each in seen]
        if name.endswith("num_batches_tracked"):
            assert value == 100
        else:
            torch.testing.assert_close(value.double(), mean_of(history, decay), rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_mean_is_evaluated_and_training_goes_on_with_the_weights(project, precision):
    parts = parts_of(*TINY, f"engine.precision={precision}")
    plain = parts_of(*TINY, f"engine.precision={precision}", "optim.ema=0")
    history = []
    for step, batch in enumerate(parts.train_loader.epoch(0)):
        history.append(copy.deepcopy(parts.unit.student.state_dict()))
        for own in (parts, plain):
            own.engine.set_learning_rate(0.02)
            own.engine.step(own.views(batch, 0), batch, len(batch.labels))
        if step == 1:
            evaluate(parts)
    history.append(parts.unit.student.state_dict())
    for name, value in plain.unit.state_dict().items():
        assert torch.equal(parts.unit.state_dict()[name], value), f"{name}: averaging changes no update"
    of_weights, found = evaluate(plain), evaluate(parts)
    by_hand = {name: mean_of([each[name] for each in history], 0.9).float() for name in history[0]}
    plain.unit.student.load_state_dict(by_hand)
    wanted = evaluate(plain)
    assert evaluate(parts, latest=True) == of_weights, "the weights themselves, beside their mean"
    tolerance = 1e-5 if precision == "fp32" else 3e-3
    assert found.loss == pytest.approx(wanted.loss, rel=tolerance) and abs(found.loss / of_weights.loss - 1) > 1e-2


def test_a_run_is_tested_and_read_back_as_its_mean(project):
    own = (*TINY, "run.name=whole", "optim.epochs=2", "optim.lr=0.01", "optim.warmup_epochs=0")
    summary = train(config_of(*own))
    _, model, _ = load_trained(project / "runs" / "whole")
    state = load_checkpoint(project / "runs" / "whole" / "checkpoints" / "last.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["engine"]["average"]["weights"][name])
    assert not torch.equal(model.bare.head.weight, state["unit"]["student.bare.head.weight"])
    parts = parts_of(*own, "optim.ema=0")
    parts.unit.load_state_dict(state["unit"])
    row = [row for row in read_metrics(project / "runs" / "whole") if row["kind"] == "eval"][-1]
    assert evaluate(parts).top1 == row["top1_latest_weights"] == summary["top1_latest_weights"]
    parts.unit.student.load_state_dict(model.state_dict())
    assert evaluate(parts).top1 == pytest.approx(summary["top1_last"]) == row["top1"]
    save_checkpoint(project / "runs" / "whole" / "checkpoints", {**state, "engine": {}})
    with pytest.raises(UserError, match="holds no averaged weights"):
        load_trained(project / "runs" / "whole")


@pytest.mark.parametrize("own", ["optim.ema=0.9", "optim.sam_rho=0.05"])
def test_what_the_plain_engine_alone_has_is_refused_beside_deepspeed(own, project):
    name, _, value = own.partition("=")
    for engine in ("engine.kind=deepspeed", "engine.zero_stage=1"):
        with pytest.raises(UserError, match=f"{name} is {value}.*set {name}=0 or engine.kind=plain"):
            config_of(*BARE, own, engine)
