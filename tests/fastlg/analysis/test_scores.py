"""Confusion, accuracy per class and calibration, against loops by hand and, where it is there, scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastlg.analysis.scores import calibration, confusion, most_confused, per_class

CLASSES = 7  # of which 5 has no images and 6 is never answered


@pytest.fixture(scope="module")
def answers():
    """(labels, predicted, confidence): of 211 images, some confidences on the very edges of bins."""
    generator = np.random.default_rng(4)
    labels = generator.choice([0, 1, 2, 3, 4, 6], 211, p=[0.4, 0.2, 0.2, 0.1, 0.06, 0.04])
    predicted = np.where(generator.random(211) < 0.6, labels, generator.integers(0, 6, 211))
    predicted[predicted == 6] = 1
    confidence = generator.uniform(1 / CLASSES, 1, 211).astype(np.float32).astype(np.float64)
    confidence[:6] = [1.0, 0.2, 0.4, 0.6, 0.8, 0.0]
    return labels, predicted, confidence


def test_confusion_and_what_follows_from_it_are_those_of_a_loop(answers):
    labels, predicted, _ = answers
    counts = [[0] * CLASSES for _ in range(CLASSES)]
    for true, found in zip(labels.tolist(), predicted.tolist(), strict=True):
        counts[true][found] += 1
    matrix = confusion(labels, predicted, CLASSES)
    assert matrix.tolist() == counts
    own = per_class(matrix)
    for number in range(CLASSES):
        mine = [found for true, found in zip(labels, predicted, strict=True) if true == number]
        taken = [true for true, found in zip(labels, predicted, strict=True) if found == number]
        for share, group, size in (
            (own.accuracy, mine, own.images),
            (own.precision, taken, own.taken),
        ):
            assert size[number] == len(group)
            want = sum(value == number for value in group) / len(group) if group else math.nan
            assert share[number] == pytest.approx(want, nan_ok=True)
    assert np.isnan(own.accuracy[5]) and np.isnan(own.precision[6])
    pairs = {(a, b): counts[a][b] for a in range(CLASSES) for b in range(CLASSES) if a != b and counts[a][b]}
    found = most_confused(matrix, 5)
    assert [count for *_, count in found] == sorted(pairs.values(), reverse=True)[:5]
    assert all(pairs[true, other] == count for true, other, count in found)
    assert {own[:2] for own in most_confused(matrix, 999)} == pairs.keys(), "no pair that was never confused"


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_the_calibration_error_is_that_of_a_loop(answers, bins):
    labels, predicted, confidence = answers
    right, total = labels == predicted, 0.0
    found = calibration(confidence, right, bins)
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [i for i, value in enumerate(confidence) if low < value <= high or (value == low == 0)]
        assert found.images[number] == len(inside)
        if inside:
            mean = sum(confidence[i] for i in inside) / len(inside)
            share = sum(right[i] for i in inside) / len(inside)
            assert (found.confidence[number], found.accuracy[number]) == pytest.approx((mean, share))
            total += abs(mean - share) * len(inside)
        else:
            assert np.isnan([found.confidence[number], found.accuracy[number]]).all()
    assert found.error == pytest.approx(total / len(labels)) and found.images.sum() == len(labels)


def test_they_agree_with_scikit_learn(answers):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    from sklearn.calibration import calibration_curve

    labels, predicted, confidence = answers
    matrix = confusion(labels, predicted, CLASSES)
    assert (matrix == metrics.confusion_matrix(labels, predicted, labels=range(CLASSES))).all()
    precision, recall, _, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(CLASSES), zero_division=np.nan
    )
    own = per_class(matrix)
    np.testing.assert_allclose([own.accuracy, own.precision], [recall, precision])
    assert (own.images == support).all()
    share, mean = calibration_curve(labels == predicted, confidence, n_bins=15)
    found = calibration(confidence, labels == predicted)
    there = found.images > 0
    np.testing.assert_allclose([found.accuracy[there], found.confidence[there]], [share, mean])


def test_what_cannot_be_counted_is_refused_and_of_nothing_there_is_no_error():
    for arguments in (([0, 3], [0, 1], 3), ([0, -1], [0, 1], 3), ([0], [0, 1], 3)):
        with pytest.raises(ValueError):
            confusion(*map(np.asarray, arguments[:2]), arguments[2])
    for confidence, right in (([0.5], [True, False]), ([1.5], [True]), ([-0.1], [True]), ([math.nan], [True])):
        with pytest.raises(ValueError):
            calibration(np.array(confidence), np.array(right))
    assert confusion(np.zeros(0), np.zeros(0), 2).tolist() == [[0, 0], [0, 0]]
    assert math.isnan(calibration(np.zeros(0), np.zeros(0, dtype=bool)).error)
