"""Between two reports the loop never asks the device for a value."""

from __future__ import annotations

import pytest
import torch
from engine_cases import Watch

from fastlg.assemble import assemble
from fastlg.config import load_config
from fastlg.data.stores import open_stores
from fastlg.models.resnet_cifar import resnet20
from fastlg.run.metrics import Meter
from fastlg.train import batches


@pytest.mark.parametrize(
    "override", ["optim.name=adamw", "optim.name=muon", "drloc.weight=1", "drloc.mode=ce", "optim.sam_rho=1"]
)
def test_a_training_step_and_its_bookkeeping_never_sync(project, override):
    is_located = ["drloc.weight=1"] if override.startswith("drloc") else []
    config = load_config("student.yaml", ["augment.rand_augment=null", "augment.erase=0", override, *is_located])
    parts = assemble(config, open_stores(config.data), resnet20(3), 16)
    parts.unit.train()
    meter = Meter(parts.device)
    views, batch = next(iter(batches(parts, 0)))
    with Watch() as watch:
        if parts.views.pairs is not None:
            parts.views.pairs(batch.sample_ids, 1)
        for step in range(3):
            out = parts.engine.step(views, batch, parts.step_total(0))
            meter.update(out, step)
    assert watch.seen == []
    with Watch() as watch:
        meter.read()
        torch.ones(()).item()
    assert watch.seen, "the watch sees nothing: this test would pass whatever the loop does"
