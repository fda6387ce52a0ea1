"""Rows of test_config_reaches.py for the sections model, guidance and teacher: networks, losses and caches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from reach import ALONE, BARE, config_of, first_batch, parts_of, reaches, teacher_model
from timm.layers import DropPath
from tiny_project import TEACHER

from fastlg.data.stores import open_stores
from fastlg.errors import UserError
from fastlg.features import find_features, plan_cache
from fastlg.teacher.recipe import teacher_config
from fastlg.train import begin_epoch, find_or_train_teacher

CACHED = (*BARE, "teacher.mode=auto", "teacher.cache_dtype=fp32")
MOVING = ("augment.crop_scale=[0.3,0.6]", "augment.crop_ratio=[0.7,1.4]")


@reaches("model.name", "model.args")
def name_and_arguments(tmp_path, monkeypatch):
    bare = parts_of(*ALONE, "model.args.depth=5").unit.student.bare
    assert (len(bare.blocks), bare.embed_dim) == (5, 48)
    cnn = parts_of(*ALONE, "model.name=resnet20", "model.args={}", "model.blocks=auto").unit.student
    assert cnn.depth == 20


@reaches("model.blocks")
def blocks(tmp_path, monkeypatch):
    parts, _, views = first_batch(*BARE, "model.blocks=[2,0,1]")
    put_out = {}
    for index, block in enumerate(parts.unit.student.bare.blocks):
        block.register_forward_hook(lambda module, inputs, output, index=index: put_out.update({index: output}))
    tokens = parts.unit.student(views.student)[1]
    assert all(torch.equal(own, put_out[block]) for own, block in zip(tokens, (2, 0, 1), strict=True))


@reaches("model.fraction")
def fraction(tmp_path, monkeypatch):
    for share in (1.0, 0.5):
        parts = parts_of(*BARE, "model.blocks=auto", "model.args.depth=8", f"model.fraction={share}")
        assert parts.unit.student.blocks == [math.floor(k * (share * 8 - 1) / 2) for k in range(3)]


@reaches("model.drop_path", "model.init")
def drop_path_and_init(tmp_path, monkeypatch):
    for rate, init in ((0.3, "reference"), (0.6, "timm")):
        student = parts_of(*ALONE, f"model.drop_path={rate}", f"model.init={init}").unit.student
        rates = [module.drop_prob for module in student.modules() if isinstance(module, DropPath)]
        assert max(rates) == pytest.approx(rate)
        assert (student.bare.head.weight.abs().sum() == 0) == (init == "reference")
    values = parts_of(*ALONE, "model.init=mimetic").unit.student.bare.blocks[0].attn.qkv.weight[2 * 48 :]
    assert values.std() > 0.05, "a reference start's is 0.02"


def by_hand(parts, views, norm_stats: str = "batch", side: int = 4) -> dict[str, torch.Tensor]:
    """Every part of the loss in float64, from the student's tokens on a grid of ``side`` and a teacher run here."""
    config, unit = parts.config, parts.unit
    guide, settings = teacher_model().train(norm_stats == "batch"), config.guidance
    with torch.no_grad():
        small = views.teacher
        if side == 4:
            small = F.interpolate(views.student, size=(16, 16), mode="bilinear", align_corners=False)
        hints, maps = guide(small)
        logits, tokens = unit.student(views.student)
    logits, hints, total = logits.double(), hints.double(), torch.zeros((), dtype=torch.float64)
    for index, (own, stage) in enumerate(zip(tokens, config.teacher.stages, strict=True)):
        own, teacher = own[:, 1:].double().transpose(1, 2).unflatten(2, (side, side)), maps[stage].double()
        if settings.transform == "linear":
            projection = unit.guidance.projections[index]
            own = torch.einsum("nchw,dc->ndhw", own, projection.weight.detach().double())
            own = own + projection.bias.detach().double()[:, None, None]
        own, teacher = (F.interpolate(m, (max(side, teacher.shape[2]),) * 2, mode="bilinear") for m in (own, teacher))
        if settings.transform == "attention":
            own, teacher = (F.normalize(m.square().mean(1).flatten(1), dim=1) for m in (own, teacher))
        elif settings.transform == "similarity":
            own, teacher = (F.normalize(m.flatten(1) @ m.flatten(1).T, dim=1) for m in (own, teacher))
        channels = teacher.shape[1] if settings.reduction == "sum_channels" else 1
        total += channels * (own - teacher).square().mean()
    cls, t = F.cross_entropy(logits, views.targets), settings.temperature
    soft = (hints / t).softmax(1) * ((hints / t).log_softmax(1) - (logits / t).log_softmax(1))
    soft = soft.mean() * t * t
    distilled = {"none": cls, "soft": soft, "hard": F.cross_entropy(logits, hints.argmax(1))}[settings.logits]
    share = settings.logits_weight if settings.logits != "none" else 0.0
    return {"loss": (1 - share) * cls + share * distilled + settings.weight * total, "guidance": total}


LOSSES = (
    (),
    ("guidance.weight=0.7",),
    ("guidance.reduction=sum_channels",),
    ("guidance.transform=attention",),
    ("guidance.transform=similarity",),
    ("guidance.logits=soft", "guidance.logits_weight=0.3", "guidance.weight=0"),
    ("guidance.logits=soft", "guidance.logits_weight=0.3", "guidance.weight=0", "guidance.temperature=3"),
    ("guidance.logits=hard", "guidance.logits_weight=0.8"),
    ("teacher.stages=[2,0,1]",),
    ("teacher.stages=[2,1]", "model.blocks=[0,2]"),
    ("teacher.norm_stats=running",),
)


@reaches(
    *(f"guidance.{name}" for name in ("weight", "reduction", "transform", "logits", "logits_weight", "temperature")),
    "teacher.stages",
    "teacher.norm_stats",
)
def losses(tmp_path, monkeypatch):
    seen = []
    for overrides in LOSSES:
        parts, batch, views = first_batch(*BARE, "model.init=timm", *overrides)
        truth = by_hand(parts, views, parts.config.teacher.norm_stats)
        out = parts.engine.step(views, batch, len(batch.labels))
        assert out.loss.item() == pytest.approx(truth["loss"].item(), rel=1e-4), overrides
        assert out.loss_guidance.item() == pytest.approx(truth["guidance"].item(), rel=1e-4), overrides
        seen.append(out.loss.item())
    assert len({round(loss, 4) for loss in seen}) == len(LOSSES), "a setting that changes nothing shows nothing"


@reaches("guidance.logits_token", "guidance.logits")
def distillation_token(tmp_path, monkeypatch):
    distilled = ("model.name=deit_tiny_distilled_patch16_224", "model.init=timm", "guidance.weight=0")
    for kind in ("soft", "hard"):
        seen = {}
        for token in ("class", "distillation"):
            own = (*distilled, f"guidance.logits={kind}", f"guidance.logits_token={token}")
            parts, batch, views = first_batch(*BARE, *own)
            both = []
            for head in (parts.unit.student.bare.head, parts.unit.student.bare.head_dist):
                head.register_forward_hook(lambda module, inputs, output, both=both: both.append(output.double()))
            out = parts.engine.step(views, batch, 16)
            with torch.no_grad():
                hints = (
                    teacher_model().train()(F.interpolate(views.student, size=(16, 16), mode="bilinear"))[0].double()
                )
            cls, answer = both if token == "distillation" else [(both[0] + both[1]) / 2] * 2
            soft = hints.softmax(1) * (hints.log_softmax(1) - answer.log_softmax(1))
            answered = soft.mean() if kind == "soft" else F.cross_entropy(answer, hints.argmax(1))
            wanted = (F.cross_entropy(cls, views.targets) + answered) / 2
            assert out.loss.item() == pytest.approx(wanted.item(), rel=1e-4), (kind, token)
            seen[token] = out.loss.item()
        assert seen["class"] != seen["distillation"]


DISTANCES = ("drloc.weight=0.7", "drloc.warmup_epochs=0", "teacher=null", "model.init=timm")


@reaches(*(f"drloc.{name}" for name in ("weight", "mode", "use_abs", "normalize", "sample_size", "hidden", "pool")))
def distances(tmp_path, monkeypatch):
    seen = []
    for own in ((), ("mode=ce",), ("mode=cbr",), ("use_abs=false",), ("normalize=true",), ("pool=true",)):
        overrides = [f"drloc.{setting}" for setting in own]
        parts, batch, views = first_batch(*BARE, *DISTANCES, "drloc.sample_size=9", "drloc.hidden=24", *overrides)
        settings, unit = parts.config.drloc, parts.unit
        side = 2 if settings.pool is True else 4
        assert views.pairs.shape == (16, 2, 9, 2) and views.pairs.max() == side - 1
        shapes = {name: tuple(p.shape) for name, p in unit.drloc.named_parameters()}
        assert shapes["hidden.0.weight"] == (24, 96) and shapes["hidden.2.weight"] == (24, 24)
        classes = {"l1": (2, 24), "ce": (4, 24), "cbr": (4, 24)}[settings.mode]
        assert shapes["heads.0.weight"] == classes and len(unit.drloc.heads) == (1 if settings.mode == "l1" else 2)
        answers = []
        for head in unit.drloc.heads:
            head.register_forward_hook(lambda module, inputs, output, to=answers: to.append(output.detach().double()))
        out = parts.engine.step(views, batch, 16)
        apart, most = views.pairs[:, 0] - views.pairs[:, 1], side - 1
        wanted = apart.abs() if settings.use_abs else apart + most
        if settings.normalize:
            wanted = wanted / most
        if settings.mode == "l1":
            truth = (answers[0] - wanted).abs().mean()
        elif settings.mode == "ce":
            truth = sum(F.cross_entropy(a.flatten(0, 1), wanted[..., i].flatten()) for i, a in enumerate(answers))
        else:
            means = [(a.softmax(-1) * torch.arange(4)).sum(-1) for a in answers]
            squares = [(a.softmax(-1) * torch.arange(4) ** 2).sum(-1) for a in answers]
            spreads = [s - m**2 + 1e-8 for m, s in zip(means, squares, strict=True)]
            pairs = zip(means, spreads, wanted.unbind(-1), strict=True)
            truth = sum(((m - w) ** 2 / v + 1e-3 * v.log()).mean() for m, v, w in pairs)
        assert out.loss_drloc.item() == pytest.approx(truth.item(), rel=1e-4), own
        assert (out.loss - out.loss_cls).item() == pytest.approx(0.7 * truth.item(), rel=1e-4), own
        seen.append(out.loss_drloc.item())
    assert len(set(seen)) == 6
    off = parts_of(*BARE, *DISTANCES, "drloc.weight=0")
    assert off.unit.drloc is None and off.views.pairs is None


@reaches("drloc.warmup_epochs", "drloc.decay", "drloc.total_epochs")
def distances_over_epochs(tmp_path, monkeypatch):
    for own, wanted in (
        ((), [0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4]),
        (("drloc.decay=none",), [0, 1 / 2, 1, 1, 1, 1]),
        (("drloc.total_epochs=10",), [0, 1 / 2, 1, 7 / 8, 6 / 8, 5 / 8]),
    ):
        parts, batch, _ = first_batch(*BARE, *DISTANCES, "optim.epochs=6", "drloc.warmup_epochs=2", *own)
        for epoch, weight in enumerate(wanted):
            views = parts.views(batch, epoch)
            assert views.pair_weight.tolist() == pytest.approx([0.7 * weight] * 16)
            out = parts.unit(views.student, views.targets, None, (views.pairs, views.pair_weight))
            assert (out.loss - out.loss_cls).item() == pytest.approx(0.7 * weight * out.loss_drloc.item(), abs=1e-5)


@reaches("model.weights")
def first_weights(tmp_path, monkeypatch):
    donor = parts_of(*ALONE, "run.seed=77").unit.student.bare.state_dict()
    torch.save({"state_dict": donor}, tmp_path / "donor.pth")
    drawn = parts_of(*ALONE).unit.student.bare.state_dict()
    started = parts_of(*ALONE, f"model.weights={tmp_path / 'donor.pth'}").unit.student.bare.state_dict()
    assert all(torch.equal(started[name], value) for name, value in donor.items())
    assert not torch.equal(started["blocks.0.attn.qkv.weight"], drawn["blocks.0.attn.qkv.weight"])


@reaches("model.resolution")
def resolution(tmp_path, monkeypatch):
    steps = ("optim.epochs=4", "model.resolution=[[0, 16], [0.5, 24], [0.75, 32]]")
    parts, full = parts_of(*BARE, "model.init=timm", *steps), parts_of(*BARE, "optim.epochs=4")
    for epoch, size in enumerate((16, 16, 24, 32)):
        batch = next(iter(parts.train_loader.epoch(epoch)))
        views, whole = parts.views(batch, epoch), full.views(batch, epoch)
        assert batch.images.shape[1:3] == (32, 32) and torch.equal(views.teacher, whole.teacher)
        for seen, image in zip(views.student[0], whole.student[0], strict=True):
            truth = Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.BILINEAR)
            torch.testing.assert_close(seen, torch.tensor(np.asarray(truth)), rtol=1e-4, atol=1e-4)
        begin_epoch(parts, epoch)
        truth = by_hand(parts, views, side=size // 8)
        out = parts.engine.step(views, batch, len(batch.labels))
        assert out.loss.item() == pytest.approx(truth["loss"].item(), rel=1e-4)
        tested = next(iter(parts.test_loader.epoch(0)))
        assert parts.engine.predict(parts.views(tested, 0, train=False).student).shape[1] == 3, "always in full size"
    for wrong, words in (
        ("[[0.1, 16], [0.5, 32]]", "first share is 0"),
        ("[[0, 16], [0.5, 24]]", "last size is image_size, 32"),
        ("[[0, 24], [0.5, 16], [0.6, 32]]", "each is larger than the one before"),
        ("[[0, 16], [0, 32]]", "each is larger than the one before"),
    ):
        with pytest.raises(UserError, match=words):
            config_of(f"model.resolution={wrong}")
    with pytest.raises(UserError, match="leave out a border of 20 px"):
        parts_of(*BARE, "model.resolution=[[0, 20], [0.5, 32]]")
    with pytest.raises(UserError, match="cache_form=compact"):
        config_of(*CACHED, *steps, "teacher.cache_form=compact")
    job = plan_cache(config_of(*CACHED, *steps), open_stores(config_of().data), teacher_model(), 16)
    assert job.fingerprint.grids == (None,) * 3, "maps, which any grid can be compared with"


@reaches("guidance.impl")
def implementation(tmp_path, monkeypatch):
    parts, batch, views = first_batch(*BARE, "guidance.impl=torch")
    parts.engine.step(views, batch, 16)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    parts, batch, views = first_batch(*BARE, "guidance.impl=triton")
    with pytest.raises(RuntimeError, match="impl='triton'"):
        parts.engine.step(views, batch, 16)


@reaches("teacher.recipe", "teacher.overrides", "teacher.weights")
def recipe_and_weights(tmp_path, monkeypatch):
    other = {**TEACHER, "model": {"name": "resnet56", "image_size": 24}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    config = config_of(f"teacher.recipe={tmp_path / 'other.yaml'}", "teacher.overrides.optim.epochs=7")
    recipe = teacher_config(config, open_stores(config.data).fingerprints)
    assert (recipe.model.name, recipe.model.image_size, recipe.optim.epochs) == ("resnet56", 24, 7)
    config = config_of(*BARE, f"run.root={tmp_path}")
    trained, size = find_or_train_teacher(config, open_stores(config.data), dry_run=False)
    (folder,) = (tmp_path / "teachers").iterdir()
    moved = folder.rename(tmp_path / "mine")
    config = config_of(*BARE, f"teacher.weights={moved}", f"run.root={tmp_path / 'elsewhere'}")
    found, found_size = find_or_train_teacher(config, open_stores(config.data), dry_run=False)
    assert size == found_size == 16 and not (tmp_path / "elsewhere").exists()
    saved = torch.load(moved / "checkpoints" / "last.pt", weights_only=True)["unit"]
    for name, value in found.state_dict().items():
        assert torch.equal(value, saved[f"student.{name}"]) and torch.equal(value, trained.state_dict()[name]), name


def cached(*overrides: str):
    """(parts that read a cache, its first batch and views)."""
    config = config_of(*CACHED, *overrides)
    features = find_features(config, open_stores(config.data), teacher_model(), 16)
    parts = parts_of(*CACHED, *overrides, features=features)
    batch = next(iter(parts.train_loader.epoch(0)))
    return parts, batch, parts.views(batch, 0)


@reaches("teacher.mode", "teacher.cache")
def mode_and_cache(tmp_path, monkeypatch):
    config = config_of(*CACHED, f"teacher.cache={tmp_path / 'own'}", "teacher.mode=cache")
    with pytest.raises(UserError, match="there is no feature cache"):
        find_features(config, open_stores(config.data), teacher_model(), 16)
    assert find_features(config_of(*BARE), open_stores(config.data), teacher_model(), 16) is None, "online"
    parts, _, views = cached(f"teacher.cache={tmp_path / 'own'}")
    assert parts.teacher.cache.path == tmp_path / "own" and (tmp_path / "own" / "manifest.json").is_file()
    assert views.teacher.numel() == 0, "no teacher is run, so it needs no view"
    kept = find_features(config, open_stores(config.data), teacher_model(), 16)
    assert kept.path == tmp_path / "own"


@reaches("teacher.cache_form", "teacher.cache_dtype", "teacher.cache_memory", "teacher.cache_replay")
def cache_settings(tmp_path, monkeypatch):
    where = f"teacher.cache={tmp_path / 'a'}"
    parts, _, _ = cached(where, *MOVING, "teacher.cache_form=maps", "teacher.cache_memory=mmap")
    assert parts.teacher.reader.place == "mmap" and parts.teacher.cache.grids == [None] * 3
    assert parts.teacher.cache.arrays["map0"].dtype == torch.float32
    compact, _, _ = cached(f"teacher.cache={tmp_path / 'b'}", "teacher.cache_form=compact", "teacher.cache_dtype=bf16")
    assert compact.teacher.reader.place == "device" and compact.teacher.cache.grids[0] == (4, 4)
    assert compact.teacher.cache.arrays["map0"].dtype == torch.bfloat16
    maps = []
    for replay in ("exact", "cell"):
        parts, batch, views = cached(where, *MOVING, f"teacher.cache_replay={replay}")
        maps.append(parts.engine.guide(views, batch).maps[0])
    assert not torch.allclose(*maps)


@reaches("teacher.cache_augment")
def cache_augment(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cache_augment=all"):
        config_of(*CACHED, "augment.erase=1", "teacher.cache_augment=geometric")
    parts, batch, views = cached(f"teacher.cache={tmp_path / 'a'}", "augment.erase=1", "teacher.cache_augment=all")
    plain, same, unerased = cached(f"teacher.cache={tmp_path / 'a'}")
    assert not torch.equal(views.student, unerased.student)
    assert torch.equal(parts.engine.guide(views, batch).logits, plain.engine.guide(unerased, same).logits)


@reaches("teacher.view")
def view(tmp_path, monkeypatch):
    erased = ("augment.erase=1", "augment.flip=1")
    _, _, student = first_batch(*BARE, *erased)
    torch.testing.assert_close(student.teacher, F.interpolate(student.student, size=(16, 16), mode="bilinear"))
    _, _, source = first_batch(*BARE, *erased, "teacher.view=source")
    _, _, unerased = first_batch(*BARE, "augment.flip=1")
    truth = F.interpolate(unerased.student, size=(16, 16), mode="bilinear", antialias=True)
    assert torch.equal(source.student, student.student)
    assert (source.teacher - truth).abs().max() < 0.03, "the same crop and flip, but for the rounding of bytes"
    jobs = []
    for kind in ("student", "source"):
        config = config_of(*CACHED, f"teacher.view={kind}")
        jobs.append(plan_cache(config, open_stores(config.data), teacher_model(), 16).path)
    assert jobs[0] != jobs[1]
