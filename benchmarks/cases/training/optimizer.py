"""The optimizer's update of DeiT-Ti and its projections: torch's three forms of AdamW, on a GPU beside ours in one
launch; Muon, ours and torch's."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.harness.bench import Bench
from benchmarks.harness.counting import ADAMW_BYTES, Work
from fastlg.config import Config, load_config
from fastlg.engine.update.muon import Muon, flops_of, matrix_of, orthogonal_dtype
from fastlg.models.build import new_model
from fastlg.models.param_groups import param_groups
from fastlg.objective import GuidedStudent
from fastlg_kernels import AdamW

FORMS = {"for loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
MUON_BYTES = 5 * 4  # per parameter of a matrix: read weight, gradient and momentum, write weight and momentum, in fp32
STAGES = [16, 32, 64]  # channels of the CIFAR ResNets' maps


def rows(bench: Bench) -> None:
    config = load_config("cifar100/deit_tiny")
    if bench.fits("AdamW", 0.3):
        _adamw(bench, config)
    if bench.fits("Muon", 0.3):
        _muon(bench, config)


def _unit(bench: Bench, config: Config) -> nn.Module:
    unit = GuidedStudent(new_model(config.model, config.teacher, 100), STAGES, config.guidance).to(bench.device)
    for parameter in unit.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    return unit


def _adamw(bench: Bench, config: Config) -> None:
    runs, parameters = {}, 0
    for name, options in FORMS.items():
        unit = _unit(bench, config)
        parameters = sum(p.numel() for p in unit.parameters())
        runs[name] = torch.optim.AdamW(param_groups(unit, 0.05), lr=5e-4, **options).step
    if bench.gpu:
        runs["one launch"] = AdamW(param_groups(_unit(bench, config), 0.05), lr=5e-4).step
    times = bench.turns(runs, turns=30 if bench.gpu else 9, seconds=bench.seconds * 0.3, warm=2)
    for name, taken in times.items():
        work = Work(parameters * ADAMW_BYTES, 0)
        bench.add("AdamW, DeiT-Ti", name, taken, base=times["for loop"], work=work, parameters=parameters)


def _muon(bench: Bench, config: Config) -> None:
    """Whole updates, AdamW's part of them included; on CUDA also replayed, as engine.graph does."""
    unit = _unit(bench, config)
    runs = {"fused AdamW": torch.optim.AdamW(param_groups(unit, 0.05), lr=5e-4, fused=True).step}
    runs["muon"] = Muon(param_groups(_unit(bench, config), 0.05, muon=True), 5e-4).step
    runs["torch's Muon"] = _torchs_muon(param_groups(_unit(bench, config), 0.05, muon=True))
    if bench.gpu:
        lr = torch.tensor(5e-4, device=bench.device)
        captured = Muon(param_groups(_unit(bench, config), 0.05, muon=True), lr, capturable=True)
        adamw = torch.optim.AdamW(param_groups(_unit(bench, config), 0.05), lr=lr, fused=True, capturable=True)
        runs["fused AdamW, graph"], runs["muon, graph"] = _replayed(adamw), _replayed(captured)
    times = bench.turns(runs, turns=30 if bench.gpu else 9, seconds=bench.left() * 0.8, warm=2)
    parameters = sum(p.numel() for p in unit.parameters())
    matrices = [group for group in param_groups(unit, 0.05, muon=True) if group.get("muon")][0]["params"]
    stepped = sum(p.numel() for p in matrices)
    flops = sum(flops_of(matrix_of(p.shape)) for p in matrices)
    dtype = str(orthogonal_dtype(bench.device)).removeprefix("torch.")
    for name, taken in times.items():
        work = Work(parameters * ADAMW_BYTES, 0)
        if "AdamW" not in name:
            rounded = "bfloat16" if name.startswith("torch") else dtype
            work = Work((parameters - stepped) * ADAMW_BYTES + stepped * MUON_BYTES, flops, rounded)
        bench.add("Muon, DeiT-Ti", name, taken, base=times["fused AdamW"], work=work, parameters=parameters)


def _torchs_muon(groups: list[dict]):
    matrices = [parameter for group in groups if group.get("muon") for parameter in group["params"]]
    rest = torch.optim.AdamW([group for group in groups if not group.get("muon")], lr=5e-4, fused=True)
    muon = torch.optim.Muon(matrices, lr=5e-4, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return lambda: (muon.step(), rest.step())


def _replayed(optimizer: torch.optim.Optimizer):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay
