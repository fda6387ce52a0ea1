"""Several views of every image: crops of the sizes and shares asked for, each changed by itself, as Pillow does it."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from made_images import write_images
from PIL import Image, ImageFilter, ImageOps

from fastlg.config import DataConfig
from fastlg.data.loaders.crops import CropsLoader
from fastlg.data.stores import open_stores
from fastlg.data.views import crops
from fastlg.data.views.crops import CropViewMaker, changed_crops, hue_turned
from fastlg.data.views.make import ViewMaker
from fastlg_kernels.rng import uniforms

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    for index, split in enumerate(("train", "test")):
        write_images(root / split, per_class=7, seed=index)
    return open_stores(DataConfig(source=str(root), store=root / "kept")).train


def loader_of(store, kind="torch", batch=5, workers=0, small=3):
    plan = {"size": 24, "batch_size": batch, "train": True, "seed": 4, "drop_last": False}
    shares = {"large_scale": (0.5, 1.0), "small_scale": (0.1, 0.3), "small_size": 16, "small_crops": small}
    return CropsLoader(kind, store, device=torch.device("cpu"), workers=workers, plan=plan, **shares)


def whole_epoch(loader, epoch=1, start=0):
    """Parts of an epoch's batches by sample: {sample id: (large, small, crop, flip, label)}."""
    found = {}
    for batch in loader.epoch(epoch, start):
        for row, sample in enumerate(batch.sample_ids.tolist()):
            assert sample not in found
            own = batch.images[row], batch.small[row], batch.crop[row], batch.flip[row], batch.labels[row]
            found[sample] = own
    return found


def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_every_image_gets_its_crops_whatever_the_loader_and_the_batch(store):
    found = whole_epoch(loader_of(store))
    assert sorted(found) == list(range(len(store)))
    others = [loader_of(store, "resident"), loader_of(store, batch=8), loader_of(store, workers=1)]
    for other in others:
        again = whole_epoch(other)
        assert all(same(found[sample], again[sample]) for sample in found)
    resumed = whole_epoch(loader_of(store), start=2)
    assert len(resumed) == len(store) - 10 and all(same(found[sample], own) for sample, own in resumed.items())
    areas = torch.stack([crop[:, 2] * crop[:, 3] for _, _, crop, _, _ in found.values()])
    assert areas[:, :2].min() > 0.45 and areas[:, 2:].max() < 0.35 and areas.unique().numel() > 60
    flips = torch.stack([flip for *_, flip, _ in found.values()])
    assert 0.3 < flips.float().mean() < 0.7 and (flips[:, 0] != flips[:, 1]).any()
    for large, small, _, _, label in found.values():
        assert large.shape == (2, 24, 24, 3) and small.shape == (3, 16, 16, 3) and label < 3
    assert next(iter(loader_of(store, small=0).epoch(0))).small.shape == (5, 0, 1, 1, 3)


def test_a_view_depends_on_its_image_and_number_alone(store):
    views = CropViewMaker(ViewMaker(teacher_size=None, **PLAIN), seed=4, **PLAIN)
    batch = next(iter(loader_of(store).epoch(1)))
    whole, alone = views(batch, 1), views(type(batch)(*(part[3:4] for part in batch)), 1)
    assert torch.equal(whole.student[3:4], alone.student) and torch.equal(whole.small[3:4], alone.small)
    assert whole.teacher is whole.student
    assert not torch.equal(whole.student, views(batch, 2).student)
    twins = batch._replace(images=batch.images[:, :1].expand(-1, 2, -1, -1, -1))
    pair = views(twins, 1).student
    assert (pair[:, 0] != pair[:, 1]).flatten(1).any(dim=1).all(), "two crops of one image were changed alike"


def test_pixels_are_pillows():
    """Of crops whose colours are not jittered: mirror, grey, blur, solarisation, in this order."""
    generator = torch.Generator().manual_seed(1)
    seeds = torch.randint(1 << 40, (400,), generator=generator)
    drawn = uniforms(seeds, 6)
    seeds = seeds[drawn[:, 0] >= crops.JITTERED][:24]
    drawn, images = uniforms(seeds, 6), torch.randint(256, (24, 11, 11, 3), generator=generator, dtype=torch.uint8)
    flip, likely = torch.arange(24) % 2 == 0, torch.full((24,), 0.5, dtype=torch.float64)
    found = changed_crops(images, seeds, seeds + 1, likely, likely, flip, PLAIN["mean"], PLAIN["std"], torch.float32)
    seen = set()
    for row, (image, own) in enumerate(zip(images.numpy(), drawn.tolist(), strict=True)):
        picture, done = Image.fromarray(image), (own[1] < 0.2, own[2] < 0.5, own[4] < 0.5)
        picture = ImageOps.mirror(picture) if flip[row] else picture
        picture = ImageOps.grayscale(picture).convert("RGB") if done[0] else picture
        picture = picture.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * own[3])) if done[1] else picture
        picture = ImageOps.solarize(picture, 128) if done[2] else picture
        assert np.array_equal((found[row] * 255).round().byte().permute(1, 2, 0).numpy(), np.asarray(picture)), done
        seen.add(done)
    assert len(seen) > 4


def test_as_many_crops_are_changed_as_the_authors_change():
    count, ids = 4000, torch.arange(4000)
    flat = torch.tensor([240, 210, 180], dtype=torch.uint8).expand(count, 1, 1, 3).contiguous()
    flip, never, ever = torch.zeros(count, dtype=torch.bool), torch.zeros(count).double(), torch.ones(count).double()

    def share_changed(solarised):
        made = changed_crops(flat, ids, ids + count, never, solarised, flip, PLAIN["mean"], PLAIN["std"], torch.float32)
        return made.flatten(1)

    plain = share_changed(never)
    grey = (plain.amax(dim=1) - plain.amin(dim=1)) < 1e-6
    left = ((plain * 255).round() == flat.flatten(1)).all(dim=1)
    assert grey.float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert left.float().mean().item() == pytest.approx(0.2 * 0.8, abs=0.02)
    inverted = (share_changed(ever) != plain).any(dim=1).float().mean().item()
    assert inverted > 0.9
    assert crops.BLURRED == (1.0, 0.1, 0.5) and crops.SOLARISED == (0.0, 0.2, 0.0)


def test_hue_turns_as_colorsys_has_it():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 5, 7, 3), generator=generator, dtype=torch.uint8)
    images[0, 0, 0], images[1, 0, 1] = 9, torch.tensor([200, 200, 10], dtype=torch.uint8)
    turns = torch.tensor([-0.1, 0.03, 0.0, 0.1])
    for image, turn, found in zip(images, turns.tolist(), hue_turned(images, turns), strict=True):
        for before, after in zip(image.view(-1, 3).tolist(), found.view(-1, 3).tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in before))
            wanted = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            assert after == pytest.approx([255 * channel for channel in wanted], abs=0.51)
