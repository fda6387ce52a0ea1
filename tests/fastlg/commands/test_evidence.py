"""A verdict is given where it holds: the tests behind it against scipy's, the words by what the numbers are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastlg.commands.many.evidence import Evidence, bootstrap_interval, sign_flip_p, student_p, verdict, weigh


@pytest.mark.parametrize("images", [1, 5, 68, 1000, 10_000])
def test_of_two_runs_it_is_mcnemars_exact_test(images):
    draw = np.random.default_rng(images)
    for share in (0.7, 0.75, 0.9):
        first, second = draw.random(images) < 0.7, draw.random(images) < share
        wins, losses = int((second & ~first).sum()), int((first & ~second).sum())
        truth = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        found = sign_flip_p(second.astype(int) - first.astype(int))
        assert found == pytest.approx(truth, rel=1e-6, abs=1e-13)


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_over_several_seeds_it_is_the_exact_permutation_test_of_what_each_image_won(seeds):
    draw = np.random.default_rng(seeds)
    for shift in (0, 1):
        scores = draw.integers(-seeds, seeds + 1, 12).clip(-seeds, seeds - shift) + shift
        truth = stats.permutation_test((scores,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
        assert sign_flip_p(scores) == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10, 31])
def test_over_seeds_it_is_students_t_test(count):
    draw = np.random.default_rng(count)
    for shift in (0.0, 0.5, 3.0):
        values = draw.normal(shift, 1.0, count).tolist()
        assert student_p(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-9, abs=1e-12)
    assert student_p([1.5] * count) == 0.0 and student_p([0.0] * count) == 1.0


@pytest.mark.parametrize("images", [68, 2000])
def test_the_interval_is_the_percentile_bootstrap_over_images(images):
    scores = np.random.default_rng(images).integers(-2, 3, images)
    truth = stats.bootstrap((scores,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    step = 3 * scores.std() / np.sqrt(images) / np.sqrt(10_000) * 5  # of a 2.5 % quantile of 10,000 draws
    assert bootstrap_interval(scores) == pytest.approx(tuple(truth), abs=step)
    assert bootstrap_interval(scores) == bootstrap_interval(scores)


def test_differences_are_those_of_the_accuracies_by_seed():
    draw = np.random.default_rng(0)
    first, second = draw.random((3, 400)) < 0.6, draw.random((3, 400)) < 0.7
    found = weigh(first, second)
    wanted = [100 * (late.mean() - early.mean()) for early, late in zip(first, second, strict=True)]
    assert found.differences == pytest.approx(wanted) and found.images == 400
    assert found.mean == pytest.approx(np.mean(wanted)) and found.std == pytest.approx(np.std(wanted, ddof=1))
    assert found.low < found.mean < found.high
    alone = weigh(first[:1], second[:1])
    assert alone.std is None and alone.p_seeds is None and alone.mean == pytest.approx(wanted[0])


def test_the_chance_of_a_verdict_where_nothing_differs_is_at_most_its_level():
    draw, held = np.random.default_rng(7), 0
    for _ in range(400):
        hard = draw.random(200)  # images are right or wrong in common, as those of two students are
        first, second = (draw.random(200) < hard for _ in range(2))
        held += weigh(first[None], second[None]).holds
    assert held <= stats.binom.ppf(0.999, 400, 0.05)


def evidence(mean=2.1, std=0.4, p_images=0.001, p_seeds=0.01, images=68):
    differences = [mean] if std is None else [mean, mean + std, mean - std]
    return Evidence(differences, mean, std, mean - 1, mean + 1, p_images, p_seeds if std is not None else None, images)


@pytest.mark.parametrize(
    ("found", "holds", "words"),
    [
        (evidence(), True, "guidance: +2.1 ± 0.4 points of top-1 over 3 seeds (95 % interval +1.1 to +3.1 over the"),
        (evidence(mean=-2.1), True, "guidance: -2.1 ± 0.4 points of top-1 over 3 seeds"),
        (evidence(p_images=0.05), False, "guidance: no difference beyond the noise of 68 test images (+2.1 ± 0.4"),
        (evidence(p_images=0.3, p_seeds=0.2, images=1234), False, "the noise of 1,234 test images"),
        (evidence(p_seeds=0.05), False, "guidance: no difference beyond the noise of 3 seeds (+2.1 ± 0.4"),
        (evidence(std=None), True, "guidance: +2.1 points of top-1 with this seed"),
        (evidence(std=None, p_images=0.6), False, "no difference beyond the noise of 68 test images (+2.1 points"),
        (evidence(p_images=1e-9), True, "p = below 0.001 by 68 test images, 0.01 by seeds"),
    ],
)
def test_a_verdict_is_given_where_it_holds(found, holds, words):
    assert found.holds is holds and words in verdict(found, "guidance")
