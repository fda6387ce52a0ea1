"""Starts with structure: equal to their authors' numbers, a function of the seed alone, and refused where none fits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from refusals import refused
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor

from fastlg.assemble import assemble
from fastlg.config import load_config
from fastlg.data.stores import open_stores
from fastlg.models import Student
from fastlg.models.systems import structured
from fastlg.models.systems.impulse import fit, impulses, refine


@pytest.fixture
def systems(shared):
    return shared / "systems" / "golden"


def read(path) -> dict[str, Tensor]:
    arrays = dict(np.load(path))
    return {key: torch.from_numpy(value).double() for key, value in arrays.items() if value.dtype.kind in "fi"}


def near(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def vit(size: int = 24, **more) -> Student:
    arguments = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, **more}
    torch.manual_seed(1)
    return Student("vit_tiny_patch16_224", num_classes=5, image_size=size, model_args=arguments)


def parts_of(student: Student, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W_q and W_k [heads, d, D], W_v, W_proj [D, D] of a block."""
    layer = student.bare.blocks[block].attn
    query, key, value = layer.qkv.weight.detach().double().unflatten(0, (3, layer.num_heads, -1))
    return query, key, value.flatten(0, 1), layer.proj.weight.detach().double()


def test_positions_are_the_authors_table_and_timms(systems):
    table = structured.sincos_table((4, 4), 24)
    near(table, read(systems / "init_sincos.npz")["pe_4x4_dim24"], 1e-6)
    near(structured.sincos_table((3, 5), 16), build_sincos2d_pos_embed([3, 5], dim=16).double(), 1e-6)


def test_mimetic_weights_are_the_authors(systems):
    """Signs of singular vectors are free: products, and sizes of entries, are compared."""
    arrays = read(systems / "init_mimetic.npz")
    noise = list(arrays["noise"])
    for block in range(2):
        for head in range(3):
            query, key = structured.mimetic_queries(noise[3 * block + head], 8)
            near(query.mT @ key, arrays["QtK"][block, head])
            near(query.abs(), arrays["W_q"][block, head].abs())
            near(key.abs(), arrays["W_k"][block, head].abs())
        value, projection = structured.mimetic_values(noise[6 + block], transposed=False)
        near(value @ projection, arrays["VP"][block])
        near(value.abs(), arrays["W_v"][block].abs())
        near(projection.abs(), arrays["W_proj"][block].abs())
        value, projection = structured.mimetic_values(noise[6 + block])
        near((projection @ value).mT, arrays["VP"][block])


def test_impulses_are_fitted_step_by_step_as_the_authors_do(systems):
    arrays = read(systems / "init_impulse.npz")
    positions = F.layer_norm(arrays["pe"], (24,), eps=1e-5)
    target = impulses((4, 4), arrays["offset_index"].int().tolist())
    assert torch.equal(target.double(), arrays["target"])
    for steps in (1, 101, 200):
        query, key, loss = refine(positions, target, arrays["Q_init"], arrays["K_init"], steps=steps)
        near(query, arrays[f"Q_{steps}"])
        near(key, arrays[f"K_{steps}"])
    assert loss < arrays["loss_first5"][0]


def test_a_fit_begins_where_the_authors_does_and_is_drawn_of_the_generator_alone(systems):
    positions = F.layer_norm(structured.sincos_table((3, 3), 16), (16,))
    target, drawn = impulses((3, 3), [1, 4]), []
    for seed in (1, 1, 2):
        drawn.append(fit(positions, target, 8, torch.Generator().manual_seed(seed), steps=1))
    assert torch.equal(drawn[0][0], drawn[1][0]) and not torch.equal(drawn[0][0], drawn[2][0])
    wanted = read(systems / "init_impulse.npz")["Q_init"]
    assert wanted.abs().max() < math.sqrt(1 / (8 * 3)) and drawn[0][0].abs().max() < 1.5 * math.sqrt(1 / (8 * 2))
    assert drawn[0][0].std() == pytest.approx(math.sqrt(1 / (8 * 2)) / math.sqrt(3), rel=0.15)


def test_closed_impulses_are_the_authors(systems):
    arrays = read(systems / "init_impulse_closed.npz")
    positions = F.layer_norm(arrays["pe"], (24,), eps=1e-5)
    target = impulses((6, 6), structured.OFFSETS[:3]).double()
    assert torch.equal(target, arrays["target"])
    query, key = structured.closed_queries(positions, target, arrays["noise"], 8)
    near(query @ key, arrays["QK"])
    seen = (positions @ (7 * query) @ (7 * key) @ positions.mT * 8**-0.5).softmax(-1)
    near(seen, arrays["attn_at_norm_q7"])


@pytest.mark.parametrize("heads", [3, 12])
def test_a_mimetic_vit_has_the_statistics_of_the_authors(heads, systems):
    wanted = json.loads((systems / "init_stats.json").read_text())[f"dim192_heads{heads}"]
    student = vit(embed_dim=192, depth=2, num_heads=heads)
    structured.start_structured(student.bare, "mimetic", 0)
    for block in range(2):
        query, key, value, projection = parts_of(student, block)
        for head in range(heads):
            trace = (query[head].mT @ key[head]).trace().item() / 192
            assert trace == pytest.approx(wanted["mean_trace_QtK_over_dim"], abs=6 * wanted["std"] + 0.004)
        assert query.norm(dim=(1, 2)).mean().item() == pytest.approx(wanted["mean_fro_Wq"], rel=0.01)
        assert value.std().item() == pytest.approx(wanted["std_Wv"], rel=0.01)
        assert projection.std().item() == pytest.approx(wanted["std_Wproj"], rel=0.01)
        trace = (projection @ value).trace().item() / 192
        assert trace == pytest.approx(wanted["mean_trace_PV_over_dim"], abs=0.01)


def test_a_vit_that_begins_with_impulses_looks_where_they_point(monkeypatch):
    """Of positions alone, which is what its first tokens would be without an image."""
    student = vit(num_heads=2, embed_dim=96, depth=2)
    before = student.bare.pos_embed.detach().clone()
    structured.start_structured(student.bare, "impulse_closed", 4)
    near(student.bare.pos_embed.detach(), 18 * before.double(), 1e-6)
    positions = F.layer_norm(student.bare.pos_embed[0, 1:].detach().double(), (96,))
    firsts = []
    for block in range(2):
        query, key, _, _ = parts_of(student, block)
        firsts.append(query)
        seen = (positions @ query.mT @ key @ positions.mT * 48**-0.5).softmax(-1)
        target = impulses((6, 6), structured.OFFSETS[:2])
        on_target = [(own * mask).sum() / mask.sum() for own, mask in zip(seen, target, strict=True)]
        assert min(on_target) > 10 / 36, "far more than attention that is the same everywhere"
    assert not torch.equal(*firsts)
    monkeypatch.setattr(structured, "STEPS", 3)
    monkeypatch.setattr(structured, "fit", lambda *given: fit(*given, steps=3))
    said = structured.start_structured(student.bare, "impulse", 4)
    assert "fitted in 3 steps" in said and "\n" not in said
    assert torch.equal(parts_of(student, 0)[0], parts_of(student, 1)[0]), "one fit for all blocks"
    near(student.bare.pos_embed[0, 1:].detach(), structured.sincos_table((6, 6), 96), 1e-6)
    assert torch.equal(student.bare.pos_embed[0, 0], 18 * before[0, 0]), "the class token keeps its own"


@pytest.mark.parametrize("kind", ["mimetic", "impulse_closed"])
def test_a_start_is_a_function_of_the_seed_that_changes_nothing_else(kind, project, capsys):
    built = []
    for init, seed in ((kind, 3), (kind, 3), (kind, 4), ("reference", 3)):
        config = load_config("student.yaml", ["teacher=null", f"model.init={init}", f"run.seed={seed}"])
        stores = open_stores(config.data)
        parts = assemble(config, stores, None, None)
        built.append({name: value.clone() for name, value in parts.unit.state_dict().items()})
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("start ")]
    assert len(said) == 3 and all(kind.split("_")[0] in line and "in 3 blocks" in line for line in said)
    first, same, other, plain = built
    changed = {name for name, value in first.items() if not torch.equal(value, plain[name])}
    assert changed == {
        "student.bare.pos_embed",
        *(f"student.bare.blocks.{block}.attn.{part}.weight" for block in range(3) for part in ("qkv", "proj")),
    }
    for name, value in first.items():
        assert torch.equal(value, same[name]), name
        assert value.isfinite().all()
    assert not torch.equal(
        first["student.bare.blocks.2.attn.qkv.weight"], other["student.bare.blocks.2.attn.qkv.weight"]
    )
    later = assemble(config.replace({"model.init": kind}), stores, None, None, begins=False).unit.state_dict()
    assert torch.equal(later["student.bare.pos_embed"], plain["student.bare.pos_embed"]), "a checkpoint replaces it"


def test_what_cannot_take_such_a_start_is_one_line_before_anything_is_trained(project, fastlg):
    table = (
        (("model.name=resnet20", "model.args={}", "model.blocks=auto", "teacher=null"), "resnet20 takes none"),
        (("model.name=pvt_v2_b0", "model.args={}"), "pvt_v2_b0 is no plain ViT"),
        (("model.name=swin_tiny_patch4_window7_224", "model.args={}"), "is no plain ViT"),
        (("model.args.qk_norm=true",), "normalises queries and keys"),
        (("model.args.pos_embed=none",), "no positions"),
        (("model.args.embed_dim=42",), "42 wide"),
        (("model.weights=there.pt",), "remove one of them"),
    )
    for overrides, says in table:
        refused(fastlg("train", "student.yaml", "model.init=mimetic", *overrides), "model", "init", says)
    refused(fastlg("train", "student.yaml", "model.init=mimetik"), "mimetik", "mimetic")
    assert not (project / "runs").exists()
