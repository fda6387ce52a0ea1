"""The optimizer's update of DeiT-Ti and its projections: torch's three forms of AdamW."""

from __future__ import annotations

import torch
from counting import ADAMW_BYTES, Work
from harness import Bench

from fastlg.assemble import new_model
from fastlg.config import load_config
from fastlg.models.param_groups import param_groups

FORMS = {"for loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def rows(bench: Bench) -> None:
    config = load_config("cifar100/deit_tiny")
    if not bench.fits("AdamW", 0.3):
        return
    runs, parameters = {}, 0
    for name, options in FORMS.items():
        model = new_model(config, 100).to(bench.device)
        parameters = sum(p.numel() for p in model.parameters())
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        runs[name] = torch.optim.AdamW(param_groups(model, 0.05), lr=5e-4, **options).step
    times = bench.turns(runs, turns=30 if bench.gpu else 9, seconds=bench.seconds * 0.8, warm=2)
    for name, taken in times.items():
        work = Work(parameters * ADAMW_BYTES, 0)
        bench.add("AdamW, DeiT-Ti", name, taken, base=times["for loop"], work=work, parameters=parameters)
