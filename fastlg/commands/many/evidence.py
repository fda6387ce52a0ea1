"""Whether one side is better than the other by more than chance: paired by test image and by seed. numpy alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.05  # a difference counts where chance gives one as large less often
RESAMPLES = 10_000


class Evidence(NamedTuple):
    """Of second minus first side, in points of top-1; a side is its runs, one per seed, on the same test images."""

    differences: list[float]  # by seed
    mean: float
    std: float | None  # sample standard deviation over the seeds; None of a single one
    low: float  # 95 % interval of the mean over test images drawn anew
    high: float
    p_images: float  # of the images: how often chance gives such a mean where neither side is better on any
    p_seeds: float | None  # likewise, of the seeds
    images: int

    @property
    def holds(self) -> bool:
        """Whether the difference is beyond the noise of the test images and, where there are several, of the seeds."""
        return self.p_images < LEVEL and (self.p_seeds is None or self.p_seeds < LEVEL)


def weigh(first: np.ndarray, second: np.ndarray) -> Evidence:
    """``first``, ``second``: bool [seeds, images], whether a run has an image right; rows and columns are paired."""
    scores = (second.astype(np.int64) - first.astype(np.int64)).sum(axis=0)
    seeds, images = first.shape
    differences = [100 * float(own) for own in (second.mean(axis=1) - first.mean(axis=1))]
    low, high = (100 * bound / seeds for bound in bootstrap_interval(scores))
    return Evidence(
        differences=differences,
        mean=statistics.fmean(differences),
        std=statistics.stdev(differences) if seeds > 1 else None,
        low=low,
        high=high,
        p_images=sign_flip_p(scores),
        p_seeds=student_p(differences) if seeds > 1 else None,
        images=images,
    )


def verdict(found: Evidence, what: str, others: str = "whether other seeds agree: --seeds 3") -> str:
    """One line: the difference where it holds, or the noise that it does not stand out from; ``others`` is said of a
    single seed."""
    seeds, images = len(found.differences), f"{found.images:,} test images"
    interval = f"95 % interval {found.low:+.1f} to {found.high:+.1f} over the images"
    change = f"{found.mean:+.1f}" + ("" if found.std is None else f" ± {found.std:.1f}")
    if found.p_images >= LEVEL:
        chance = f"{change} points of top-1, {interval}, p = {_p(found.p_images)}"
        return f"{what}: no difference beyond the noise of {images} ({chance})"
    if found.p_seeds is None:
        chance = f"{interval}, p = {_p(found.p_images)} by {images}"
        return f"{what}: {change} points of top-1 with this seed ({chance}); {others}"
    if found.p_seeds >= LEVEL:
        chance = f"{change} points of top-1, p = {_p(found.p_seeds)}; by {images} p = {_p(found.p_images)}"
        return f"{what}: no difference beyond the noise of {seeds} seeds ({chance}); more seeds may tell"
    chance = f"{interval}; p = {_p(found.p_images)} by {images}, {_p(found.p_seeds)} by seeds"
    return f"{what}: {change} points of top-1 over {seeds} seeds ({chance})"


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.2g}"


def sign_flip_p(scores: np.ndarray) -> float:
    """Two-sided p of the sum of ``scores``, int [N], where each had either sign alike: exact, by the distribution of
    all 2^N sums. Of scores from -1 to 1 it is McNemar's exact test."""
    sizes = np.bincount(np.abs(scores))
    reach = int(sum(size * count for size, count in enumerate(sizes)))  # of the sums: from -reach to reach
    if reach == 0:
        return 1.0
    length = 1 << (2 * reach + 1).bit_length()
    spectrum = np.ones(length // 2 + 1, dtype=np.complex128)
    for size, count in enumerate(sizes):
        if size and count:
            part = np.zeros(length)
            part[: 2 * size * count + 1 : 2 * size] = _fair_coins(int(count))
            spectrum *= np.fft.rfft(part)
    chances = np.fft.irfft(spectrum, length)[: 2 * reach + 1].clip(min=0)  # of the sums from -reach on
    tail = float(chances[np.abs(np.arange(-reach, reach + 1)) >= abs(int(scores.sum()))].sum())
    return min(1.0, tail)


def _fair_coins(count: int) -> np.ndarray:
    """[count + 1]: how likely each number of heads is."""
    logs = np.array([math.lgamma(heads + 1) for heads in range(count + 1)])
    return np.exp(logs[-1] - logs - logs[::-1] - count * math.log(2))


def student_p(values: Sequence[float]) -> float:
    """Two-sided p of Student's t test that the mean of ``values`` is 0. Closed form (Abramowitz, Stegun 26.7.3, .4)."""
    count, mean, std = len(values), statistics.fmean(values), statistics.stdev(values)
    if std == 0:
        return 1.0 if mean == 0 else 0.0
    freedom = count - 1
    angle = math.atan(abs(mean) / std * math.sqrt(count / freedom))
    is_odd = freedom % 2
    term = total = math.cos(angle) if is_odd else 1.0
    for step in range(2 + is_odd, freedom, 2):
        term *= math.cos(angle) ** 2 * (step - 1) / step
        total += term
    if is_odd:
        inside = 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))
    else:
        inside = math.sin(angle) * total
    return min(1.0, max(0.0, 1 - inside))


def bootstrap_interval(scores: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of ``scores``, int [N], over images drawn anew; always the same draws."""
    values, counts = np.unique(scores, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(scores), counts / len(scores), size=RESAMPLES)
    low, high = np.quantile(drawn @ values / len(scores), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
