"""Rows of test_config_reaches.py for the sections run, optim, pretrain and log: updates by hand, records of a run."""

from __future__ import annotations

import copy
import json
import math
import os
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from reach import ALONE, BARE, config_of, first_batch, parts_of, reaches, teacher_model
from timm.optim import create_optimizer_v2
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn

import fastlg.commands.reproduce as reproducing
from fastlg.errors import UserError
from fastlg.teacher.online import OnlineTeacher

training = import_module("fastlg.train")  # the module; the attribute of the package is the verb


@reaches("paper.table", "paper.row", "paper.top1")
def paper(tmp_path, monkeypatch):
    """They name the row of ``fastlg reproduce`` that a shipped config is."""
    text = yaml.safe_load(Path("student.yaml").read_text())
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**text, "paper": {"table": 8, "row": "mine", "top1": 12.5}}))
    monkeypatch.setattr(reproducing, "shipped_configs", lambda: {str(path): path})
    (row,) = reproducing.rows_of(8, [])
    assert (row.label, row.paper, row.config.run.name) == ("mine", 12.5, "own")
    with pytest.raises(UserError, match="no row of table7"):
        reproducing.rows_of(7, [], "mine")


def recorded(tmp_path, monkeypatch, *overrides: str) -> tuple[list[dict], list[str]]:
    """(rows of metrics.jsonl, names of the files put in place) of a run ``tmp_path/mine`` of 3 steps an epoch."""
    replaced, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (replaced.append(os.path.basename(new)), replace(old, new)))
    config = config_of(*ALONE, f"run.root={tmp_path}", "run.name=mine", "optim.global_batch_size=26", *overrides)
    training.train(config)
    rows = [json.loads(line) for line in (tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()]
    return rows, replaced


@reaches(
    "run.root",
    "run.name",
    "optim.lr",
    "optim.min_lr",
    "optim.warmup_epochs",
    "optim.warmup_factor",
    "optim.epochs",
    "log.every_steps",
    "log.checkpoint_steps",
    "log.eval_epochs",
    "log.tensorboard",
)
def record(tmp_path, monkeypatch):
    lr, low, warm, factor, epochs = 2e-3, 1e-4, 2, 0.25, 5
    schedule = (f"optim.lr={lr}", f"optim.min_lr={low}", f"optim.warmup_epochs={warm}", f"optim.epochs={epochs}")
    log = ("log.every_steps=2", "log.checkpoint_steps=2", "log.eval_epochs=2", "log.tensorboard=false")
    rows, replaced = recorded(tmp_path, monkeypatch, *schedule, f"optim.warmup_factor={factor}", *log)
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == sorted([*range(2, 15, 3), *range(3, 16, 3)]), "each second, and the last"
    for row in train:
        epoch = (row["step"] - 1) // 3
        cosine = low + (lr - low) * (math.cos(math.pi * epoch / epochs) + 1) / 2
        wanted = lr * (factor + (1 - factor) * epoch / warm) if epoch < warm else cosine
        assert row["lr"] == pytest.approx(wanted, rel=1e-9) and row["epoch"] == epoch
    assert [row["epoch"] for row in rows if row["kind"] == "eval"] == [2, 4, 5]
    assert replaced.count("last.pt") == 2 * epochs, "within each epoch, and at its end"
    assert not (tmp_path / "mine" / "tensorboard").exists()


@reaches("optim.schedule", "optim.flat", "optim.label_smoothing")
def schedule_and_smoothing(tmp_path, monkeypatch):
    lr, low = 2e-3, 1e-4
    own = (f"optim.lr={lr}", f"optim.min_lr={low}", "optim.warmup_epochs=0", "optim.epochs=4", "log.every_steps=3")
    tiny = ("model.args.depth=1", "model.blocks=[0]", "optim.schedule=linear", "optim.label_smoothing=1e-9")
    rows, _ = recorded(tmp_path, monkeypatch, *own, *tiny, "optim.flat=0.5")
    rates = [row["lr"] for row in rows if row["kind"] == "train"]
    assert rates == pytest.approx([lr, lr, lr, (lr + low) / 2], rel=1e-9)
    for smoothing in (0.0, 0.3):
        parts, batch, views = first_batch(*ALONE, "model.init=timm", f"optim.label_smoothing={smoothing}")
        targets = (1 - smoothing) * nn.functional.one_hot(batch.labels, 3) + smoothing / 3
        truth = -(targets * parts.unit.student(views.student)[0].log_softmax(1)).sum(1).mean().item()
        assert parts.engine.step(views, batch, 16).loss.item() == pytest.approx(truth, rel=1e-5)


@reaches("guidance.schedule", "guidance.until")
def guidance_schedule(tmp_path, monkeypatch):
    teacher = OnlineTeacher.__call__
    asked = []
    monkeypatch.setattr(OnlineTeacher, "__call__", lambda *views: (asked.append(1), teacher(*views))[1])
    monkeypatch.setattr(training, "find_or_train_teacher", lambda *_, **__: (teacher_model(), 16))
    tiny = ("model.args.depth=1", "model.blocks=[0]", "teacher.stages=[1]", "optim.epochs=5", "log.every_steps=3")
    for schedule, until, shares in (("linear", 0.8, (1, 0.75, 0.5, 0.25, 0)), ("constant", 0.4, (1, 1, 0, 0, 0))):
        own = (f"guidance.schedule={schedule}", f"guidance.until={until}", f"run.root={tmp_path / schedule}")
        asked.clear()
        training.train(config_of(*BARE, *own, *tiny, "run.name=mine", "optim.global_batch_size=26"))
        lines = (tmp_path / schedule / "mine" / "metrics.jsonl").read_text().splitlines()
        train = [row for row in map(json.loads, lines) if row["kind"] == "train"]
        for row, share in zip(train, shares, strict=True):
            wanted = row["loss_cls"] + 2.5 * share * row["loss_guidance"]
            assert row["loss"] == pytest.approx(wanted, rel=1e-5) and (row["loss_guidance"] > 0) is (share > 0)
        assert len(asked) == 3 * sum(share > 0 for share in shares), "a teacher that rests is not run"


@reaches("log.tensorboard", "log.eval_epochs", "log.checkpoint_steps")
def record_of_defaults(tmp_path, monkeypatch):
    options = ("optim.epochs=2", "log.tensorboard=true", "log.every_steps=50", "model.args.depth=1", "model.blocks=[0]")
    rows, replaced = recorded(tmp_path, monkeypatch, *options)
    assert [row["step"] for row in rows] == [3, 3, 6, 6] and replaced.count("last.pt") == 2
    pytest.importorskip("tensorboard")
    assert list((tmp_path / "mine" / "tensorboard").iterdir())


@reaches("optim.global_batch_size", "optim.drop_last", "log.eval_batch_size")
def batch_sizes(tmp_path, monkeypatch):
    for size, drop, wanted in ((16, "true", [16] * 4), (16, "false", [16] * 4 + [14]), (40, "false", [40, 38])):
        parts = parts_of(*ALONE, f"optim.global_batch_size={size}", f"optim.drop_last={drop}", "log.eval_batch_size=20")
        assert [len(batch.labels) for batch in parts.train_loader.epoch(0)] == wanted
        assert [parts.step_total(step) for step in range(len(wanted))] == wanted
        assert [len(batch.labels) for batch in parts.test_loader.epoch(0)] == [20, 13]


def stepped(update, *overrides: str, steps: int = 3, until: float = 2e-5) -> None:
    """The engine's weights after ``steps`` updates equal those of ``update(name, weight, gradient, memory)`` by hand.

    Gradients come of a copy that is differentiated here; ``update`` returns the new weight and may clip them all.
    """
    parts = parts_of(*BARE, "model.init=timm", *overrides)
    parts.engine.set_learning_rate(parts.config.optim.lr)
    truth, memory = copy.deepcopy(parts.unit), {}
    for step, batch in enumerate(parts.train_loader.epoch(0)):
        if step == steps:
            break
        views = parts.views(batch, 0)
        truth.zero_grad()
        truth(views.student, views.targets, parts.engine.guide(views, batch)).loss.backward()
        gradients = {name: p.grad.double() for name, p in truth.named_parameters()}
        if limit := parts.config.optim.clip_norm:
            norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
            assert norm > 2 * limit, "nothing would be clipped"
            gradients = {name: g * limit / norm for name, g in gradients.items()}
        for name, p in truth.named_parameters():
            new = update(name, p.detach().double(), gradients[name], memory.setdefault(name, {}), step + 1)
            p.data.copy_(new)
        parts.engine.step(views, batch, len(batch.labels))
    for (name, p), mine in zip(truth.named_parameters(), parts.unit.parameters(), strict=True):
        if not name.endswith("qkv.bias"):  # whose middle third has no gradient but rounding, which Adam scales up
            torch.testing.assert_close(mine, p, rtol=1e-3, atol=until, msg=lambda text, name=name: f"{name}: {text}")


def decays(name: str, weight: torch.Tensor) -> bool:
    return weight.ndim > 1 and not name.endswith((".bias", "cls_token", "pos_embed"))


@reaches("optim.name", "optim.weight_decay", "optim.betas")
def adamw(tmp_path, monkeypatch):
    lr, decay, first, second = 2e-3, 0.7, 0.7, 0.95

    def update(name, weight, gradient, memory, step):
        memory["m"] = first * memory.get("m", 0) + (1 - first) * gradient
        memory["v"] = second * memory.get("v", 0) + (1 - second) * gradient.square()
        if decays(name, weight):
            weight = weight * (1 - lr * decay)
        return weight - lr * (memory["m"] / (1 - first**step)) / ((memory["v"] / (1 - second**step)).sqrt() + 1e-8)

    own = (f"optim.betas=[{first},{second}]", f"optim.weight_decay={decay}", f"optim.lr={lr}", "optim.name=adamw")
    stepped(update, *own, until=4e-5)


@reaches("optim.momentum", "optim.clip_norm", "optim.name", "optim.weight_decay")
def sgd(tmp_path, monkeypatch):
    lr, decay = 0.1, 0.3
    for momentum, clip in ((0.6, 0.0), (0.6, 0.4), (0.0, 0.0)):

        def update(name, weight, gradient, memory, step, momentum=momentum):
            gradient = gradient + (decay * weight if decays(name, weight) else 0)
            memory["b"] = momentum * memory.get("b", 0) + gradient
            return weight - lr * (gradient + momentum * memory["b"])  # Nesterov; plain for momentum 0

        own = ("optim.name=sgd", f"optim.momentum={momentum}", f"optim.clip_norm={clip}", f"optim.lr={lr}")
        stepped(update, *own, f"optim.weight_decay={decay}")


@reaches("optim.muon_momentum", "optim.name")
def muon(tmp_path, monkeypatch):
    for momentum in (0.95, 0.5):
        parts, batch, views = first_batch(*BARE, "optim.name=muon", f"optim.muon_momentum={momentum}")
        weight = parts.unit.student.bare.blocks[0].mlp.fc1.weight
        seen, optimizer = [], parts.engine.optimizer
        optimizer.register_step_pre_hook(lambda *_, seen=seen, weight=weight: seen.append(weight.grad.clone()))
        for _ in range(2):
            parts.engine.step(views, batch, 16)
        wanted = momentum * (1 - momentum) * seen[0] + (1 - momentum) * seen[1]
        torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], wanted)


@reaches("optim.muon_also", "optim.name")
def muons_outer_layers(tmp_path, monkeypatch):
    for also in ([], ["stem"], ["head"], ["head", "stem"]):
        parts, batch, views = first_batch(*BARE, "optim.name=muon", f"optim.muon_also={also}")
        parts.engine.step(views, batch, 16)
        bare, state = parts.unit.student.bare, parts.engine.optimizer.state
        stepped = {"stem": bare.patch_embed.proj.weight, "head": bare.head.weight}
        assert [key for key in ("head", "stem") if "momentum_buffer" in state[stepped[key]]] == also


@reaches("optim.name", "optim.args", "optim.layer_decay")
def timms_optimizer(tmp_path, monkeypatch):
    """timm's own AdaMax and its layer decay, beside those of the run."""
    lr, betas = 0.05, [0.5, 0.9]
    own = ("optim.name=timm:adamax", f"optim.args.betas={betas}", "optim.layer_decay=0.5", f"optim.lr={lr}")
    parts, batch, views = first_batch(*ALONE, "model.init=timm", "optim.weight_decay=0", *own)
    truth = copy.deepcopy(parts.unit)
    groups = param_groups_layer_decay(truth.student.bare, weight_decay=0.0, layer_decay=0.5)
    optimizer = create_optimizer_v2(groups, "adamax", lr=lr, betas=betas)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    parts.engine.set_learning_rate(lr)
    for _ in range(2):
        optimizer.zero_grad()
        truth(views.student, views.targets, None).loss.backward()
        optimizer.step()
        parts.engine.step(views, batch, 16)
    for mine, by_timm in zip(parts.unit.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(mine, by_timm, rtol=0, atol=0)


@reaches("optim.schedule", "optim.schedule_args")
def timms_schedule(tmp_path, monkeypatch):
    own = ("optim.lr=2e-3", "optim.warmup_epochs=0", "optim.epochs=4", "log.every_steps=3", "optim.schedule=timm:step")
    args = ("optim.schedule_args.decay_epochs=2", "optim.schedule_args.decay_rate=0.25")
    rows, _ = recorded(tmp_path, monkeypatch, *own, *args, "model.args.depth=1", "model.blocks=[0]")
    rates = [row["lr"] for row in rows if row["kind"] == "train"]
    assert rates == pytest.approx([2e-3, 2e-3, 5e-4, 5e-4], rel=1e-9)


@reaches("optim.ema")
def ema(tmp_path, monkeypatch):
    for decay, rate in ((0.5, 9 / 11), (0.1, 0.9)):
        parts, batch, views = first_batch(*ALONE, "model.init=timm", f"optim.ema={decay}")
        before = parts.unit.student.bare.head.weight.detach().clone()
        parts.engine.step(views, batch, 16)
        after = parts.unit.student.bare.head.weight.detach()
        mean = parts.engine.state_dict()["average"]["weights"]["bare.head.weight"]
        torch.testing.assert_close(mean, before + rate * (after - before))
    assert "average" not in parts_of(*ALONE, "optim.ema=0").engine.state_dict()


@reaches("optim.sam_rho")
def sharpness(tmp_path, monkeypatch):
    """The loss of the second pass is the first's and, to first order, rho times the length of its gradient."""
    for rho in (0.02, 0.1):
        parts, batch, views = first_batch(*ALONE, "model.init=timm", f"optim.sam_rho={rho}", "optim.name=sgd")
        seen, weights = [], [weight.detach().clone() for weight in parts.unit.parameters()]
        parts.unit.register_forward_hook(
            lambda module, given, out, seen=seen: seen.append(
                (out.loss.item(), [own.detach().clone() for own in module.parameters()])
            )
        )
        parts.engine.step(views, batch, 16)
        (below, first), (above, second) = seen
        assert all(torch.equal(own, before) for own, before in zip(first, weights, strict=True))
        moved = torch.sqrt(sum((new - old).square().sum() for new, old in zip(second, first, strict=True)))
        assert moved.item() == pytest.approx(rho, rel=1e-3) and above > below
    parts, batch, views = first_batch(*ALONE, "model.init=timm", "optim.sam_rho=0")
    parts.unit.register_forward_hook(lambda *_: seen.append(1))
    parts.engine.step(views, batch, 16)
    assert len(seen) == 3, "one pass"


def pretraining(*overrides: str):
    """Parts of a run without labels, of two small views."""
    own = ("pretrain.local_crops=2", "pretrain.outputs=20")
    return parts_of(*ALONE, "optim.epochs=4", *own, *overrides)


@reaches("pretrain.global_scale", "pretrain.local_scale", "pretrain.local_crops", "pretrain.local_size")
def crops_without_labels(tmp_path, monkeypatch):
    shares = ("pretrain.global_scale=[0.6,0.6]", "pretrain.local_scale=[0.25,0.25]")
    for count, size in ((2, 16), (1, 24)):
        parts = pretraining(*shares, f"pretrain.local_crops={count}", f"pretrain.local_size={size}")
        batch = next(iter(parts.train_loader.epoch(0)))
        assert batch.small.shape[1:] == (count, size, size, 3) and batch.images.shape[1:] == (2, 32, 32, 3)
        area = batch.crop[..., 2] * batch.crop[..., 3]
        assert (area[:, :2] - 0.6).abs().max() < 0.05 and (area[:, 2:] - 0.25).abs().max() < 0.05
    assert pretraining().unit.sizes == (32, 16)


@reaches(
    "pretrain.outputs",
    "pretrain.student_temperature",
    "pretrain.teacher_temperature",
    "pretrain.temperature_epochs",
    "pretrain.center_momentum",
    "pretrain.momentum",
    "pretrain.final_weight_decay",
    "pretrain.clip_each",
    "pretrain.frozen_epochs",
)
def teaching_without_labels(tmp_path, monkeypatch):
    """Each by what one update makes of it, from the same start, on the same views."""
    options = {
        "outputs": 30,
        "student_temperature": 0.2,
        "teacher_temperature": [0.1, 0.2],
        "temperature_epochs": 2,
        "center_momentum": 0.5,
        "momentum": 0.5,
        "final_weight_decay": 0.9,
        "clip_each": 0.001,
        "frozen_epochs": 4,
    }
    sgd = ("optim.name=sgd", "optim.momentum=0", "optim.lr=0.5")  # AdamW does not see how long a gradient is

    def after_a_step(*overrides: str, epoch: int = 3) -> dict[str, torch.Tensor]:
        parts = pretraining(*sgd, *overrides)
        training.begin_epoch(parts, epoch)
        views = parts.views(next(iter(parts.train_loader.epoch(0))), 0)
        parts.engine.step(views, None, len(views.student))
        weights = {name: own.detach() for name, own in parts.unit.named_parameters()}
        return {**weights, **{f"teacher.{name}": own for name, own in parts.teacher.state_dict().items()}}

    before = after_a_step()
    changed = {}
    for key, value in options.items():
        after = after_a_step(f"pretrain.{key}={value}")
        changed[key] = {name for name, own in before.items() if not torch.equal(own, after[name])}
    everywhere = {name for name in before if not name.startswith("teacher.")}
    for key in ("student_temperature", "teacher_temperature", "temperature_epochs", "clip_each"):
        assert len(changed[key] & everywhere) > 0.7 * len(everywhere), key
    assert changed["outputs"] >= {"head.last.weight", "teacher.center"}
    assert changed["center_momentum"] == {"teacher.center"}
    assert changed["momentum"] and all(name.startswith("teacher.") for name in changed["momentum"])
    assert "head.layers.0.weight" in changed["final_weight_decay"]
    assert "head.layers.0.bias" not in changed["final_weight_decay"]
    assert changed["frozen_epochs"] == {"head.last.weight", "teacher.head.last.weight"}
