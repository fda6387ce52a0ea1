"""Meters count every sample once, never sync while updating, and stop a run whose loss is not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastlg.batch import StepOutput
from fastlg.errors import RunError
from fastlg.run.metrics import AccuracyMeter, Meter

CPU = torch.device("cpu")


def output(loss: float, guidance: float, correct: int, count: int) -> StepOutput:
    scalar = torch.tensor
    losses = (scalar(loss + guidance), scalar(loss), scalar(guidance), scalar(0.0))
    return StepOutput(*losses, scalar(correct), scalar(count))


def test_means_weigh_every_sample_the_same_whatever_its_batch():
    meter = Meter(CPU)
    meter.update(output(1.0, 0.5, 3, 10), 0)
    meter.update(output(4.0, 2.0, 5, 5), 1)
    since, total = meter.read()
    assert since == total
    assert total.loss_cls == pytest.approx((1.0 * 10 + 4.0 * 5) / 15, rel=1e-6)
    assert total.loss_guidance == pytest.approx((0.5 * 10 + 2.0 * 5) / 15, rel=1e-6)
    assert total.top1 == pytest.approx(100 * 8 / 15)
    meter.update(output(2.0, 0.0, 1, 1), 2)
    since, total = meter.read()
    assert (since.loss, since.count, total.count) == (pytest.approx(2.0), 1, 16)


def test_a_resumed_meter_goes_on_where_the_saved_one_stood():
    outputs = [output(0.1 * k, 0.3 * k, k % 4, 4) for k in range(1, 8)]
    whole, first, second = Meter(CPU), Meter(CPU), Meter(CPU)
    for step, out in enumerate(outputs):
        whole.update(out, step)
        (first if step < 4 else second).update(out, step) if step < 4 else None
        if step == 3:
            second.load_state_dict(first.state_dict())
        if step > 3:
            second.update(out, step)
    assert second.read() == whole.read()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_the_first_non_finite_loss_is_named_with_step_and_parts(bad):
    meter = Meter(CPU)
    meter.update(output(1.0, 0.5, 1, 2), 6)
    meter.update(output(0.25, bad, 1, 2), 7)
    meter.update(output(float("nan"), 1.0, 1, 2), 8)
    for call in (meter.check, meter.read):
        with pytest.raises(RunError, match=r"not finite at step 7.*classification 0\.25.*guidance -?(nan|inf)"):
            call()


def test_accuracy_equals_a_count_by_hand_over_ragged_batches():
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.normal(size=(37, 11)).astype(np.float32))
    labels = torch.from_numpy(generator.integers(0, 11, 37))
    meter = AccuracyMeter(CPU)
    for start, stop in ((0, 16), (16, 32), (32, 37)):
        meter.update(logits[start:stop], labels[start:stop])
    result = meter.read()
    order = np.argsort(-logits.numpy(), axis=1)
    expected_top1 = np.mean(order[:, 0] == labels.numpy()) * 100
    expected_top5 = np.mean([label in row[:5] for row, label in zip(order, labels.numpy(), strict=True)]) * 100
    log_p = logits.double().log_softmax(1)[torch.arange(37), labels]
    assert (result.top1, result.top5, result.count) == (pytest.approx(expected_top1), pytest.approx(expected_top5), 37)
    assert result.loss == pytest.approx(-log_p.mean().item(), rel=1e-6)


def test_top5_of_three_classes_is_always_right():
    meter = AccuracyMeter(CPU)
    meter.update(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert meter.read().top5 == 100.0
