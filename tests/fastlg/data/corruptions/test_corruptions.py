"""Each corruption against its definition, written out for one image with loops, scipy and Pillow in float64."""

from __future__ import annotations

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from fastlg.data.corruptions import photographs as pictures
from fastlg.data.corruptions import weather
from fastlg.data.corruptions.apply import corrupt
from fastlg.data.corruptions.draws import Draws
from fastlg.data.corruptions.strengths import NAMES, SETS, strengths_for
from fastlg.errors import UserError

ndimage = pytest.importorskip("scipy.ndimage")
stats = pytest.importorskip("scipy.stats")
IDS = torch.tensor([7, 0, 4093])


def made(side: int) -> np.ndarray:
    """uint8 [3, side, side, 3]: blobs and edges, with black and white in them."""
    drawn = np.random.default_rng(side).normal(size=(3, side, side, 3))
    smooth = ndimage.gaussian_filter(drawn, (0, 1.5, 1.5, 0)) * 300 + 120
    smooth[:, : side // 4, : side // 3] = 255
    smooth[:, -side // 5 :, -side // 4 :] = 0
    return smooth.clip(0, 255).astype(np.uint8)


def zoomed(image, factor):
    side = len(image)
    inside = math.ceil(side / factor)
    first = (side - inside) // 2
    whole = ndimage.zoom(image[first : first + inside, first : first + inside], (factor, factor, 1), order=1)
    cut = (len(whole) - side) // 2
    return whole[cut : cut + side, cut : cut + side]


def moved(image, radius, sigma, degrees):
    """One-sided, whole pixels, borders continued: MagickCore's MotionBlurImage."""
    side, width = len(image), 2 * radius + 1
    weights = [math.exp(-(tap**2) / (2 * sigma**2)) for tap in range(width)]
    total = np.zeros_like(image, dtype=np.float64)
    for tap, weight in enumerate(weights):
        dx = math.ceil(tap * math.cos(math.radians(degrees)) - 0.5)
        dy = math.ceil(tap * math.sin(math.radians(degrees)) - 0.5)
        for y in range(side):
            for x in range(side):
                total[y, x] += weight * image[min(max(y + dy, 0), side - 1), min(max(x + dx, 0), side - 1)]
    return total / sum(weights)


def gaussian_noise(x, c, draw):
    return x + c * draw("normal", x.shape)


def shot_noise(x, c, draw):
    return stats.poisson.ppf(draw("uniform", x.shape), x * c) / c


def impulse_noise(x, c, draw):
    struck, salt = draw("uniform", x.shape) < c, draw("uniform", x.shape) < 0.5
    return np.where(struck, salt.astype(float), x)


def defocus_blur(x, c, draw):
    radius, blur = c
    reach, taps = (8, 3) if radius <= 8 else (radius, 5)
    line = np.arange(-reach, reach + 1)
    kernel = (np.add.outer(line**2, line**2) <= radius**2) * 1.0
    kernel /= kernel.sum()
    rim = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * blur**2))
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, rim / rim.sum(), axis, mode="mirror")
    return ndimage.correlate(x, kernel[:, :, None], mode="mirror")


def glass_blur(x, c, draw):
    sigma, farthest, rounds = c
    side, blurred = len(x), {"sigma": (sigma, sigma, 0), "mode": "nearest", "truncate": 4}
    pixels = np.uint8(ndimage.gaussian_filter(x, **blurred) * 255 + 1e-3)
    for _ in range(rounds):
        dx, dy = (np.floor(draw("uniform", (side * side,)) * 2 * farthest).astype(int) - farthest for _ in range(2))
        for h in range(side - farthest, farthest, -1):
            for w in range(side - farthest, farthest, -1):
                h2, w2 = h + dy[h * side + w], w + dx[h * side + w]
                pixels[h, w], pixels[h2, w2] = pixels[h2, w2], pixels[h, w]  # of views: a copy, as in the authors' line
    return ndimage.gaussian_filter(pixels / 255.0, **blurred)


def motion_blur(x, c, draw):
    return np.rint(255 * moved(x, *c, draw("uniform", ()) * 90 - 45)) / 255


def zoom_blur(x, c, draw):
    return (x + sum(zoomed(x, factor) for factor in c)) / (len(c) + 1)


def snow(x, c, draw):
    flakes = zoomed(c[0] + c[1] * draw("normal", (*x.shape[:2], 1)).astype(np.float64), c[2])
    flakes = np.where(flakes < c[3], 0, flakes).clip(0, 1)
    flakes = np.uint8(flakes * 255 + 1e-3) / 255
    flakes = np.rint(255 * moved(flakes, *c[4:6], draw("uniform", ()) * 90 - 135)) / 255
    grey = 0.299 * x[..., :1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:]
    return c[6] * x + (1 - c[6]) * np.maximum(x, grey * 1.5 + 0.5) + flakes + np.rot90(flakes, 2)


def fog(x, c, draw):
    side = 1 << (len(x) - 1).bit_length()
    heights, step, wobble = np.zeros((side, side)), side, 100.0

    def fill(places, around, half):
        drawn = draw("uniform", (side // step,) * 2).ravel()
        values = [sum(heights[y % side, x % side] for y, x in around(*place, half)) / 4 for place in places]
        for place, value, own in zip(places, values, drawn, strict=True):
            heights[place] = value + wobble * (-wobble + 2 * wobble * own)

    while step >= 2:
        half, starts = step // 2, range(0, side, step)
        fill([(y + half, x + half) for y in starts for x in starts], square, half)
        fill([(y, x + half) for y in starts for x in starts], diamond, half)
        fill([(y + half, x) for y in starts for x in starts], diamond, half)
        step, wobble = half, wobble / c[1]
    mist = (heights - heights.min()) / (heights.max() - heights.min())
    return (x + c[0] * mist[: len(x), : len(x), None]) * x.max() / (x.max() + c[0])


def square(y, x, half):
    return [(y + down, x + across) for down in (-half, half) for across in (-half, half)]


def diamond(y, x, half):
    return [(y - half, x), (y + half, x), (y, x - half), (y, x + half)]


def brightness(x, c, draw):
    hsv = [[colorsys.rgb_to_hsv(*pixel) for pixel in row] for row in x]
    return np.array([[colorsys.hsv_to_rgb(h, s, min(v + c, 1)) for h, s, v in row] for row in hsv])


def contrast(x, c, draw):
    means = x.mean(axis=(0, 1))
    return (x - means) * c + means


def elastic_transform(x, c, draw):
    side = len(x)
    amount, smoothness, shift = (side * part for part in c)
    middle, reach = side // 2, side // 3
    old = np.array([[middle + reach] * 2, [middle + reach, middle - reach], [middle - reach] * 2], dtype=float)
    new = old + shift * (2 * draw("uniform", (3, 2)) - 1)
    affine = np.linalg.solve(np.c_[new, np.ones(3)], old)  # (x, y, 1) of the new image -> (x, y) of the old one
    rows, columns = np.mgrid[:side, :side].astype(float)
    there = np.stack([columns, rows, np.ones_like(rows)], -1) @ affine
    turned = at(x, there[..., 1], there[..., 0], "mirror")
    dx, dy = (
        ndimage.gaussian_filter(2 * draw("uniform", (side, side)) - 1, smoothness, mode="reflect", truncate=3) * amount
        for _ in range(2)
    )
    return at(turned, rows + dy, columns + dx, "reflect")


def at(image, rows, columns, mode):
    return np.stack([ndimage.map_coordinates(image[..., k], (rows, columns), order=1, mode=mode) for k in range(3)], -1)


def pixelate(x, c, draw):
    picture, side = Image.fromarray(np.uint8(np.rint(x * 255))), len(x)
    small = picture.resize((int(side * c),) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((side, side), Image.Resampling.BOX)) / 255


def jpeg_compression(x, c, draw):
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(np.rint(x * 255))).save(buffer, "JPEG", quality=c)
    return np.asarray(Image.open(buffer)) / 255


def frost(x, c, draw, zoom=0.2):
    which, top, left = (draw("uniform", ()) for _ in range(3))
    path = pictures.photograph_files()[int(which * 5)]
    whole = np.asarray(Image.open(path).convert("RGB")).astype(float)
    height, width = (round(zoom * length) for length in whole.shape[:2])
    rows, columns = ((np.arange(length) + 0.5) / zoom - 0.5 for length in (height, width))
    small = np.rint(at(whole, *np.meshgrid(rows, columns, indexing="ij"), "nearest"))
    y, x0 = int(top * (height - len(x))), int(left * (width - len(x)))
    return c[0] * x + c[1] * small[y : y + len(x), x0 : x0 + len(x)] / 255


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """What pip install imagecorruptions-imaug would bring, as far as frost looks at it."""
    folder = tmp_path / "imagecorruptions"
    (folder / "frost").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('only its photographs are looked at')")
    for number, name in enumerate(pictures.PHOTOGRAPHS):
        pixels = np.random.default_rng(number).integers(0, 256, (200 + number, 230, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((230, 200 + number)).save(folder / "frost" / name)
    monkeypatch.syspath_prepend(tmp_path)
    weather._photographs.cache_clear()
    yield folder
    weather._photographs.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_is_what_its_authors_defined(name, photographs):
    wide = ("shot_noise", "defocus_blur", "zoom_blur", "elastic_transform")  # loops over the others' pixels take long
    for side, severity in ((32, 1), (32, 5), (29, 3), *([(120, 5)] if name in wide else [])):
        images = made(side)
        found = corrupt(torch.from_numpy(images), IDS, name, severity)
        assert found.shape == images.shape and found.dtype == torch.uint8 and found.is_contiguous()
        strength = getattr(SETS[0 if side < 46 else 2], name)[severity - 1]
        for row in (0, 2):
            draws = Draws(name, severity, IDS[row : row + 1])

            def draw(kind, shape, draws=draws):
                return getattr(draws, kind)(shape)[0].numpy()

            want = (globals()[name](images[row] / 255.0, strength, draw).clip(0, 1) * 255 + 1e-3).astype(np.uint8)
            apart = np.abs(want.astype(int) - found[row].numpy().astype(int))
            assert apart.max() <= 1 and (apart == 0).mean() > 0.97, (name, side, severity, apart.max())


def test_an_image_is_corrupted_alike_in_any_batch_and_by_any_run(photographs):
    images = torch.from_numpy(made(32))
    for name in NAMES:
        together = corrupt(images, IDS, name, 4)
        assert torch.equal(corrupt(images[1:2], IDS[1:2], name, 4), together[1:2]), name
        if name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"):
            assert not torch.equal(corrupt(images[1:2], IDS[2:3], name, 4), together[1:2]), name  # seeded by the image


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_same_pixels(name, photographs):
    for side, severity in ((32, 5), (120, 2)):
        images = torch.from_numpy(made(side))
        here, there = corrupt(images, IDS, name, severity), corrupt(images.cuda(), IDS.cuda(), name, severity)
        apart = (here.int() - there.cpu().int()).abs()
        assert there.is_cuda and there.is_contiguous() and (apart <= 1).float().mean() > 0.999, (name, side)


def test_the_strengths_are_those_of_the_nearest_published_size():
    chosen = {side: strengths_for(side).name for side in (16, 32, 45, 46, 64, 96, 119, 120, 224, 384)}
    assert list(chosen.values()) == ["CIFAR-10-C"] * 3 + ["Tiny-ImageNet-C"] * 4 + ["ImageNet-C"] * 3
    for own in SETS:
        assert {len(getattr(own, name)) for name in NAMES} == {5}
    assert SETS[2].elastic_transform[0] == pytest.approx((244 * 2 / 224, 244 * 0.7 / 224, 244 * 0.1 / 224))


def test_what_cannot_be_corrupted_is_refused(monkeypatch):
    images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    for given, name, severity in (
        (images, "rain", 1),
        (images, "fog", 6),
        (images.float(), "fog", 1),
        (images[:, :20], "fog", 1),
        (images[:, :15, :15], "fog", 1),
    ):
        with pytest.raises(ValueError, match="severity|images are"):
            corrupt(given, IDS[:1], name, severity)
    monkeypatch.setattr(pictures.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fastlg\[frost\]', or leave it out"):
        pictures.photograph_files()
