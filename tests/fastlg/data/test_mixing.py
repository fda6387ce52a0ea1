"""Mixup and CutMix as timm's element mode does them, the same in both views and in the targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import Mixup

from fastlg.batch import Batch
from fastlg.data.views.make import ViewMaker
from fastlg.data.views.mixing import Mixer, mix_images, mix_targets

IDS = torch.arange(20_000)


def mixer(mixup=0.0, cutmix=0.0, probability=1.0, switch=0.5):
    return Mixer(mixup=mixup, cutmix=cutmix, probability=probability, switch=switch, seed=3)


def timm_shares(**options) -> np.ndarray:
    np.random.seed(0)
    timm = Mixup(mode="elem", num_classes=7, **options)
    return np.concatenate([timm._params_per_elem(500)[0] for _ in range(40)])


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_mixup_shares_are_distributed_as_timms(alpha):
    ours = mixer(mixup=alpha).draw(IDS, 0, 32).share.numpy()
    assert stats.ks_2samp(ours, timm_shares(mixup_alpha=alpha)).pvalue > 1e-3
    inner = ours[(ours > 1e-3) & (ours < 1 - 1e-3)]  # float32 rounds what is nearer to 1 onto it
    low, high = stats.beta(alpha, alpha).cdf([1e-3, 1 - 1e-3])
    assert stats.kstest(inner, lambda x: (stats.beta(alpha, alpha).cdf(x) - low) / (high - low)).pvalue > 1e-3


def test_cutmix_boxes_and_their_shares_are_distributed_as_timms():
    mix = mixer(cutmix=1.0).draw(IDS, 0, 32)
    np.random.seed(0)
    timm = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, mode="elem", num_classes=7)
    images, shares = torch.zeros(40, 1, 32, 32), []
    images[20:] = 1  # the partner of a row of the first half is all ones: its mean is the pasted area
    for _ in range(300):
        mixed = images.clone()
        timm._mix_elem(mixed)
        shares.append(1 - mixed[:20].mean((1, 2, 3)))
    theirs = torch.cat(shares).numpy()
    assert stats.ks_2samp(mix.share.numpy(), theirs).pvalue > 1e-3
    height, width = mix.box[:, 1] - mix.box[:, 0], mix.box[:, 3] - mix.box[:, 2]
    torch.testing.assert_close(mix.share, 1 - height * width, rtol=0, atol=1e-6)


def test_images_and_targets_are_mixed_by_the_same_share():
    images = torch.stack([torch.full((3, 12, 12), float(k)) for k in range(5)])
    labels = torch.tensor([0, 1, 2, 1, 3])
    for settings in ({"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}):
        mix = mixer(**settings).draw(torch.arange(5), 4, 12)
        mixed, targets = mix_images(images, mix), mix_targets(labels, mix, 4)
        for row in range(5):
            share = mix.share[row].item()
            assert mixed[row].mean().item() == pytest.approx(share * row + (1 - share) * (4 - row), abs=1e-5)
            expected = torch.zeros(4)
            expected[labels[row]] += share
            expected[labels[4 - row]] += 1 - share
            torch.testing.assert_close(targets[row], expected)


def test_probability_leaves_the_rest_alone_and_switch_halves_the_kinds():
    mix = mixer(mixup=0.8, cutmix=1.0, probability=0.3).draw(IDS, 1, 64)
    untouched = (mix.share == 1) & (mix.box[:, 1] == 0)
    assert untouched.float().mean().item() == pytest.approx(0.7, abs=0.015)
    both = mixer(mixup=0.8, cutmix=1.0).draw(IDS, 1, 64)
    assert (both.box[:, 1] > 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("source", ["student", "source"])
def test_both_views_share_the_mix_and_evaluation_has_none(source):
    images = torch.randint(0, 256, (6, 28, 28, 3), dtype=torch.uint8)
    batch = Batch(
        images, torch.arange(6) % 3, torch.arange(6) + 40, torch.zeros(6, 4), torch.zeros(6, dtype=torch.bool)
    )
    options = {"teacher_size": 28, "rand_augment": None, "erase": 0.0, "teacher_source": source, "num_classes": 3}
    views = ViewMaker(**options, mixer=mixer(cutmix=1.0))
    mixed = views(batch, 2)
    torch.testing.assert_close(mixed.teacher, mixed.student, rtol=0, atol=1e-6)
    assert mixed.targets.shape == (6, 3) and not torch.equal(mixed.student, views(batch, 2, train=False).student)
    assert torch.equal(views(batch, 2, train=False).targets, batch.labels)
    alone = ViewMaker(**options, mixer=mixer())
    assert torch.equal(alone(batch, 2).targets, batch.labels)
