"""Weight decay reaches what the reference code decays, and nothing else."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from fastlg.models import Student, resnet20, resnet56
from fastlg.models.param_groups import param_groups
from fastlg.models.weights import reference_name

MODELS = {
    "deit/deit-ti_c100_ours": "deit_tiny_patch16_224",
    "deit/deit-ti_c100_base": "deit_tiny_patch16_224",
    "convit/convit-ti_c100_ours": "convit_tiny",
    "pit/pit-ti_c100_ours": "pit_ti_224",
    "pvtv2/pvtv2-b0_c100_ours": "pvt_v2_b0",
    "t2t/t2t-7_c100_ours": "t2t_vit_7",
    "pvt/pvt-ti_c100_ours": "pvt_tiny",
    "pvt/pvt-ti_c100_base": "pvt_tiny",
    "cvt/cvt-13_c100_ours": "cvt_13",
    "resnet/r-56_c100": "resnet56",
}


class Unit(nn.Module):
    """A student wrapped with its projections, as training does."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student
        self.projections = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(3))


@pytest.mark.parametrize("run", MODELS)
def test_groups_equal_the_references_by_name(run, golden):
    wanted = json.loads((golden / "schedule.json").read_text())["optimizer"]["groups"][run]
    name = MODELS[run]
    model = resnet56(100) if name == "resnet56" else Student(name, num_classes=100, image_size=224).bare
    module = Unit(model) if run.endswith("_ours") else model
    for group, kind in zip(param_groups(module, 0.05), ("no_decay", "decay"), strict=True):
        names = set(wanted[f"head_{kind}"]["names"]) | set(wanted[f"body_{kind}"]["names"])
        names = {key.removeprefix("student_model.") for key in names if not key.startswith("feature_transforms.")}
        assert group["weight_decay"] == (0.05 if kind == "decay" else 0.0)
        assert names_of(group, model) == names


def names_of(group: dict, model: nn.Module) -> set[str]:
    chosen = {id(parameter) for parameter in group["params"]}
    return {reference_name(model, name) for name, p in model.named_parameters() if id(p) in chosen}


def test_every_trainable_parameter_is_in_exactly_one_group():
    student = Student("convit_tiny", num_classes=3, image_size=32, model_args={"depth": 2, "local_up_to_layer": 1})
    unit = Unit(student)
    student.bare.pos_embed.requires_grad_(False)
    groups = param_groups(unit, 0.1)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in unit.parameters() if p.requires_grad)
    spared = {id(p) for p in groups[0]["params"]}
    assert all(id(p.bias) in spared and id(p.weight) not in spared for p in unit.projections)
    torch.optim.AdamW(groups, lr=1e-3)


def test_distillation_tokens_are_spared():
    student = Student("deit_tiny_distilled_patch16_224", num_classes=3, image_size=32, model_args={"depth": 1})
    spared = {id(p) for p in param_groups(student, 0.1)[0]["params"]}
    assert {id(student.bare.dist_token), id(student.bare.cls_token), id(student.bare.pos_embed)} <= spared


def test_a_module_without_biases_has_one_group():
    assert [group["weight_decay"] for group in param_groups(nn.Linear(3, 2, bias=False), 0.3)] == [0.3]


MUON = {  # model -> (arguments, names of its matrices between hidden layers, blocks' numbers as N)
    "deit_tiny_distilled_patch16_224": (
        {"depth": 2},
        "blocks.N.attn.proj blocks.N.attn.qkv blocks.N.mlp.fc1 blocks.N.mlp.fc2",
    ),
    "convit_tiny": (  # pos_proj maps 3 numbers of a position
        {"depth": 2, "local_up_to_layer": 1},
        "blocks.N.attn.proj blocks.N.attn.qk blocks.N.attn.qkv blocks.N.attn.v blocks.N.mlp.fc1 blocks.N.mlp.fc2",
    ),
    "pit_ti_224": (  # pools are depthwise; pos_embed is 4-D
        {},
        "transformers.N.blocks.N.attn.proj transformers.N.blocks.N.attn.qkv transformers.N.blocks.N.mlp.fc1 "
        "transformers.N.blocks.N.mlp.fc2 transformers.N.pool.fc",
    ),
    "pvt_v2_b0": (  # dwconv is depthwise
        {},
        "stages.N.blocks.N.attn.kv stages.N.blocks.N.attn.proj stages.N.blocks.N.attn.q stages.N.blocks.N.attn.sr "
        "stages.N.blocks.N.mlp.fc1 stages.N.blocks.N.mlp.fc2 stages.N.downsample.proj",
    ),
    "t2t_vit_7": (  # what makes the tokens counts as the patch embedding
        {},
        "blocks.N.attn.proj blocks.N.attn.qkv blocks.N.mlp.fc1 blocks.N.mlp.fc2",
    ),
    "pvt_tiny": (
        {},
        "stages.N.blocks.N.attn.kv stages.N.blocks.N.attn.proj stages.N.blocks.N.attn.q stages.N.blocks.N.attn.sr "
        "stages.N.blocks.N.mlp.fc1 stages.N.blocks.N.mlp.fc2 stages.N.downsample.proj",
    ),
    "cvt_13": (  # convolutions of the projections are depthwise
        {},
        "stages.N.blocks.N.attn.proj stages.N.blocks.N.attn.proj_k stages.N.blocks.N.attn.proj_q "
        "stages.N.blocks.N.attn.proj_v stages.N.blocks.N.mlp.fc1 stages.N.blocks.N.mlp.fc2 stages.N.downsample.proj",
    ),
    "resnet20": (None, "stages.N.N.conv1 stages.N.N.conv2 stages.N.N.shortcut.N"),
}


@pytest.mark.parametrize("name", MUON)
def test_muon_steps_the_matrices_between_hidden_layers(name):
    arguments, wanted = MUON[name]
    model = resnet20(5) if arguments is None else Student(name, num_classes=5, image_size=64, model_args=arguments).bare
    unit = Unit(model)
    groups = param_groups(unit, 0.05, muon=True)
    assert [group.get("muon", False) for group in groups] == [False, False, True]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.05, 0.05]
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in unit.parameters())
    own = {id(parameter) for parameter in groups[2]["params"]}
    found = {re.sub(r"\b\d+\b", "N", key) for key, parameter in unit.named_parameters() if id(parameter) in own}
    assert found == {"projections.N.weight", *(f"student.{key}.weight" for key in wanted.split())}
    plain = param_groups(unit, 0.05)
    assert [id(parameter) for parameter in groups[0]["params"]] == [id(parameter) for parameter in plain[0]["params"]]


OUTER = {  # model -> names of the matrices that see pixels, and of those that tell classes apart
    "deit_tiny_distilled_patch16_224": ({"patch_embed.proj"}, {"head", "head_dist"}),
    "t2t_vit_7": ({"patch_embed.performers.1.attn.kqv", "patch_embed.proj"}, {"head"}),  # two of many
    "resnet20": ({"stem.conv"}, {"head"}),
}


@pytest.mark.parametrize("also", [("stem",), ("head",), ("stem", "head")], ids="-".join)
@pytest.mark.parametrize("name", OUTER)
def test_muon_steps_first_and_last_layers_where_it_is_told_to(name, also):
    arguments, _ = MUON[name]
    model = resnet20(5) if arguments is None else Student(name, num_classes=5, image_size=64, model_args=arguments).bare
    unit = Unit(model)
    hidden, more = (
        {key for key, own in unit.named_parameters() if any(own is other for other in groups[-1]["params"])}
        for groups in (param_groups(unit, 0.05, muon=True), param_groups(unit, 0.05, muon=True, also=also))
    )
    stem, head = ({f"student.{key}.weight" for key in names} for names in OUTER[name])
    assert hidden < more and (stem <= more) == ("stem" in also) and (head <= more) == ("head" in also)
    assert {key.split(".")[1].partition("_")[0] for key in more - hidden} <= {"patch", "stem", "head"}
