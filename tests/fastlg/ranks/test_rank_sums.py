"""Two real ranks with unequal shares: CNNs and CvT in training normalise over both; accuracy is of all images."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from made_images import write_images
from patience import HANG_S
from rank_processes import Ranks
from reach import ALONE, parts_of

from fastlg import ranks
from fastlg.run.evaluate import evaluate

CNN = (
    *ALONE,
    "model.name=resnet20",
    "model.args={}",
    "model.blocks=auto",
    "optim.name=sgd",
    "optim.global_batch_size=60",
    "optim.lr=0.01",
    "optim.drop_last=false",  # 75 images: a step of 30 + 30, then one of 7 + 8
    "data.source=odd",
    "log.eval_batch_size=10",  # 33 test images: 10 + 10, then 6 + 7
)
CVT = (  # a student with BatchNorm
    *CNN,
    "model.name=cvt_13",
    "model.args={embed_dims: [8, 12, 24], depths: [1, 1, 1]}",
    "model.drop_path=0",
)
VIT = (*ALONE, "model.init=timm", "log.eval_batch_size=30")  # 33 images: 16 + 17, in one step


def measured(*overrides: str, steps: int) -> dict:
    """Losses of one epoch's steps, running statistics after them, and what evaluation says."""
    parts = parts_of(*overrides)
    losses, seen = [], 0
    for step, batch in enumerate(parts.train_loader.epoch(0)):
        if step == steps:
            break
        out = parts.engine.step(parts.views(batch, 0), batch, parts.step_total(step))
        losses.append(float(ranks.total(out.loss * out.count)) / parts.step_total(step))
    for batch in parts.test_loader.epoch(0):
        seen += len(batch.labels)
    accuracy = evaluate(parts)
    norms = {name: value.double().sum().item() for name, value in parts.unit.named_buffers() if "running" in name}
    return {"losses": losses, "norms": norms, "accuracy": list(accuracy), "own": seen}


def in_a_rank(path: Path) -> None:
    with ranks.joined(cuda=False, timeout_s=HANG_S):
        found = [measured(*CNN, steps=2), measured(*VIT, steps=0), measured(*CVT, steps=2)]
        Path(f"{path}{ranks.rank()}").write_text(json.dumps(found))


def test_two_ranks_with_unequal_shares_normalise_and_count_as_one(project, tmp_path):
    write_images(project / "odd" / "train", per_class=25, seed=0)
    write_images(project / "odd" / "test", per_class=11, seed=1)
    with Ranks(project, tmp_path / "prints") as started:
        for process in started.call_in_all(partial(in_a_rank, tmp_path / "found")):
            status, out, err = process.finish()
            assert status == 0, err
    torch.set_num_threads(1)
    alone = [measured(*CNN, steps=2), measured(*VIT, steps=0), measured(*CVT, steps=2)]
    both = [json.loads((tmp_path / f"found{rank}").read_text()) for rank in (0, 1)]
    for case, truth in enumerate(alone):
        shares = [found[case]["own"] for found in both]
        assert sum(shares) == 33 and shares[0] != shares[1]
        for found in both:
            assert found[case]["losses"] == pytest.approx(truth["losses"], rel=1e-4)
            assert found[case]["accuracy"] == pytest.approx(truth["accuracy"], rel=1e-4)
            assert found[case]["accuracy"][3] == 33
            assert found[case]["norms"] == pytest.approx(truth["norms"], rel=1e-4, abs=1e-4)
    assert alone[0]["norms"] and alone[2]["norms"], "a CNN and CvT have norms"
