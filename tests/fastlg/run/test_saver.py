"""A run goes on while its checkpoint is written; what is written is the state of the moment, whole or not at all."""

from __future__ import annotations

import collections
import threading

import pytest
import torch
from patience import HANG_S
from reach import BARE, parts_of

from fastlg.errors import RunError
from fastlg.run import checkpoint
from fastlg.run.checkpoint import LAST, Saver, load_checkpoint, save_checkpoint


@pytest.fixture
def held(monkeypatch):
    """Whatever is saved waits until the event is set."""
    go = threading.Event()

    def write(folder, state, *, best=False):
        assert go.wait(HANG_S), "nobody let the write go on"
        return save_checkpoint(folder, state, best=best)

    monkeypatch.setattr(checkpoint, "save_checkpoint", write)
    return go


def test_training_goes_on_beside_the_write_and_changes_nothing_of_it(tmp_path, held):
    weight = torch.arange(6.0)
    state = {"unit": collections.OrderedDict(w=weight, same=weight), "engine": {"moments": [weight * 2], "step": 3}}
    saver = Saver(tmp_path)
    saver.save(state, best=True)
    weight.add_(100)  # the next update, while the first write has not begun
    state["engine"]["step"] = 4
    assert not (tmp_path / LAST).exists()
    saver.poll()
    held.set()
    saver.wait()
    for name in ("last.pt", "best.pt"):
        found = load_checkpoint(tmp_path / name)
        assert torch.equal(found["unit"]["w"], torch.arange(6.0))
        assert found["unit"]["same"].data_ptr() == found["unit"]["w"].data_ptr(), "stored once"
        assert torch.equal(found["engine"]["moments"][0], torch.arange(6.0) * 2) and found["engine"]["step"] == 3
    saver.close()


def test_the_attributes_of_a_state_dict_are_kept(tmp_path):
    network = torch.nn.BatchNorm1d(2)
    saver = Saver(tmp_path)
    saver.save({"unit": network.state_dict()})
    saver.close()
    assert load_checkpoint(tmp_path / LAST)["unit"]._metadata == network.state_dict()._metadata


def test_saves_follow_one_another_in_their_order(tmp_path, held):
    saver = Saver(tmp_path)
    saver.save({"epoch": 1}, best=True)
    threading.Timer(0.05, held.set).start()
    saver.save({"epoch": 2})  # waits for the first
    assert load_checkpoint(tmp_path / "best.pt")["epoch"] == 1
    saver.close()
    assert load_checkpoint(tmp_path / LAST)["epoch"] == 2 and load_checkpoint(tmp_path / "best.pt")["epoch"] == 1


@pytest.mark.parametrize("then", ["poll", "wait", "save"])
def test_a_write_that_failed_is_told_by_the_next_call_and_the_last_good_one_stays(tmp_path, monkeypatch, then):
    saver = Saver(tmp_path)
    saver.save({"epoch": 1})
    saver.wait()

    def full(folder, state, *, best=False):
        raise RunError("cannot save the checkpoint: the disk is full")

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    saver.save({"epoch": 2})
    if then == "poll":
        saver.writer.submit(int).result()  # the write before it is done
    with pytest.raises(RunError, match="the disk is full"):
        getattr(saver, then)(*([{"epoch": 3}] if then == "save" else []))
    saver.wait()  # told once
    saver.close()
    assert load_checkpoint(tmp_path / LAST)["epoch"] == 1


def test_what_is_saved_is_handed_over_uncopied_so_that_one_copy_leaves_the_device(project, monkeypatch):
    parts = parts_of(*BARE, "optim.ema=0.9", "optim.name=muon")
    batch = next(iter(parts.train_loader.epoch(0)))
    parts.engine.step(parts.views(batch, 0), batch, len(batch.labels))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: pytest.fail("a copy that waits for the device"))
    state = parts.engine.state_dict()
    own = dict(parts.unit.named_parameters())
    assert all(state["unit"][name].data_ptr() == weight.data_ptr() for name, weight in own.items())
    assert state["optimizer"].keys() == own.keys() and state["average"]["count"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_from_a_gpu_are_of_the_moment_and_pinned_memory_is_used_again(tmp_path, held):
    weight = torch.arange(1_000_000.0, device="cuda")
    saver = Saver(tmp_path)
    held.set()
    for turn in range(3):
        saver.save({"w": weight, "host": torch.full((2,), float(turn))})
        places = [place.data_ptr() for place in saver.pinned]
        weight.add_(1)
        saver.wait()
        found = load_checkpoint(tmp_path / LAST)
        assert torch.equal(found["w"], torch.arange(1_000_000.0) + turn) and found["host"][0] == turn
        assert saver.pinned[0].is_pinned() and places == [place.data_ptr() for place in saver.pinned]
    saver.close()
