"""timm's optimizers, schedules and layer decay are timm's own: against its functions, by hand, over a checkpoint."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch
from refusals import refused
from resuming import assert_same_run, cut_before_step, same
from timm.optim import create_optimizer_v2, list_optimizers
from timm.optim._param_groups import param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from torch import nn

from fastlg.config import OptimConfig
from fastlg.engine.precision import build_optimizer, set_rates
from fastlg.engine.protocol import group_keys, load_optimizer_state, optimizer_state
from fastlg.engine.schedule import schedule_of
from fastlg.engine.update.timm_optimizers import NOT_HERE, check_optimizer, keeps_on_host
from fastlg.engine.update.timm_schedules import NAMES
from fastlg.errors import UserError
from fastlg.models import Student, resnet20
from fastlg.models.param_groups import layer_scales, param_groups
from fastlg.run.checkpoint import load_checkpoint

HERE = [name for name in list_optimizers() if not name.startswith(tuple(NOT_HERE))]
SCALES = {"body.weight": 0.5, "body.bias": 0.5}  # two groups of each kind


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.norm = nn.Conv2d(2, 4, 3), nn.Linear(4, 6), nn.LayerNorm(6)


def drawn_net() -> Net:
    torch.manual_seed(3)
    net = Net()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net


def step(net: Net, optimizer, number: int) -> None:
    torch.manual_seed(100 + number)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("name", HERE)
def test_an_optimizer_steps_as_timms_and_goes_on_from_a_checkpoint_to_the_same_bits(name):
    optim, rates = OptimConfig(name=f"timm:{name}", lr=0.03, weight_decay=0.1), (0.01, 0.03, 0.02, 0.015)
    by_timm, ours = drawn_net(), drawn_net()
    truth = create_optimizer_v2(param_groups(by_timm, 0.1, scales=SCALES), name, lr=0.03)
    optimizer = build_optimizer(param_groups(ours, 0.1, scales=SCALES), optim)
    for number, rate in enumerate(rates):
        for group in truth.param_groups:
            group["lr"] = rate * group["lr_scale"]
        step(by_timm, truth, number)
    known = group_keys(optimizer)
    for number, rate in enumerate(rates):
        if number == 2:
            buffer = io.BytesIO()
            torch.save({"unit": ours.state_dict(), **optimizer_state(ours, optimizer, known)}, buffer)
            buffer.seek(0)
            saved = torch.load(buffer, weights_only=True)
            ours = drawn_net()
            optimizer = build_optimizer(param_groups(ours, 0.1, scales=SCALES), optim)
            ours.load_state_dict(saved["unit"])
            load_optimizer_state(ours, optimizer, saved)
        set_rates(optimizer, rate)
        step(ours, optimizer, number)
    assert same(dict(ours.state_dict()), dict(by_timm.state_dict()))


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("lam", {}, ["timm:lam", "did you mean timm:lamb"]),
        ("lookahead_lamb", {}, ["does not have"]),
        ("adahessian", {}, ["second derivatives"]),
        ("kron", {}, ["random generator"]),
        ("bnblion8bit", {}, ["bitsandbytes"]),
        ("fusedlamb", {}, ["Apex"]),
        ("lamb", {"beta": [0.9, 0.99]}, ["optim.args.beta", "did you mean betas"]),
        ("lamb", {"lr": 1e-3}, ["set optim.lr"]),
        ("adamw", {"capturable": True}, ["the engine decides"]),
        ("lamb", {"betas": 5}, ["optim.args.betas is 5; timm:lamb takes 2 numbers, as [0.9, 0.999]"]),
        ("lion", {"betas": ["a", "b"]}, ["optim.args.betas is ['a', 'b']; timm:lion takes 2 numbers"]),
        ("adamw", {"betas": [0.9], "eps": 1e-8}, ["optim.args.betas is [0.9]; timm:adamw takes 2 numbers"]),
        ("lamb", {"eps": "x"}, ["optim.args.eps is x; timm:lamb takes a number, as 1e-06"]),
        ("lamb", {"eps": math.nan}, ["optim.args.eps is nan; timm:lamb takes a number"]),
        ("sgd", {"nesterov": "maybe"}, ["optim.args.nesterov is maybe; timm:sgd takes true or false"]),
        ("muon", {"ns_steps": 2.5}, ["optim.args.ns_steps is 2.5; timm:muon takes a whole number, as 5"]),
        ("mars", {"mars_type": 3}, ["optim.args.mars_type is 3; timm:mars takes a word, as adamw"]),
        ("adafactor", {"betas": "x"}, ["optim.args.betas is x; timm:adafactor takes numbers"]),
        ("sgd", {"momentum": -1, "nesterov": False}, ["optim.args.momentum is -1, which timm:sgd refuses: Invalid"]),
        ("sgd", {"momentum": -1, "dampening": 2, "weight_decay": 1}, ["optim.args.weight_decay cannot be set"]),
        ("lion", {"betas": [0.9, 3]}, ["optim.args.betas is [0.9, 3], which timm:lion refuses: Invalid beta"]),
    ],
)
def test_an_optimizer_that_cannot_be_is_one_line(name, args, words):
    with pytest.raises(UserError) as refusal:
        check_optimizer(OptimConfig(name=f"timm:{name}", args=args))
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_only_what_torch_can_count_on_the_device_is_captured():
    kept = {name: keeps_on_host(OptimConfig(name=f"timm:{name}")) for name in ("adamw", "nadam", "lamb", "adan", "sgd")}
    assert [name for name, why in kept.items() if not why] == ["adamw", "nadam"]
    assert kept["lamb"] == "timm:lamb keeps numbers of a step on the host"
    assert not any(keeps_on_host(OptimConfig(name=name)) for name in ("adamw", "sgd", "muon"))


OWN_ARGS = {
    "step": {"decay_epochs": 3, "decay_rate": 0.5},
    "multistep": {"decay_milestones": [2, 5]},
    "poly": {"decay_rate": 2.0, "noise": [0.3, 0.8], "noise_seed": 5},
    "cosine": {"k_decay": 1.5},
    "rsqrt": {"stable_timescale": 2},
}


@pytest.mark.parametrize(("name", "warm"), [*itertools.product(NAMES, (0, 2))])
def test_a_schedule_is_timms_epoch_by_epoch_in_any_order(name, warm):
    args, weights = OWN_ARGS.get(name, {}), [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]], "lr_scale": 0.25}, {"params": [weights[1]]}]
    optimizer = torch.optim.SGD(groups, lr=0.4)
    options = {"min_lr": 0.01, "warmup_epochs": warm, "warmup_lr": 0.1}
    scheduler, _ = create_scheduler_v2(optimizer, name, num_epochs=9, **options, **args)
    truth = []
    for epoch in range(9):  # as timm's own loop
        scheduler.step(epoch)
        truth.append([group["lr"] for group in optimizer.param_groups])
    optim = {"lr": 0.4, "min_lr": 0.01, "warmup_epochs": warm, "warmup_factor": 0.25, "epochs": 9}
    rate = schedule_of(OptimConfig(**optim, schedule=f"timm:{name}", schedule_args=args))
    for epoch in (8, 0, 5, 3, 1, 7, 2, 6, 4):
        set_rates(optimizer, rate(epoch))
        assert [group["lr"] for group in optimizer.param_groups] == truth[epoch]
    if name == "cosine":
        ours = schedule_of(OptimConfig(**optim))
        same_curve = schedule_of(OptimConfig(**optim, schedule="timm:cosine"))
        assert [ours(epoch) for epoch in range(9)] == pytest.approx([same_curve(epoch) for epoch in range(9)], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("plateau", {}, ["what is measured"]),
        ("steps", {}, ["did you mean timm:step?"]),
        ("step", {"decay_epoch": 3}, ["did you mean decay_epochs"]),
        ("step", {"min_lr": 0.0}, ["set optim.min_lr"]),
        ("step", {"step_on_epochs": False}, ["one throughout an epoch"]),
        ("cosine", {"cooldown_epochs": 4}, ["lasts 13", "optim.epochs=13 with optim.schedule_args.num_epochs=9"]),
        ("wsd", {"decay_epochs": 90}, ["schedule_args.decay_epochs is 90, which timm:wsd refuses: wsd schedule"]),
        ("step", {"decay_epochs": 0, "decay_rate": 0.5}, ["schedule_args.decay_epochs is 0, which timm:step refuses"]),
        ("step", {"decay_epochs": "x"}, ["optim.schedule_args.decay_epochs is x; timm:step takes a number"]),
        ("cosine", {"noise": "x"}, ["optim.schedule_args.noise is x; timm:cosine takes a number or a list of them"]),
        ("cosine", {"warmup_prefix": 1}, ["optim.schedule_args.warmup_prefix is 1; timm:cosine takes true or false"]),
        ("cosine", {"decay_rate": None}, ["optim.schedule_args.decay_rate is None; timm:cosine takes a number"]),
        ("cosine", {"num_epochs": 0}, ["optim.schedule_args.num_epochs is 0, which timm:cosine refuses"]),
        ("step", {"decay_rate": -3, "decay_epochs": 1}, ["a rate of -", "between 0 and 2 times optim.lr"]),
        ("step", {"decay_epochs": -1}, ["in epoch", "between 0 and 2 times optim.lr"]),
        (
            "multistep",
            {"decay_milestones": 3},
            ["decay_milestones is 3; timm:multistep takes a list of numbers"],
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_one_line(name, args, words):
    with pytest.raises(UserError) as refusal:
        schedule_of(OptimConfig(schedule=f"timm:{name}", schedule_args=args, epochs=9, warmup_epochs=0))
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_a_longer_schedule_is_taken_as_its_refusal_says():
    own = {"schedule": "timm:cosine", "warmup_epochs": 0, "lr": 0.4, "min_lr": 0.1}
    rate = schedule_of(OptimConfig(**own, epochs=13, schedule_args={"cooldown_epochs": 4, "num_epochs": 9}))
    assert [rate(epoch) for epoch in range(8, 13)] == [pytest.approx(rate(8)), *[0.1] * 4]


TINY = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
STUDENTS = {
    "vit_tiny_patch16_224": (32, TINY),
    "convit_tiny": (32, {"patch_size": 8, "depth": 3, "local_up_to_layer": 2}),
    "pvt_v2_b0": (32, {}),
    "t2t_vit_7": (32, {"depth": 2}),
    "cvt_13": (32, {}),
    "pvt_tiny": (32, {}),
    "resnet10t": (32, {}),  # of a walk by timm's intermediates
}


@pytest.mark.parametrize("name", STUDENTS)
def test_layers_learn_at_timms_shares_of_the_rate(name):
    size, args = STUDENTS[name]
    bare = Student(name, num_classes=3, image_size=size, model_args=args).bare
    groups = param_groups_layer_decay(bare, layer_decay=0.6)
    truth = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found = layer_scales(bare, name, 0.6)
    assert len(set(found.values())) > 2 and max(found.values()) == 1.0
    assert {own: truth[id(p)] for own, p in bare.named_parameters()} == found
    by_name = {id(p): found[own] for own, p in bare.named_parameters()}
    for group in param_groups(bare, 0.1, muon=True, scales=found):
        assert {by_name[id(p)] for p in group["params"]} == {group["lr_scale"]}


@pytest.mark.parametrize("model", [resnet20(3), nn.Linear(2, 2)], ids=["resnet20", "own"])
def test_a_network_that_does_not_tell_its_layers_is_refused(model):
    with pytest.raises(UserError, match="group_matcher.*optim.layer_decay=1"):
        layer_scales(model, "it", 0.5)


EVERY = (
    "optim.name=timm:adan",
    "optim.args.betas=[0.9,0.95,0.99]",
    "optim.layer_decay=0.7",
    "optim.schedule=timm:poly",
    "optim.schedule_args.noise=[0.3]",
    "augment.color_jitter=0.3",
    "augment.rand_augment=three-augment",
    "engine.checkpointing=true",
)


def test_a_run_with_every_option_goes_on_to_the_same_bits(project, fastlg, monkeypatch):
    """Cut in its second epoch, behind a checkpoint inside of it; 39 images a step."""
    run = (
        "train",
        "student.yaml",
        *EVERY,
        "model.drop_path=0.3",
        "optim.global_batch_size=39",
        "optim.warmup_epochs=0",
    )
    whole = fastlg(*run, "run.name=whole", "log.checkpoint_steps=1")
    assert whole[0] == 0, whole[2]
    with cut_before_step(monkeypatch, 4):
        assert fastlg(*run, "run.name=cut", "log.checkpoint_steps=1")[0] == 130
    status, out, err = fastlg(*run, "run.name=cut", "log.checkpoint_steps=1")
    assert status == 0 and "resumed" in out, err
    assert_same_run(project / "runs" / "whole", project / "runs" / "cut")
    plain = fastlg(*run, "run.name=plain", "engine.checkpointing=false")
    assert plain[0] == 0, plain[2]
    kept = [load_checkpoint(project / "runs" / name / "checkpoints" / "last.pt")["unit"] for name in ("whole", "plain")]
    assert same(*kept), "checkpointing changes no bit"
    assert len(load_checkpoint(project / "runs" / "cut" / "checkpoints" / "last.pt")["engine"]["optimizer_groups"]) > 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("optim.name=lamb",), ["one of adamw, sgd, muon or timm:NAME"]),
        (("optim.name=timm:lamd",), ["did you mean timm:lamb"]),
        (("optim.args.eps=1",), ["use optim.name=timm:adamw"]),
        (("optim.schedule=step",), ["one of cosine, linear or timm:NAME"]),
        (("optim.schedule_args.decay_rate=1",), ["use optim.schedule=timm:cosine"]),
        (("optim.schedule=timm:step", "optim.flat=0.5"), ["flat is 0.5", "leave it out"]),
        (("optim.name=timm:lion", "optim.betas=[0.8,0.9]"), ["set optim.args.betas"]),
        (("optim.name=timm:lamb", "engine.zero_stage=2"), ["steps whole weights"]),
        (("optim.layer_decay=0.5", "model.name=pit_ti_224", "model.args={}"), ["group_matcher"]),
    ],
)
def test_the_command_line_refuses_in_one_line_before_anything_is_trained(overrides, words, project, fastlg):
    refused(fastlg("train", "student.yaml", "model.blocks=auto", *overrides), *words)
    assert not (project / "runs").exists()
