"""A cached teacher says what the online teacher says, wherever its rows are kept."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from cache_cases import FIXED, PLAIN, RUNNING, built, parts_of, teacher
from engine_cases import Watch

from fastlg.data.loaders.once import OncePlan
from fastlg.data.loaders.plan import SamplePlan
from fastlg.data.loaders.torch import TorchLoader
from fastlg.data.views.make import ViewMaker
from fastlg.errors import UserError
from fastlg.run.checkpoint import load_checkpoint, save_checkpoint
from fastlg.teacher.cache.format import Chunking
from fastlg.teacher.cache.memory import choose_place
from fastlg.teacher.cache.read import CachedTeacher
from fastlg_kernels.guidance.compact import CompactMap


def loss_and_gradients(parts, batch):
    views = parts.views(batch, 0)
    torch.manual_seed(5)  # drop path
    out = parts.unit(views.student, batch.labels, parts.engine.guide(views, batch))
    parts.unit.zero_grad()
    out.loss.backward()
    return out.loss.detach(), [p.grad.clone() for p in parts.unit.parameters()]


def assert_same_step(online, cached, batch):
    (loss, gradients), (truth, expected) = loss_and_gradients(cached, batch), loss_and_gradients(online, batch)
    torch.testing.assert_close(loss, truth, rtol=1e-6, atol=0)
    for ours, true in zip(gradients, expected, strict=True):
        assert (ours - true).norm() <= 1e-4 * true.norm() + 1e-7  # gradients of single layers cancel to near nothing


@pytest.mark.parametrize("replay", ["exact", "cell"])
@pytest.mark.parametrize("view", ["student", "source"])
def test_cached_maps_give_an_unaugmented_batch_the_loss_of_the_online_teacher(project, replay, view):
    overrides = [*PLAIN, *RUNNING, f"teacher.cache_replay={replay}", f"teacher.view={view}"]
    config, stores, cache = built(*overrides)
    assert cache.transforms == "crop and flip" and cache.grids == [None] * 3
    one, two = parts_of(config, stores), parts_of(config, stores, cache)
    # no square fits a whole image, so every box falls back to the largest one of an allowed ratio: the image itself
    plan = SamplePlan(size=32, batch_size=11, train=True, scale=(1, 1), ratio=(0.1, 10), flip=0)
    batch = next(iter(TorchLoader(stores.train, plan).epoch(0)))
    assert torch.equal(batch.crop, torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(11, 4)) and not batch.flip.any()
    assert_same_step(one, two, batch)


@pytest.mark.parametrize("form", ["compact", "maps"])
def test_fixed_crops_with_flips_train_as_with_the_online_teacher(project, form):
    config, stores, cache = built(*FIXED, *RUNNING, f"teacher.cache_form={form}")
    assert cache.transforms == "flip" and any(cache.grids) == (form == "compact")
    one, two = parts_of(config, stores), parts_of(config, stores, cache)
    for batch in list(one.train_loader.epoch(0))[:2]:
        assert 0 < batch.flip.sum() < len(batch.flip)
        assert_same_step(one, two, batch)


def test_alternating_flips_read_either_side_of_an_image_from_the_cache(project):
    config, stores, cache = built(*FIXED, *RUNNING, "augment.flip=alternating")
    assert cache.transforms == "flip"
    one, two = parts_of(config, stores), parts_of(config, stores, cache)
    for epoch in range(2):
        batch = next(iter(one.train_loader.epoch(epoch)))
        assert 0 < batch.flip.sum() < len(batch.flip)
        assert_same_step(one, two, batch)


def test_a_mirrored_map_is_not_the_map_of_the_mirrored_image(project):
    """Why both orientations are stored: were the network equivariant, half the cache would do."""
    config, stores, cache = built(*FIXED, *RUNNING, "teacher.cache_form=maps")
    both = cache.arrays["map2"].unflatten(0, (-1, 2))
    assert (both[:, 0].flip(-1) - both[:, 1]).norm() > 0.01 * both[:, 1].norm()


def test_crop_and_flip_reach_every_stage(project):
    config, stores, cache = built(*PLAIN, *RUNNING, "teacher.cache_replay=cell")
    parts = parts_of(config, stores, cache)
    batch = next(iter(parts.train_loader.epoch(0)))
    guide = parts.teacher(None, batch)
    for pair, maps in enumerate(guide.maps):
        source = cache.arrays[f"map{pair}"]
        for n, sample in enumerate(batch.sample_ids.tolist()):
            height, width = source.shape[2:]
            y, x, h, w = (batch.crop[n].double() * torch.tensor([height, width, height, width]) + 1e-5).long().tolist()
            crop = source[cache.chunking.rows(torch.tensor(sample))][None, :, y : y + max(h, 1), x : x + max(w, 1)]
            expected = F.interpolate(crop, (height, width), mode="bilinear", align_corners=False)[0]
            torch.testing.assert_close(maps[n], expected.flip(-1) if batch.flip[n] else expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 2**-11), ("bf16", 2**-8)])
def test_half_precision_storage_is_one_rounding(project, dtype, tolerance):
    _, _, full = built(*FIXED, *RUNNING)
    _, _, half = built(*FIXED, *RUNNING, f"teacher.cache_dtype={dtype}")
    assert half.bytes < 0.6 * full.bytes
    for name, values in full.arrays.items():
        assert torch.equal(half.arrays[name].float(), values.to(half.arrays[name].dtype).float())
        torch.testing.assert_close(half.arrays[name].float(), values, rtol=tolerance, atol=1e-7)


def once(count: int, chunk: int, **options) -> OncePlan:
    chunking = Chunking(count, chunk)
    chunks = tuple(chunking.sample_ids(index) for index in range(chunking.chunks))
    return OncePlan(size=32, batch_size=chunk, train=True, chunks=chunks, **options)


def test_batch_statistics_are_those_of_a_chunk_of_mixed_classes(project):
    """As the reference precomputes; but its order is the store's, which is sorted by class."""
    config, stores, cache = built(*FIXED, "teacher.norm_stats=batch", "teacher.cache_form=maps", "augment.flip=0")
    assert cache.transforms == "none" and cache.chunking.chunks == 1
    plan = once(len(stores.train), 200, scale=(1, 1), ratio=(1, 1), whole=False)
    batch = next(iter(TorchLoader(stores.train, plan).epoch(0)))
    assert len(batch.labels) == len(stores.train)
    views = ViewMaker(teacher_size=16, rand_augment=None, erase=0.0)
    _, maps = teacher().train()(views(batch, 0).teacher)
    torch.testing.assert_close(cache.arrays["map1"], maps[1].detach(), rtol=1e-5, atol=1e-5)
    mixed = once(len(stores.train), 13)
    order = mixed.order(len(stores.train), 0)
    for part in mixed.slices(len(stores.train)):
        assert set(stores.train.labels[order[part]].tolist()) == {0, 1, 2}


@pytest.mark.parametrize(("count", "chunk"), [(1, 200), (199, 200), (200, 200), (201, 200), (78, 8), (9, 4)])
def test_every_sample_has_its_row_and_chunks_are_of_one_size(count, chunk):
    chunking = Chunking(count, chunk)
    ids = [chunking.sample_ids(index) for index in range(chunking.chunks)]
    sizes = [len(part) for part in ids]
    assert max(sizes) <= chunk and max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat(ids).sort().values, torch.arange(count))
    assert torch.equal(chunking.rows(torch.cat(ids)), torch.arange(count))


@pytest.mark.parametrize("memory", ["host", "mmap"])
def test_rows_read_ahead_are_the_rows_of_their_batch(project, memory):
    config, stores, cache = built(*FIXED)
    sizes = torch.from_numpy(stores.train.sizes)
    plain = CachedTeacher(cache, sizes, device=torch.device("cpu"), memory="device")
    loader = parts_of(config, stores, cache).train_loader
    ahead = CachedTeacher(cache, sizes, device=torch.device("cpu"), memory=memory)
    following = ahead.follow(loader)
    assert plain.follow(loader) is loader and len(following) == len(loader)
    seen = []
    for batch in following.epoch(1, 1):
        seen.append(batch.sample_ids)
        assert_same_guide(ahead(None, batch), plain(None, batch))
        assert_same_guide(ahead(None, batch), plain(None, batch))  # asked again: read on the spot
    assert torch.equal(torch.cat(seen), torch.cat([b.sample_ids for b in loader.epoch(1, 1)]))
    assert not ahead.reader.ahead


def assert_same_guide(one, two):
    for a, b in zip(one.maps, two.maps, strict=True):
        if isinstance(a, CompactMap):
            assert torch.equal(a.energy, b.energy) and a.size == b.size
            a, b = a.pulled, b.pulled
        assert torch.equal(a, b)
    assert torch.equal(one.logits, two.logits)


def test_auto_memory_falls_back_to_disk_when_half_the_free_memory_is_too_little(monkeypatch):
    pages = {"SC_AVPHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    cpu = torch.device("cpu")
    assert choose_place(204_800, cpu, "auto") == "device" and choose_place(204_801, cpu, "auto") == "mmap"
    assert choose_place(10**15, cpu, "host") == "host"


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_train_with_a_cache_is_the_online_run(project, fastlg):
    common = [*FIXED, *RUNNING, "guidance.logits=soft", "teacher.cache_memory=mmap"]
    assert fastlg("train", "student.yaml", *common, "teacher.mode=online", "run.name=online")[0] == 0
    status, out, err = fastlg("train", "student.yaml", *common, "run.name=cached")
    assert status == 0 and "cache    building" in out and "kB an image" in out, err
    online, cached = rows(project / "runs" / "online"), rows(project / "runs" / "cached")
    assert len(online) == len(cached)
    for one, two in zip(online, cached, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4) and one["top1"] == two["top1"]
    status, out, err = fastlg("train", "student.yaml", *common, "teacher.mode=cache", "run.name=again", "--dry-run")
    assert status == 0 and "building" not in out, err
    status, out, err = fastlg("cache", "student.yaml", *common)
    assert status == 0 and "is whole" in out, err


@pytest.mark.parametrize("overrides", [PLAIN, FIXED], ids=["crops", "compact"])
def test_a_cached_step_never_syncs(project, overrides):
    config, stores, cache = built(*overrides)
    parts = parts_of(config, stores, cache)
    batch = next(iter(parts.train_loader.epoch(0)))
    views = parts.views(batch, 0)
    with Watch() as watch:
        parts.engine.step(views, batch, len(batch.labels))
    assert watch.seen == []


def test_a_checkpoint_knows_the_features_it_was_trained_with(project, tmp_path):
    config, stores, cache = built(*PLAIN)
    mine = parts_of(config, stores, cache).teacher
    save_checkpoint(tmp_path / "saved", {"teacher": mine.state_dict()})
    state = load_checkpoint(tmp_path / "saved" / "last.pt")["teacher"]
    mine.load_state_dict(state)
    config, stores, other = built(*PLAIN, model=teacher(seed=1))
    with pytest.raises(UserError, match="begun with other teacher features"):
        parts_of(config, stores, other).teacher.load_state_dict(state)
