"""Two ranks with unequal shares normalise, differentiate and remember as torch's BatchNorm2d over all samples."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rank_processes import forking_context
from timm.layers import BatchNormAct2d
from torch import nn

from fastlg.errors import UserError
from fastlg.models.synced_norm import with_synced_norms


def one_rank(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4, momentum=0.3))
    whole += nn.Sequential(BatchNormAct2d(4, act_layer=nn.SiLU), nn.Flatten(2), nn.BatchNorm1d(4))
    whole += nn.Sequential(nn.Flatten(), nn.Linear(60, 5), nn.BatchNorm1d(5))
    synced = with_synced_norms(whole)
    assert synced.state_dict().keys() == whole.state_dict().keys()
    own = slice(0, 4) if rank == 0 else slice(4, 11)
    for _ in range(3):
        images = 3 * torch.randn(11, 3, 5, 7) + 11
        expected = whole(images)
        expected.pow(3).mean().backward()
        found = synced(images[own])
        (found.pow(3).sum() / expected.numel()).backward()
        torch.testing.assert_close(found, expected[own], rtol=1e-4, atol=5e-5)
        for parameter, truth in zip(synced.parameters(), whole.parameters(), strict=True):
            dist.all_reduce(parameter.grad)
            torch.testing.assert_close(parameter.grad, truth.grad, rtol=1e-3, atol=1e-5)
            parameter.grad = truth.grad = None
    for buffer, truth in zip(synced.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(buffer, truth, rtol=1e-5, atol=1e-5)
    whole.eval(), synced.eval()
    assert torch.allclose(synced(images[own]), whole(images[own]), atol=1e-4)  # and nothing is exchanged: no deadlock
    if rank == 0:
        synced(images[:1])
    dist.destroy_process_group()


def test_two_ranks_normalise_as_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forking_context()
    mp.start_processes(one_rank, (port,), nprocs=2, start_method="forkserver")


@pytest.mark.parametrize("norm", [nn.BatchNorm3d(2), nn.BatchNorm2d(2, track_running_stats=False), nn.SyncBatchNorm(2)])
def test_statistics_that_ranks_cannot_share_are_refused(norm):
    with pytest.raises(UserError, match=r"1 is a \w+, whose statistics ranks cannot share"):
        with_synced_norms(nn.Sequential(nn.Flatten(), norm))
