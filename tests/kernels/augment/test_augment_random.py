"""RandAugment's and random erasing's draws follow timm's own objects; normalising follows torchvision."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from augment_images import images_of, to_pil
from PIL import Image
from scipy import stats
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import functional as F

from fastlg_kernels import apply_op, draw_rand_augment, normalise, parse_rand_augment, random_erasing
from fastlg_kernels.augment import rand_augment
from fastlg_kernels.augment.plain.augment import draw_erasing
from fastlg_kernels.augment.rand_augment import OP_NAMES, draw_color_jitter
from fastlg_kernels.rng import sample_seeds

DRAWS = 20_000
SPECS = ("rand-m9-mstd0.5-inc1", "rand-m7-n3-mstd0.5", "rand-m8-mstd3-n4-t3a", "rand-m5-p0.8-inc1",
         "rand-m9-mstd101-n1", "rand-m6-n3-tweights", "rand-m9-mstd2-n3-t3aw", "rand-m5-n17")  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# One false alarm in a thousand per comparison, were the seeds not fixed.
ALPHA = 1e-3


def seeds_of(count: int, purpose: str = "test") -> torch.Tensor:
    return sample_seeds(11, 3, torch.arange(count), purpose)


def timm_draws(spec: str) -> tuple[np.ndarray, list[list[tuple[str, float]]]]:
    """What timm's own RandAugment object chooses and applies, recorded in place of Pillow's work."""
    random.seed(5)
    np.random.seed(5)
    transform = auto_augment.rand_augment_transform(spec, {"img_mean": (124, 116, 104)})
    applied: list[tuple[str, float]] = []
    for op in transform.ops:
        op.aug_fn = lambda image, *args, name=op.name, **_: applied.append((name, args[0] if args else 0.0))
    per_image = []
    for _ in range(DRAWS):
        applied.clear()
        transform(None)
        per_image.append(list(applied))
    return np.array([len(image) for image in per_image]), per_image


def same_counts(ours: np.ndarray, theirs: np.ndarray) -> float:
    """p-value of the two-sample chi-square test over the categories that occur."""
    table = np.stack((ours, theirs))
    table = table[:, table.sum(0) > 0]
    return 1.0 if table.shape[1] < 2 else stats.chi2_contingency(table).pvalue


@pytest.mark.parametrize("spec", SPECS)
def test_operations_magnitudes_and_signs_are_distributed_as_timms(spec):
    per_image_count, timm_images = timm_draws(spec)
    draw = draw_rand_augment(seeds_of(DRAWS), spec)
    op, applied, value = draw.op.numpy(), draw.applied.numpy(), draw.value.numpy()
    layers = parse_rand_augment(spec).layers
    ours_per_image = np.bincount(applied.sum(1), minlength=layers + 1)
    assert same_counts(ours_per_image, np.bincount(per_image_count, minlength=layers + 1)) > ALPHA
    theirs: dict[str, list[float]] = {}
    for image in timm_images:
        for name, argument in image:
            theirs.setdefault(name, []).append(float(argument))
    ours = {name: value[applied & (op == number)] for number, name in enumerate(OP_NAMES)}
    names = sorted(theirs)
    assert {name for name in ours if len(ours[name])} == set(names)
    assert same_counts(np.array([len(ours[n]) for n in names]), np.array([len(theirs[n]) for n in names])) > ALPHA
    for name in names:
        levels = sorted({round(v, 9) for v in (*ours[name], *theirs[name])})
        if len(levels) <= 60:
            counts = [[np.isclose(sample, v).sum() for v in levels] for sample in (ours[name], theirs[name])]
            assert same_counts(*np.array(counts)) > ALPHA, name
        else:
            assert stats.ks_2samp(ours[name], theirs[name]).pvalue > ALPHA, name


def test_layers_of_a_sample_are_independent_and_repeats_occur_as_with_replacement():
    draw = draw_rand_augment(seeds_of(DRAWS))
    kinds = len(parse_rand_augment("rand-m9-mstd0.5-inc1").ops)
    pairs = torch.bincount(draw.op[:, 0] * len(OP_NAMES) + draw.op[:, 1], minlength=len(OP_NAMES) ** 2).numpy()
    assert (pairs > 0).sum() == kinds**2
    assert stats.chisquare(pairs[pairs > 0]).pvalue > ALPHA
    both = torch.bincount(draw.applied[:, 0].long() * 2 + draw.applied[:, 1].long(), minlength=4).numpy()
    assert stats.chisquare(both).pvalue > ALPHA
    weighted = draw_rand_augment(seeds_of(DRAWS), "rand-n4-tweights").op.sort(1).values
    assert (weighted.diff(dim=1) > 0).all()


@pytest.mark.parametrize("spec", SPECS[:3])
def test_pixels_are_the_drawn_operations_of_timm_in_order(spec):
    images, seeds = images_of("smooth", None, 40, 52).repeat(8, 1, 1, 1), seeds_of(24, "pixels")
    draw, result = draw_rand_augment(seeds, spec), rand_augment(images, seeds, spec=spec, fill=(10, 20, 30))
    seen = set()
    for number, ours in enumerate(result):
        expected = to_pil(images[number])
        for op, applied, value in zip(*(part[number].tolist() for part in draw[:3]), strict=True):
            name = OP_NAMES[op]
            if not applied:
                continue
            seen.add(name)
            if name == "PosterizeIncreasing" and value == 0:
                expected = Image.new("RGB", expected.size)
                continue
            plain = name in ("AutoContrast", "Equalize", "Invert")
            whole = name.startswith(("Posterize", "Solarize"))
            arguments = () if plain else (int(value) if whole else value,)
            options = {"fillcolor": (10, 20, 30), "resample": Image.Resampling.BICUBIC}
            expected = auto_augment.NAME_TO_OP[name](expected, *arguments, **options)
        off = (ours.int() - torch.from_numpy(np.array(expected)).int()).abs()
        assert (off <= 2).float().mean() >= 0.999
    assert len(seen) >= min(10, len(parse_rand_augment(spec).ops))


def test_three_augment_draws_deit_threes_operations():
    """Of (grey, solarised at 128, blurred by 0.1 to 2 px) one for each image, each a third of the time."""
    draw = draw_rand_augment(seeds_of(DRAWS), "three-augment")
    names = np.array([OP_NAMES[op] for op in draw.op[:, 0].tolist()])
    assert draw.op.shape == (DRAWS, 1) and draw.applied.all() and draw.blurs
    counts = [int((names == name).sum()) for name in ("Desaturate", "Solarize", "GaussianBlur")]
    assert sum(counts) == DRAWS and stats.chisquare(counts).pvalue > ALPHA
    assert set(draw.value[names == "Desaturate"].flatten().tolist()) == {1.0}
    assert set(draw.value[names == "Solarize"].flatten().tolist()) == {128.0}
    radius = draw.value[names == "GaussianBlur"].flatten().numpy()
    assert stats.kstest(radius, stats.uniform(0.1, 1.9).cdf).pvalue > ALPHA


@pytest.mark.parametrize("amounts", [(0.3, 0.3, 0.3), (0.4, 0.0, 1.5)])
def test_colour_jitter_draws_torchvisions_factors_in_any_order(amounts):
    draw = draw_color_jitter(seeds_of(DRAWS), amounts)
    used = [amount for amount in amounts if amount]
    assert draw.op.shape == (DRAWS, len(used)) and draw.applied.all() and not draw.blurs
    names = [name for name, amount in zip(("Brightness", "Contrast", "Color"), amounts, strict=True) if amount]
    orders, counts = torch.unique(draw.op, dim=0, return_counts=True)
    assert len(orders) == math.factorial(len(used)) and stats.chisquare(counts.numpy()).pvalue > ALPHA
    for name, amount in zip(names, used, strict=True):
        factors = draw.value[draw.op == OP_NAMES.index(name)].numpy()
        low = max(0.0, 1 - amount)
        assert len(factors) == DRAWS and stats.kstest(factors, stats.uniform(low, 1 + amount - low).cdf).pvalue > ALPHA
    with pytest.raises(ValueError, match="three amounts"):
        draw_color_jitter(seeds_of(2), (0.1, 0.2))


def test_a_sample_is_augmented_the_same_alone_and_in_any_batch():
    images, seeds = images_of("noise", None, 31, 37).repeat(10, 1, 1, 1), seeds_of(30)
    together = rand_augment(images, seeds)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rand_augment(images[order], seeds[order]), together[order])
    for number in (0, 7, 29):
        alone = rand_augment(images[number : number + 1], seeds[number : number + 1])
        assert torch.equal(alone[0], together[number])
    floats = torch.zeros(30, 3, 31, 37)
    erased = random_erasing(floats.clone(), seeds, probability=1.0)
    assert torch.equal(random_erasing(floats[order], seeds[order], probability=1.0), erased[order])


@pytest.mark.parametrize(
    "spec, part",
    [
        ("augmix-m3", "must start with 'rand'"),
        ("rand-m9-q3", "unknown section 'q3'; known are m9"),
        ("rand-m", "unknown section 'm'"),
        ("rand-m9-w0", "unknown section 'w0'; known are m9.* and the sets tweights, t3a, t3aw"),
        ("rand-t3b", "unknown section 't3b'; known are"),
        ("rand-m9.5", "m9.5 must be a whole number"),
        ("rand-n0", "n0 must be 1..100"),
        ("rand-n101", "n101 must be 1..100"),
        ("rand-n15-t3aw", "n15 must be 1..14"),
        ("rand-p1.5", "p1.5 must lie in"),
    ],
)
def test_a_bad_spec_is_refused_naming_the_part(spec, part):
    with pytest.raises(ValueError, match=part):
        parse_rand_augment(spec)


class Recorder:
    """Stands in for an image and notes the rectangles that timm's RandomErasing fills."""

    def __init__(self):
        self.rectangles = []

    def __setitem__(self, key, _):
        _, rows, columns = key
        self.rectangles.append((rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start))


@pytest.mark.parametrize("count", [1, 3])
def test_erased_rectangles_are_distributed_as_timms(count):
    random.seed(9)
    height, width = 64, 96
    eraser = RandomErasing(probability=0.25, mode="const", max_count=count, min_count=1, device="cpu")
    theirs, per_image = [], []
    for _ in range(DRAWS):
        image = Recorder()
        eraser._erase(image, 3, height, width, torch.float32)
        theirs += image.rectangles
        per_image.append(len(image.rectangles))
    ours = draw_erasing(seeds_of(DRAWS), height, width, 0.25, (0.02, 1 / 3), (0.3, 1 / 0.3), count)
    per_ours = (ours[:, :, 2] > 0).sum(1).numpy()
    assert same_counts(*(np.bincount(n, minlength=count + 1) for n in (per_ours, per_image))) > ALPHA
    top, left, h, w = ours[ours[:, :, 2] > 0].numpy().T.astype(float)
    timm_top, timm_left, timm_h, timm_w = np.array(theirs, dtype=float).T
    for mine, timms in (
        (h * w, timm_h * timm_w),
        (np.log(h / w), np.log(timm_h / timm_w)),
        (top / (height - h), timm_top / (height - timm_h)),
        (left / (width - w), timm_left / (width - timm_w)),
    ):
        assert stats.ks_2samp(mine, timms).pvalue > ALPHA
    assert (h < height).all() and (w < width).all() and (top + h <= height).all() and (left + w <= width).all()


def test_erasing_fills_whole_rectangles_as_each_mode_says_and_touches_nothing_else():
    seeds = seeds_of(200, "erase")
    boxes = draw_erasing(seeds, 40, 56, 0.5, (0.02, 1 / 3), (0.3, 1 / 0.3), 1)[:, 0]
    results = {mode: random_erasing(torch.full((200, 3, 40, 56), 7.0), seeds, probability=0.5, mode=mode)
               for mode in ("pixel", "rand", "const")}  # fmt: skip
    pixels = []
    for number, (top, left, h, w) in enumerate(boxes.tolist()):
        for mode, result in results.items():
            patch = result[number, :, top : top + h, left : left + w].clone()
            rest = result[number].clone()
            rest[:, top : top + h, left : left + w] = 7.0
            assert (rest == 7.0).all()
            if mode == "const":
                assert (patch == 0).all()
            elif mode == "rand" and h:
                assert (patch == patch[:, :1, :1]).all() and len(patch[:, 0, 0].unique()) == 3
            elif h:
                pixels.append(patch.flatten())
    values = torch.cat(pixels).numpy()
    assert len(values) > 30_000 and len(np.unique(values)) > 0.99 * len(values)
    assert stats.kstest(values, "norm").pvalue > ALPHA
    assert 70 < (boxes[:, 2] > 0).sum() < 130


def test_erasing_keeps_half_precision_and_stops_at_the_given_chance():
    images = torch.ones(64, 3, 32, 32, dtype=torch.bfloat16)
    assert random_erasing(images, seeds_of(64), probability=0.0) is images
    assert (images == 1).all()
    assert random_erasing(images, seeds_of(64), probability=1.0).dtype == torch.bfloat16
    assert ((images != 1).flatten(1).any(1)).all()


def test_normalising_equals_torchvision_to_the_bit():
    images = images_of("noise", None, 37, 41)
    flip = torch.tensor([True, False, True])
    expected = torch.stack([F.normalize(F.to_tensor(image.numpy()), MEAN, STD) for image in images])
    assert torch.equal(normalise(images, MEAN, STD), expected)
    turned = normalise(images, MEAN, STD, flip=flip)
    assert torch.equal(turned, torch.where(flip[:, None, None, None], expected.flip(3), expected))
    half = normalise(images, MEAN, STD, dtype=torch.bfloat16)
    assert half.is_contiguous() and torch.equal(half, expected.to(torch.bfloat16))


def test_every_argument_is_what_timms_level_function_gives_for_that_magnitude():
    """Magnitudes 0 to 10, made fixed by leaving mstd out."""
    for magnitude in range(11):
        for ops in ("inc0", "inc1", "t3a"):
            draw = draw_rand_augment(seeds_of(400), f"rand-m{magnitude}-n3-p1-{ops}")
            for op, value in {*zip(draw.op.flatten().tolist(), draw.value.flatten().tolist(), strict=True)}:
                level = auto_augment.LEVEL_TO_ARG[OP_NAMES[op]]
                if level is None:
                    continue
                possible = {abs(level(float(magnitude), {})[0]) for _ in range(40)}
                assert any(math.isclose(abs(value), each, rel_tol=1e-15) for each in possible), OP_NAMES[op]


def test_mistakes_are_named():
    images, seeds = images_of("noise", None, 8, 8), seeds_of(3)
    with pytest.raises(TypeError, match="sample_seeds"):
        rand_augment(images, 5)
    with pytest.raises(ValueError, match=r"\(3,\), one per image, got \(2,\)"):
        rand_augment(images, seeds[:2])
    floats = torch.zeros(3, 3, 8, 8)
    with pytest.raises(TypeError, match="normalise first"):
        random_erasing(images, seeds)
    with pytest.raises(ValueError, match="mode must be one of pixel, const, rand, got 'noise'"):
        random_erasing(floats, seeds, mode="noise")
    with pytest.raises(ValueError, match="probability"):
        random_erasing(floats, seeds, probability=1.5)
    with pytest.raises(ValueError, match="area"):
        random_erasing(floats, seeds, area=(0.5, 0.1))
    with pytest.raises(ValueError, match="ratio"):
        random_erasing(floats, seeds, ratio=(0.0, 1.0))
    with pytest.raises(ValueError, match="count"):
        random_erasing(floats, seeds, count=0)
    with pytest.raises(ValueError, match="std must be three numbers above 0"):
        normalise(images, MEAN, (0.2, 0.0, 0.2))
    with pytest.raises(TypeError, match="floating-point type"):
        normalise(images, MEAN, STD, dtype=torch.uint8)
    with pytest.raises(ValueError, match="flip must be a bool tensor"):
        normalise(images, MEAN, STD, flip=torch.zeros(3))
    assert torch.equal(apply_op(images[:0], "Rotate", 3.0), images[:0])
