"""Pairs of grid places are a sample's own: whatever its batch, every place alike often, anew in every epoch."""

from __future__ import annotations

import pytest
import torch

from fastlg.data.views.pairs import PairSampler


def sampler(side: int, count: int = 64, seed: int = 5) -> PairSampler:
    return PairSampler(side=side, count=count, seed=seed, weight_at=lambda epoch: 0.25 * epoch)


def test_a_samples_pairs_do_not_depend_on_its_batch():
    ids = torch.randperm(1000)[:48]
    whole, weight = sampler(14)(ids, 3)
    assert whole.shape == (48, 2, 64, 2) and whole.dtype == torch.int64
    assert torch.equal(weight, torch.full((48,), 0.75))
    order = torch.randperm(48)
    assert torch.equal(sampler(14)(ids[order], 3)[0], whole[order])
    assert torch.equal(torch.cat([sampler(14)(part, 3)[0] for part in ids.split(7)]), whole)


def test_seed_epoch_and_sample_each_change_them():
    ids = torch.arange(40)
    seen = [sampler(9, seed=seed)(ids + shift, epoch)[0] for seed, shift, epoch in ((5, 0, 0), (6, 0, 0), (5, 40, 0))]
    seen.append(sampler(9)(ids, 1)[0])
    for index, one in enumerate(seen):
        assert all((one != other).float().mean() > 0.8 for other in seen[:index])  # 1 of 9 is the same by chance


@pytest.mark.parametrize("side", [2, 7, 14, 56])
def test_both_ends_are_uniform_and_independent_with_replacement(side):
    pairs, _ = sampler(side)(torch.arange(2000), 0)  # 128,000 pairs
    first, second = ((pairs[:, end, :, 0] * side + pairs[:, end, :, 1]).flatten() for end in (0, 1))
    for ends in (first, second):
        counts = torch.bincount(ends, minlength=side**2).double()
        expected = len(ends) / side**2
        chi2 = ((counts - expected) ** 2 / expected).sum().item()
        freedom = side**2 - 1
        assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5 and len(counts) == side**2
    same = (first == second).double().mean().item()
    assert abs(same - side**-2) < 5 * (side**-2 / len(first)) ** 0.5
