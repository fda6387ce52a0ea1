"""Rows of test_config_reaches.py for the sections data and augment: files and pixels change as they must."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_images import write_images
from PIL import Image
from reach import ALONE, BARE, config_of, first_batch, normalised, parts_of, pixels_of, reaches
from source_cases import images, write_parquet

from fastlg.data.stores import open_stores
from fastlg.errors import UserError
from fastlg_kernels import sample_seeds
from fastlg_kernels.augment import rand_augment


def stores_of(*overrides: str):
    return open_stores(config_of(*ALONE, *overrides).data)


@reaches("data.source", "data.holdout")
def source_and_holdout(tmp_path, monkeypatch):
    write_images(tmp_path / "own", per_class=10, seed=5)
    for share in (0.2, 0.5):
        stores = stores_of(f"data.source={tmp_path / 'own'}", f"data.holdout={share}")
        assert (len(stores.train), len(stores.test)) == (30 - 30 * share, 30 * share)


@reaches("data.val")
def validation(tmp_path, monkeypatch):
    for split, seed, count in (("train", 5, 10), ("test", 6, 3), ("val", 7, 4)):
        write_images(tmp_path / "own" / split, per_class=count, seed=seed)
    for val, sizes in ((0.0, (30, 9, None)), (0.2, (24, 9, 6)), ("split", (30, 9, 12))):
        stores = stores_of(f"data.source={tmp_path / 'own'}", f"data.val={val}")
        assert (len(stores.train), len(stores.test), stores.val and len(stores.val)) == sizes


@reaches("data.label_column", "data.image_column")
def columns(tmp_path, monkeypatch):
    for split, seed in (("train", 0), ("test", 4)):
        cells = {"photo": images(*range(seed, seed + 4)), "mask": images(*range(seed + 50, seed + 54))}
        labels = {"coarse": ["a", "b", "a", "b"], "fine": ["x", "y", "z", "x"]}
        write_parquet(tmp_path / "own" / f"{split}.parquet", {**cells, **labels})
    seen = []
    for label, image in (("coarse", "photo"), ("fine", "photo"), ("fine", "mask")):
        source = f"data.source={tmp_path / 'own'}"
        stores = stores_of(source, f"data.label_column={label}", f"data.image_column={image}")
        seen.append((stores.class_names, np.asarray(stores.train.images(0)).sum()))
    assert [names for names, _ in seen] == [["a", "b"], ["x", "y", "z"], ["x", "y", "z"]]
    assert seen[0][1] == seen[1][1] != seen[2][1]


@reaches("data.download")
def download(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision").datasets

    class Asked(Exception):
        pass

    def fetch(*args, download=False, **kwargs):
        if download:
            raise Asked
        raise RuntimeError("Dataset not found or corrupted.")

    monkeypatch.setattr(datasets, "CIFAR10", fetch)
    monkeypatch.setenv("FASTLG_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="download"):
        stores_of("data.source=torchvision:CIFAR10", "data.download=false")
    with pytest.raises(Asked):
        stores_of("data.source=torchvision:CIFAR10")


@reaches("data.store", "data.on_bad")
def store_and_bad_images(tmp_path, monkeypatch):
    for split in ("train", "test"):
        write_images(tmp_path / "own" / split, per_class=4, seed=2)
    (tmp_path / "own" / "train" / "red" / "000.png").write_bytes(b"no image")
    where = (f"data.source={tmp_path / 'own'}", f"data.store={tmp_path / 'kept'}")
    with pytest.raises(UserError, match="000.png"):
        stores_of(*where, "data.on_bad=fail")
    stores = stores_of(*where, "data.on_bad=skip")
    assert len(stores.train) == 11 and stores.path.parent == tmp_path / "kept"


@reaches("data.loader", "data.workers")
def loader(tmp_path, monkeypatch):
    for kind in ("torch", "resident"):
        parts = parts_of(*ALONE, f"data.loader={kind}", "data.workers=3")
        for own in (parts.train_loader, parts.test_loader):
            assert type(own).__name__ == f"{kind.capitalize()}Loader"
            assert getattr(own, "workers", 3) == 3


@reaches("model.image_size")
def image_size(tmp_path, monkeypatch):
    for size in (32, 48):
        parts, batch, views = first_batch(*ALONE, f"model.image_size={size}")
        assert batch.images.shape[1:] == (size, size, 3) and views.student.shape[2:] == (size, size)
        assert next(iter(parts.test_loader.epoch(0))).images.shape[1:] == (size, size, 3)


@reaches("augment.crop_scale", "augment.crop_ratio")
def crops(tmp_path, monkeypatch):
    for scale, ratio in ((0.25, 1.0), (0.25, 2.0), (0.1, 0.5)):
        options = (f"augment.crop_scale=[{scale},{scale}]", f"augment.crop_ratio=[{ratio},{ratio}]")
        parts, batch, _ = first_batch(*ALONE, *options)
        sizes = torch.from_numpy(parts.stores.train.sizes)[batch.sample_ids].double()
        height, width = (batch.crop[:, 2:] * sizes).unbind(1)
        wanted = (scale * sizes.prod(1) / ratio).sqrt(), (scale * sizes.prod(1) * ratio).sqrt()
        for found, side in zip((height, width), wanted, strict=True):
            assert (found - side).abs().max() <= 0.501, (scale, ratio)
        assert batch.crop[:, :2].unique(dim=0).shape[0] > 8, "boxes do not move"
    whole = first_batch(*ALONE, "augment.crop_ratio=[1.2,1.2]")[1]
    assert (whole.crop[:, 2:] > 0.8).all()


@reaches("augment.interpolation")
def interpolation(tmp_path, monkeypatch):
    for name in ("bicubic", "bilinear"):
        extra = (f"augment.interpolation={name}", "augment.rand_augment=rand-m9-mstd0.5-inc1", "data.loader=torch")
        parts, batch, views = first_batch(*ALONE, *extra)
        image = Image.fromarray(parts.stores.train.images(int(batch.sample_ids[0])))
        y, x, h, w = (batch.crop[0].double() * torch.tensor(image.size[::-1]).repeat(2)).round().int().tolist()
        truth = image.crop((x, y, x + w, y + h)).resize((32, 32), getattr(Image.Resampling, name.upper()))
        assert np.array_equal(batch.images[0].numpy(), np.asarray(truth))
        seeds = sample_seeds(parts.config.run.seed, 0, batch.sample_ids, "rand_augment")
        fill = tuple(round(255 * value) for value in parts.config.augment.mean)
        spec = "rand-m9-mstd0.5-inc1"
        drawn = rand_augment(batch.images, seeds, spec=spec, resample=name, fill=fill)
        torch.testing.assert_close(views.student, normalised(pixels_of(batch._replace(images=drawn)), parts.config))


@reaches("augment.flip", "augment.rand_augment", "augment.erase")
def flip_rand_augment_and_erase(tmp_path, monkeypatch):
    _, batch, _ = first_batch(*ALONE)
    parts, flipped, views = first_batch(*ALONE, "augment.flip=1")
    assert torch.equal(batch.images, flipped.images) and not batch.flip.any() and flipped.flip.all()
    plain = normalised(pixels_of(batch), parts.config)
    torch.testing.assert_close(views.student, plain.flip(3))
    # timm applies each of RandAugment's operations to half of the samples
    for option, least in (("augment.rand_augment=rand-m9-n2", 8), ("augment.erase=1", 16), ("augment.erase=0", 0)):
        changed = (first_batch(*ALONE, option)[2].student - plain).abs().flatten(1).amax(1) > 1e-4
        assert least <= changed.sum() <= (16 if least else 0), option
    half = (first_batch(*ALONE, "augment.erase=0.5")[2].student - plain).abs().flatten(1).amax(1) > 1e-4
    assert 0 < half.sum() < 16


@reaches("augment.color_jitter", "augment.rand_augment")
def colours(tmp_path, monkeypatch):
    parts, batch, views = first_batch(*ALONE, "augment.color_jitter=[0.5,0,0]")
    mean, std = (torch.tensor(own).view(3, 1, 1) for own in (parts.config.augment.mean, parts.config.augment.std))
    factors = []
    for before, after in zip(pixels_of(batch), views.student * std + mean, strict=True):
        seen = (before > 0.2) & (before < 0.6)  # of any factor up to 1.5 they stay below 1
        if seen.sum() > 50:
            factors.append((after / before)[seen].median().item())
            assert (after - factors[-1] * before)[seen].abs().max() < 2 / 255, "brightness alone"
    assert len(factors) > 4 and 0.5 < min(factors) < 0.9 and 1.1 < max(factors) < 1.5
    names = ("augment.color_jitter=0.3", "augment.rand_augment=three-augment", "augment.color_jitter=0")
    seen = [first_batch(*ALONE, name)[2].student for name in names]
    changed = [(own - normalised(pixels_of(batch), parts.config)).abs().flatten(1).amax(1) > 1e-2 for own in seen]
    assert [int(own.sum()) for own in changed[:3:2]] == [16, 0] and changed[1].sum() > 12
    cached = (*BARE, "teacher.mode=auto")
    for name in ("augment.color_jitter=0.1", "augment.rand_augment=three-augment"):
        with pytest.raises(UserError, match="cached features cannot follow"):
            config_of(*cached, name)
        assert config_of(*cached, name, "teacher.cache_augment=all")


@reaches("augment.flip")
def alternating_flips(tmp_path, monkeypatch):
    parts = parts_of(*ALONE, "augment.flip=alternating", "optim.global_batch_size=78")
    shown = []
    for epoch in range(3):
        batch = next(iter(parts.train_loader.epoch(epoch)))
        shown.append(parts.views(batch, epoch).student[batch.sample_ids.argsort()])
    assert torch.equal(shown[0], shown[2]) and torch.equal(shown[0], shown[1].flip(3))
    assert not torch.equal(shown[0], shown[1])


@reaches("augment.mean", "augment.std")
def mean_and_std(tmp_path, monkeypatch):
    for mean, std in (("[0.1,0.2,0.3]", "[0.4,0.5,0.6]"), ("[0.1,0.2,0.3]", "[1,1,0.25]"), ("[0,0,0]", "[1,1,0.25]")):
        parts, batch, views = first_batch(*ALONE, f"augment.mean={mean}", f"augment.std={std}")
        torch.testing.assert_close(views.student, normalised(pixels_of(batch), parts.config))
        tested = next(iter(parts.test_loader.epoch(0)))
        found = parts.views(tested, 0, train=False).student
        torch.testing.assert_close(found, normalised(pixels_of(tested), parts.config))


def mixed(*overrides: str):
    """(plain views, mixed views, what each sample keeps of its label, labels) of one large batch."""
    parts, batch, views = first_batch(*ALONE, "optim.global_batch_size=78", *overrides)
    plain = normalised(pixels_of(batch), parts.config)
    differ = batch.labels != batch.labels.flip(0)
    share = views.targets[torch.arange(78), batch.labels]
    return plain, views.student, share, differ


def is_cut(plain: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Whether each pixel of a sample is its own or its partner's, bool [N]."""
    own, partner = ((seen - other).abs().amax(1) < 1e-4 for other in (plain, plain.flip(0)))
    return (own | partner).flatten(1).all(1)


@reaches("augment.mixup", "augment.cutmix")
def mixup_and_cutmix(tmp_path, monkeypatch):
    plain, seen, share, differ = mixed("augment.mixup=1000")
    assert ((share[differ] - 0.5).abs() < 0.1).all(), "Beta(1000, 1000) is near one half"
    torch.testing.assert_close(seen[differ], torch.lerp(plain.flip(0), plain, share[:, None, None, None])[differ])
    share = mixed("augment.mixup=0.001")[2][differ]
    assert ((share < 0.01) | (share > 0.99)).float().mean() > 0.9, "Beta(0.001, 0.001) is near 0 or 1"
    plain, seen, share, differ = mixed("augment.cutmix=1000")
    assert is_cut(plain, seen).all() and share[differ].min() > 0.4, "half of the area at most"
    pasted = ((seen - plain.flip(0)).abs().amax(1) < 1e-4).flatten(1).float().mean(1)
    torch.testing.assert_close(pasted[differ], 1 - share[differ], atol=0.02, rtol=0)
    share = mixed("augment.cutmix=0.001")[2][differ]
    assert share.min() < 0.3
    cut = is_cut(*mixed("augment.mixup=1000", "augment.cutmix=1000")[:2])
    assert 0.25 < cut.float().mean() < 0.75, "with both, half of the samples take each"


@reaches("augment.mix_probability")
def mix_probability(tmp_path, monkeypatch):
    for probability, low, high in ((1.0, 0.0, 0.0), (0.5, 0.25, 0.75), (0.1, 0.8, 1.0)):
        plain, seen, _, _ = mixed("augment.mixup=1000", f"augment.mix_probability={probability}")
        left = ((seen - plain).abs().flatten(1).amax(1) < 1e-4).float().mean()
        assert low <= left <= high, probability


@reaches("run.seed")
def seed(tmp_path, monkeypatch):
    moving = (*ALONE, "augment.crop_scale=[0.1,0.9]", "augment.flip=0.5", "augment.rand_augment=rand-m9-n2")
    same = next(iter(parts_of(*ALONE).test_loader.epoch(0)))  # views are made of the same images for either seed

    def drawn(number: int) -> dict:
        parts, batch, _ = first_batch(*moving, f"run.seed={number}")
        plan = parts.plan.draw(torch.arange(78), torch.from_numpy(parts.stores.train.sizes), 0)
        mixing = parts_of(*moving, "augment.cutmix=1", f"run.seed={number}")
        return {
            "weights": parts.unit.student.bare.patch_embed.proj.weight.detach(),
            "order": batch.sample_ids,
            "boxes": plan.boxes,
            "flip": plan.flip,
            "augmented": parts.views(same, 0).student,
            "mix": mixing.views(same, 0).targets,
        }

    one, again, other = drawn(1), drawn(1), drawn(2)
    for name, value in one.items():
        assert torch.equal(value, again[name]), name
        assert not torch.equal(value, other[name]), name
