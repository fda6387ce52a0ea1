"""PoorViT equals its authors' code in every form, begins as it does, and is whitened on the run's own images."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from refusals import refused
from resuming import assert_same_run, cut_before_step
from timm.layers import DropPath
from torch import Tensor, nn

from fastlg.assemble import assemble, first_views
from fastlg.config import load_config
from fastlg.data.stores import open_stores
from fastlg.errors import UserError
from fastlg.models import Student
from fastlg.models.param_groups import param_groups
from fastlg.models.systems.poorvit import row_column_table
from fastlg.models.systems.whitening import expect_patches, start_whitening
from fastlg.models.weights import load_reference, reference_name

FORMS = ("small", "base_small", "tokenonly_small")
SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}


@pytest.fixture
def systems(shared):
    return shared / "systems" / "golden"


def build(size: int = 32, classes: int = 10, **arguments) -> Student:
    return Student("poorvit", num_classes=classes, image_size=size, model_args=arguments)


def read(path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    arrays = dict(np.load(path))
    settings = json.loads(str(arrays.pop("config")))
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    return {key[3:]: value.float() for key, value in tensors.items() if key.startswith("sd/")}, tensors, settings


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("form", FORMS)
def test_it_computes_what_the_authors_code_does(form, dtype, near, systems):
    state, arrays, settings = read(systems / f"forward_poorvit_{form}.npz")
    size, classes = settings.pop("img_size")[0], settings.pop("num_classes")
    unknown = ("seed", "norm_eps", "drop_path_rate")
    student = build(size, classes, **{key: value for key, value in settings.items() if key not in unknown})
    load_reference(student, state)
    student.guide(range(student.depth))
    student.to(dtype).eval()
    images = arrays["input"].to(dtype)
    with torch.no_grad():
        logits, tokens = student(images)
        last = student.bare.forward_features(images)
    found = {
        "logits_f64": logits,
        "feature_norm": last,
        **{f"feature_{block}": own for block, own in enumerate(tokens)},
    }
    for key, got in found.items():
        torch.testing.assert_close(got, arrays[key].to(dtype), rtol=near, atol=near, msg=key)
    assert len(tokens) == settings["depth"]


def test_parameters_and_names_are_the_published(systems):
    counts = json.loads((systems / "poorvit_params.json").read_text())
    seen = 0
    for text, wanted in counts.items():
        match = re.fullmatch(r"ncls(\d+)_depth(\d+)_mode\[(\w*)\]_clstok(\d+)", text)
        if match is None:
            continue
        classes, depth, mode, tokens = match.groups()
        with torch.device("meta"):
            own = {"depth": int(depth), "latent_mode": mode, "num_cls_token": int(tokens)}
            model = build(classes=int(classes), **own)
        assert sum(weight.numel() for weight in model.parameters()) == wanted, text
        seen += 1
    assert seen >= 20
    with torch.device("meta"):
        for only in (1, 2):
            model = build(num_cls_token=4, depth_token_only=only)
            wanted = counts[f"ncls10_depth12_clstok4_tokenonly{only}"]
            assert sum(weight.numel() for weight in model.parameters()) == wanted
        weights = list(build(sin_pos=True).parameters())
        assert sum(own.numel() for own in weights) == counts["ncls10_depth12_sin_pos_total"]
        trained = sum(own.numel() for own in weights if own.requires_grad)
        assert trained == counts["ncls10_depth12_sin_pos_trainable"]
        tiny = build(64, 200, patch_size=8, latent_mode="q")
        assert sum(own.numel() for own in tiny.parameters()) == counts["tiny200_64px_p8_depth12_q"]
        bare = build(num_cls_token=2, latent_mode="q", depth_token_only=1).bare
    names = json.loads((systems / "poorvit_state_dict.json").read_text())
    assert {reference_name(bare, key): list(value.shape) for key, value in bare.state_dict().items()} == names


def test_sin_cos_positions_are_the_authors_and_are_never_trained(systems):
    table = torch.from_numpy(np.load(systems / "poorvit_sincos.npz")["pos_embed"])
    torch.testing.assert_close(row_column_table((8, 8), 16), table[0, 1:], rtol=1e-6, atol=1e-6)
    student = build(32, **{**SMALL, "patch_size": 4, "embed_dim": 16, "num_heads": 2}, sin_pos=True)
    torch.testing.assert_close(student.bare.pos_embed, table, rtol=1e-6, atol=1e-6)
    groups = [id(own) for group in param_groups(student, 0.05) for own in group["params"]]
    assert id(student.bare.pos_embed) not in groups and len(groups) == len(list(student.parameters())) - 1
    more = build(24, **SMALL, sin_pos=True, num_cls_token=3).bare.pos_embed
    assert not more[:, :3].any() and torch.equal(more[0, 3:], row_column_table((3, 3), 24))


def test_it_begins_as_the_authors_and_drops_paths_as_they_do():
    torch.manual_seed(0)
    model = Student("poorvit", num_classes=10, image_size=32, drop_path=0.1).bare
    for name, weight in model.named_parameters():
        if name.endswith(".bias") and "patch_embed" not in name:
            assert not weight.any(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
        elif "patch_embed" in name:
            assert 0.8 * 48**-0.5 < weight.abs().max() <= 48**-0.5, name
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.15), name
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.1 * block / 11 for block in range(1, 12) for _ in range(2)])
    only = Student("poorvit", num_classes=3, image_size=32, drop_path=0.2, model_args={**SMALL, "depth_token_only": 2})
    first, second = only.bare.blocks_token_only
    assert isinstance(first.drop_path1, nn.Identity) and second.drop_path1.drop_prob == pytest.approx(0.1)


def test_whitening_rows_are_the_authors(systems):
    arrays = {
        key: value for key, value in np.load(systems / "poorvit_whitening.npz").items() if value.dtype.kind == "f"
    }
    arrays = {key: torch.from_numpy(value) for key, value in arrays.items()}
    conv = nn.Conv2d(3, 16, 2, 2)
    with torch.no_grad():
        conv.weight.copy_(arrays["weight_before"])
        conv.bias.copy_(arrays["bias"])
    said = start_whitening(conv, arrays["images"].float().split([4, 2]))
    assert said == "whitening in 12 of 16 channels, from 6 views"
    found, wanted = conv.weight.detach(), arrays["weight_after_f32"]
    torch.testing.assert_close(found[:12].abs(), wanted[:12].abs(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found[:12].abs(), arrays["rows_f64"].abs().float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(found[12:], arrays["weight_before"][12:]) and torch.equal(conv.bias.detach(), arrays["bias"])


def test_a_whitened_run_sees_its_own_views_and_its_patches_become_uncorrelated(project, capsys):
    own = ("teacher=null", "model.init=whitening", "model.args.patch_size=4")
    config = load_config("student.yaml", own)
    stores = open_stores(config.data)
    conv = assemble(config, stores, None, None).unit.student.bare.patch_embed.proj
    assert "start    whitening in 48 of 48 channels, from" in capsys.readouterr().out
    images = torch.cat(list(first_views(config, stores, torch.device("cpu"))))
    patches = images.double().unfold(2, 4, 1).unfold(3, 4, 1).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    made = patches @ conv.weight.detach().double().flatten(1).mT
    moments = made.mT @ made / len(made)
    off = moments - moments.diag().diag()
    assert off.abs().max() < 1e-4 and moments.diag().max() < 1 + 1e-4 and moments.diag()[0] > 0.99
    plain = assemble(config.replace({"model.init": "reference"}), stores, None, None).unit.student.bare
    assert torch.equal(plain.patch_embed.proj.bias, conv.bias)
    with pytest.raises(UserError, match="does not embed patches by one convolution"):
        expect_patches(nn.Linear(2, 2), "it")


def test_a_guided_whitened_run_of_several_class_tokens_goes_on_to_the_same_bits(project, fastlg, monkeypatch):
    arguments = {**SMALL, "patch_size": 4, "embed_dim": 48, "num_cls_token": 2, "latent_mode": "q", "latent_dim": 8}
    arguments["depth_token_only"] = 1
    line = (
        "train",
        "student.yaml",
        "model.name=poorvit",
        f"model.args={json.dumps(arguments)}",
        "model.init=whitening",
    )
    line += ("model.blocks=auto", "optim.epochs=1", "optim.warmup_epochs=0", "log.checkpoint_steps=1")
    status, _, err = fastlg(*line, "run.name=whole")
    assert status == 0, err
    with cut_before_step(monkeypatch, 3):
        assert fastlg(*line, "run.name=cut")[0] == 130
    status, out, err = fastlg(*line, "run.name=cut")
    assert status == 0 and "whitening" not in out, err
    assert_same_run(project / "runs" / "whole", project / "runs" / "cut")


def test_what_contradicts_itself_is_one_line(project, fastlg):
    table = (
        (("model.args={num_cls_token: 2, global_pool: avg}",), "num_cls_token 2 class tokens", "num_cls_token 1"),
        (("model.args={num_cls_token: 2, global_pool: ''}",), "tells every token's class instead of the image's"),
        (("model.args={num_cls_token: 0}",), "num_cls_token is 0; it is a whole number, 1 or more"),
        (("model.args={depth: 0}",), "depth is 0; it is a whole number, 1 or more"),
        (("model.args={latent_mode: qx}",), "latent_mode 'qx'"),
        (("model.args={latent_mode: qq}",), "latent_mode 'qq'"),
        (("model.args={latent_dim: 0}",), "latent_dim is 0"),
        (("model.args={depth_token_only: -1}",), "depth_token_only is -1; it is a whole number, 0 or more"),
        (("model.args={depth_token_only: true}",), "depth_token_only is True"),
        (("model.args={num_cls_token: 1.5}",), "num_cls_token is 1.5"),
        (("model.args={sin_pos: nope}",), "sin_pos is 'nope'; it is true or false"),
        (("model.args={sin_pos: true, embed_dim: 30, num_heads: 2}",), "sin_pos", "not 30"),
        (("model.args={embed_dim: 32, num_heads: 5}",), "32 is no multiple of 5 heads"),
        (("model.args={embed_dim: 36}", "model.init=whitening"), "36 channels", "4 x 4 px need 48", "embed_dim=48"),
        (("model.args={}", "model.init=mimetic"), "is no plain ViT"),
        (("model.args={patch_size: 5}",), "does not fit"),
    )
    for overrides, *says in table:
        refused(fastlg("train", "student.yaml", "model.name=poorvit", *overrides), "model.", *says)
    assert not (project / "runs").exists()
