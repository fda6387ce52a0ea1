"""The teacher is frozen in every sense but one: which statistics its norms use."""

from __future__ import annotations

import copy

import pytest
import torch
from dispatched import Dispatched
from torch import nn

from fastlg.models.resnet_cifar import resnet20
from fastlg.teacher.online import OnlineTeacher


@pytest.fixture
def model():
    torch.manual_seed(0)
    return resnet20(num_classes=7)


def images(n=6, seed=1):
    return 2 * torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) + 1


@pytest.mark.parametrize("norm_stats", ["batch", "running"])
def test_no_weight_and_no_statistic_ever_moves(model, norm_stats):
    before = {name: value.clone() for name, value in model.state_dict().items() if "num_batches" not in name}
    teacher = OnlineTeacher(model, stages=[0, 1, 2], norm_stats=norm_stats)
    for seed in range(3):
        guide = teacher(images(seed=seed))
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(tensor.requires_grad for tensor in (*guide.maps, guide.logits))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_batch_statistics_are_those_of_plain_train_mode(model):
    expected_logits, expected_maps = model.train()(images())
    guide = OnlineTeacher(model, stages=[0, 2], norm_stats="batch")(images())
    assert [tuple(m.shape[1:]) for m in guide.maps] == [(16, 32, 32), (64, 8, 8)]
    torch.testing.assert_close(guide.maps[1], expected_maps[2].detach())
    torch.testing.assert_close(guide.logits, expected_logits.detach())


def test_batch_statistics_are_counted_by_nothing_and_saved_without_a_count(model):
    """A kernel for each of 21 norms and step that adds one to a number that nobody reads."""
    saved = model.state_dict()
    teacher, other = (OnlineTeacher(own, stages=[2], norm_stats="batch") for own in (model, resnet20(num_classes=7)))
    view = images()
    with Dispatched() as seen:
        teacher(view)
    norms = sum(name.endswith("running_mean") for name in saved)
    assert seen.counts["native_batch_norm"] + seen.counts["_native_batch_norm_legit"] == norms == 21
    assert seen.counts["add_"] + seen.counts["add"] == 9, "residual additions alone"
    assert not any(name.endswith("num_batches_tracked") for name in teacher.state_dict())
    other.load_state_dict({name: value for name, value in saved.items() if "running" in name or "num" in name})


def test_a_teacher_of_torchs_synced_norms_keeps_the_count_they_insist_on(model):
    synced = OnlineTeacher(
        nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)), stages=[2], norm_stats="batch"
    )
    truth = OnlineTeacher(model, stages=[2], norm_stats="batch")(images())
    torch.testing.assert_close(synced(images()).logits, truth.logits)


def test_running_statistics_make_a_sample_independent_of_its_batch(model):
    teacher = OnlineTeacher(model, stages=[2], norm_stats="running")
    alone, together = teacher(images()[:1]), teacher(images())
    torch.testing.assert_close(alone.maps[0], together.maps[0][:1], rtol=1e-4, atol=1e-4)


def test_a_students_train_cannot_reach_the_teacher(model):
    class Wrapper(nn.Module):
        def __init__(self, teacher):
            super().__init__()
            self.teacher = teacher

    wrapper = Wrapper(OnlineTeacher(model, stages=[0], norm_stats="running"))
    wrapper.train()
    assert not model.training and not list(wrapper.parameters())


def test_statistics_survive_a_checkpoint_and_wrong_settings_are_refused(model):
    other = resnet20(num_classes=7)
    for buffer in model.buffers():
        buffer.add_(1)
    source, target = (OnlineTeacher(m, stages=[0], norm_stats="running") for m in (model, other))
    target.load_state_dict(source.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))
    with pytest.raises(ValueError, match="'frozen'"):
        OnlineTeacher(model, stages=[0], norm_stats="frozen")
