"""Draws are pure functions of the sample, equal to an independent SplitMix64, and distributed as they claim."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from fastlg_kernels.rng import mix, normals, sample_seeds, uniforms


def _splitmix64(z: int) -> int:
    """The published finaliser, in unbounded Python integers."""
    word = (1 << 64) - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
    return z ^ (z >> 31)


def test_mix_is_the_published_splitmix64_also_where_the_sign_bit_is_set():
    # First outputs of SplitMix64 seeded with 1234567, as published with the reference generator.
    state, expected = 1234567, (6457827717110365317, 3203168211198807973, 9817491932198370423)
    for value in expected:
        state = (state + 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
        assert _splitmix64(state) == value
    words = [0, 1, -1, 2**63 - 1, -(2**63), 0x9E3779B97F4A7C15 - 2**64, -12345678901234567]
    for word, mixed in zip(words, mix(torch.tensor(words)).tolist(), strict=True):
        assert mixed & ((1 << 64) - 1) == _splitmix64(word & ((1 << 64) - 1))


def test_draws_of_a_sample_are_the_same_alone_and_in_any_batch():
    ids = torch.tensor([7, 0, 99991, 3, 2**40])
    seeds = sample_seeds(5, 17, ids, "crop")
    for row, sample_id in enumerate(ids.tolist()):
        alone = sample_seeds(5, 17, torch.tensor([sample_id]), "crop")
        assert alone.item() == seeds[row].item()
        assert torch.equal(uniforms(alone, 9)[0], uniforms(seeds, 9)[row])
        assert torch.equal(normals(alone, 9)[0], normals(seeds, 9)[row])
    assert torch.equal(uniforms(seeds, 9)[:, 4:], uniforms(seeds, 5, offset=4))
    assert torch.equal(normals(seeds, 9)[:, 4:], normals(seeds, 5, offset=2))


def test_seed_epoch_sample_and_purpose_each_change_the_draws():
    ids = torch.arange(1000)
    base = sample_seeds(0, 0, ids, "crop")
    assert base.unique().numel() == 1000
    for other in (
        sample_seeds(1, 0, ids, "crop"),
        sample_seeds(0, 1, ids, "crop"),
        sample_seeds(0, 0, ids + 1000, "crop"),
        sample_seeds(0, 0, ids, "flip"),
        sample_seeds(0, 0, ids, 0),
    ):
        assert not set(base.tolist()) & set(other.tolist())
    assert torch.equal(sample_seeds(1, 2, ids, "crop"), sample_seeds(1, 2, ids.to(torch.int32), "crop"))


def test_uniforms_and_normals_follow_their_distributions_and_do_not_correlate():
    seeds = sample_seeds(3, 1, torch.arange(20_000), "test")
    uniform, normal = uniforms(seeds, 3).numpy(), normals(seeds, 3).numpy()
    assert uniform.min() >= 0 and uniform.max() < 1
    for column in range(3):
        assert stats.kstest(uniform[:, column], "uniform").pvalue > 1e-3
        assert stats.kstest(normal[:, column], "norm").pvalue > 1e-3
    for values in (uniform, normal):
        for a, b in ((values[:, 0], values[:, 1]), (values[:-1, 0], values[1:, 0]), (values[:, 0], values[:, 2])):
            assert abs(stats.pearsonr(a, b).statistic) < 4 / 20_000**0.5


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="float32"):
        sample_seeds(0, 0, torch.rand(3), "crop")
    with pytest.raises(TypeError, match="sample_ids must be a tensor"):
        sample_seeds(0, 0, [1, 2], "crop")
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        uniforms(torch.zeros(2, 2, dtype=torch.int64), 1)
    with pytest.raises(TypeError, match="epoch must be an integer, got 0.5"):
        sample_seeds(0, 0.5, torch.arange(2), "crop")
    with pytest.raises(ValueError, match="fit 64 bits"):
        sample_seeds(1 << 64, 0, torch.arange(2), "crop")
    with pytest.raises(ValueError, match="count=-1"):
        uniforms(torch.arange(2), -1)
