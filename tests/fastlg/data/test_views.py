"""Views: timm's order of steps, the reference's teacher view, each sample's view its own whatever the batch."""

import numpy as np
import pytest
import torch
from launches import counted
from PIL import Image, ImageFilter, ImageOps
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms import v2

from fastlg.batch import Batch
from fastlg.data.loaders.choose import make_loader
from fastlg.data.loaders.plan import epoch_order
from fastlg.data.store.make import open_store, prepare
from fastlg.data.views.make import ViewMaker
from fastlg.data.views.mixing import Mixer
from fastlg.data.views.sheet import contact_sheet
from fastlg_kernels import RaggedImages, normalise, random_erasing, resize_crops, teacher_view
from fastlg_kernels.augment import rand_augment
from fastlg_kernels.augment.api import apply_op, draw_rand_augment
from fastlg_kernels.augment.rand_augment import OP_NAMES, draw_color_jitter
from fastlg_kernels.rng import sample_seeds

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batch(count=6, size=28, seed=0) -> Batch:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in coarse])
    flip = torch.arange(count) % 3 == 0
    ids = torch.arange(count) * 17 + 3
    return Batch(torch.from_numpy(images), torch.arange(count), ids, torch.rand(count, 4), flip)


def maker(**options) -> ViewMaker:
    settings = {"teacher_size": 4, "rand_augment": None, "erase": 0.0, "mean": MEAN, "std": STD, "seed": 5}
    return ViewMaker(**{**settings, **options})


def rows(whole: Batch, index) -> Batch:
    return Batch(*(tensor[index] for tensor in whole))


def plain(images: torch.Tensor) -> torch.Tensor:
    """torchvision's ToTensor and Normalize, image by image."""
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    return torch.stack([transform(Image.fromarray(image)) for image in images.numpy()])


def test_without_augmentation_a_view_is_torchvisions_flip_and_normalise():
    given = batch()
    truth = plain(given.images)
    truth[given.flip] = truth[given.flip].flip(-1)
    views = maker()(given, epoch=1)
    torch.testing.assert_close(views.student, truth, rtol=1e-6, atol=1e-6)
    assert torch.equal(views.crop, given.crop) and torch.equal(views.flip, given.flip)


def test_evaluation_neither_flips_nor_augments():
    given = batch()
    views = maker(rand_augment="rand-m9-mstd0.5-inc1", erase=1.0)(given, epoch=0, train=False)
    torch.testing.assert_close(views.student, plain(given.images), rtol=1e-6, atol=1e-6)


def test_the_teacher_view_at_224_to_32_is_bitwise_the_references():
    student = torch.randn(3, 3, 224, 224)
    found = teacher_view(student, 32)
    assert torch.equal(found, student[..., 3::7, 3::7])
    assert torch.equal(found, F.interpolate(student, size=(32, 32), mode="bilinear", align_corners=False))


@pytest.mark.parametrize(("side", "size"), [(96, 32), (64, 32), (48, 32), (35, 7), (32, 32), (20, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_teacher_view_is_bilinear_without_antialias_at_any_sizes(side, size, dtype):
    student = torch.randn(2, 3, side, side).to(dtype)
    truth = F.interpolate(student.double(), size=(size, size), mode="bilinear", align_corners=False)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(teacher_view(student, size).double(), truth, rtol=tolerance, atol=tolerance)


def test_the_teacher_sees_the_finished_student_view():
    given = batch(size=28)
    views = maker(teacher_size=4)(given, epoch=0)
    assert torch.equal(views.teacher, views.student[..., 3::7, 3::7])
    assert torch.equal(maker(teacher_size=28)(given, epoch=0).teacher, views.student)
    assert maker(teacher_size=None)(given, epoch=0).teacher.numel() == 0


def test_views_come_in_the_asked_dtype():
    views = maker(dtype=torch.bfloat16)(batch(), epoch=0)
    assert views.student.dtype == views.teacher.dtype == torch.bfloat16
    torch.testing.assert_close(views.student.float(), maker()(batch(), epoch=0).student, rtol=1e-2, atol=1e-2)


def test_rand_augment_follows_the_flip_and_precedes_the_normalisation():
    given = batch(count=24, size=20)
    views = maker(rand_augment="rand-m9-mstd0.5-inc1")(given, epoch=2)
    draw = draw_rand_augment(sample_seeds(5, 2, given.sample_ids, "rand_augment"), "rand-m9-mstd0.5-inc1")
    images = given.images.clone()
    images[given.flip] = images[given.flip].flip(2)
    for i in range(24):
        for op, applied, value in zip(*(part[i].tolist() for part in draw[:3]), strict=True):
            name = OP_NAMES[op]
            value = None if name in ("AutoContrast", "Equalize", "Invert") else value
            if applied:
                images[i] = apply_op(images[i][None], name, value)[0]
    torch.testing.assert_close(views.student, plain(images), rtol=1e-6, atol=1e-6)


def by_torchvision(image: Image.Image, name: str, value: float) -> Image.Image:
    match name:
        case "Desaturate":
            return transforms.functional.to_grayscale(image, num_output_channels=3)
        case "Solarize":
            return ImageOps.solarize(image, 128)
        case "GaussianBlur":
            return image.filter(ImageFilter.GaussianBlur(value))
        case "Brightness":
            return transforms.functional.adjust_brightness(image, value)
        case "Contrast":
            return transforms.functional.adjust_contrast(image, value)
        case "Color":
            return transforms.functional.adjust_saturation(image, value)


@pytest.mark.parametrize(
    ("augment", "jitter"), [("three-augment", 0.0), (None, 0.4), ("three-augment", (0.3, 0.2, 0.5))]
)
def test_three_augment_and_colour_jitter_are_torchvisions_and_pillows_between_flip_and_normalise(augment, jitter):
    """Three-augment to the byte; each of jitter's operations within one level of Pillow's."""
    given = batch(count=24, size=20)
    options = {"rand_augment": augment, "color_jitter": jitter}
    views = maker(**options)(given, epoch=2)
    third, parts = (jitter,) * 3 if isinstance(jitter, float) else jitter, []
    if augment:
        parts.append(draw_rand_augment(sample_seeds(5, 2, given.sample_ids, "rand_augment"), augment))
    if jitter:
        parts.append(draw_color_jitter(sample_seeds(5, 2, given.sample_ids, "color_jitter"), third))
    truth, seen = [], set()
    for i in range(24):
        image = Image.fromarray((given.images[i].flip(1) if given.flip[i] else given.images[i]).numpy())
        for draw in parts:
            for op, value in zip(draw.op[i].tolist(), draw.value[i].tolist(), strict=True):
                seen.add(OP_NAMES[op])
                image = by_torchvision(image, OP_NAMES[op], value)
        truth.append(np.asarray(image))
    off = (views.student - plain(torch.from_numpy(np.stack(truth)))).abs() * torch.tensor(STD).view(3, 1, 1) * 255
    assert len(seen) == 3 * len(parts)
    assert off.max() < (4.1 if jitter else 1e-3) and (off < 1.1).float().mean() > 0.97, "levels of 255"
    same = maker(**options)(rows(given, slice(7, 9)), epoch=2)
    assert torch.equal(same.student, views.student[7:9])
    assert not torch.equal(maker(**options)(given, epoch=3).student, views.student)
    assert torch.equal(views.teacher, maker(**options, teacher_size=20)(given, epoch=2).student[..., 2::5, 2::5])
    source, bare = (maker(teacher_source="source", **own)(given, epoch=2) for own in (options, {}))
    assert torch.equal(source.student, views.student) and torch.equal(source.teacher, bare.teacher)


def test_erasing_puts_normal_noise_on_the_normalised_view_and_the_teacher_sees_it():
    given = batch(count=200, size=28)
    clean, erased = maker()(given, epoch=1), maker(erase=1.0)(given, epoch=1)
    changed = (clean.student != erased.student).any(1)
    share = changed.float().mean((1, 2))
    assert (share > 0).float().mean() > 0.9 and share[share > 0].min() > 0.015 and share.max() < 0.36
    noise = erased.student.movedim(1, -1)[changed]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert torch.equal(erased.teacher, erased.student[..., 3::7, 3::7])
    some = (maker(erase=0.25)(given, epoch=1).student != clean.student).flatten(1).any(1).float().mean()
    assert 0.15 < some < 0.35


def test_a_samples_view_is_the_same_alone_and_in_any_batch():
    given = batch(count=12)
    full = maker(rand_augment="rand-m9-mstd0.5-inc1", erase=0.5)
    whole = full(given, epoch=7)
    for index in ([4], [11, 0, 7], list(range(6))):
        part = full(rows(given, index), epoch=7)
        assert torch.equal(part.student, whole.student[index]) and torch.equal(part.teacher, whole.teacher[index])
    assert torch.equal(full(given, epoch=7).student, whole.student)
    assert not torch.equal(full(given, epoch=8).student, whole.student)
    other = maker(rand_augment="rand-m9-mstd0.5-inc1", erase=0.5, seed=6)
    assert not torch.equal(other(given, epoch=7).student, whole.student)


def test_the_batch_is_left_as_it_was():
    given = batch()
    before = Batch(*(tensor.clone() for tensor in given))
    maker(rand_augment="rand-m9-mstd0.5-inc1", erase=1.0)(given, epoch=0)
    for a, b in zip(given, before, strict=True):
        assert torch.equal(a, b)


def test_a_teacher_may_see_the_unaugmented_source_with_the_same_crop_and_flip():
    given = batch(size=28)
    views = maker(teacher_size=8, teacher_source="source", rand_augment="rand-m9-mstd0.5-inc1", erase=1.0)(given, 3)
    small = [Image.fromarray(i).resize((8, 8), Image.Resampling.BILINEAR) for i in given.images.numpy()]
    truth = plain(torch.from_numpy(np.stack([np.asarray(image) for image in small])))
    truth[given.flip] = truth[given.flip].flip(-1)
    torch.testing.assert_close(views.teacher, truth, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="choose student or source"):
        maker(teacher_source="both")


def test_a_wrong_spec_is_refused_when_the_views_are_made_not_in_the_first_step():
    with pytest.raises(ValueError, match="q9"):
        maker(rand_augment="rand-q9")


def test_the_contact_sheet_shows_what_is_stored_cropped_and_seen(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        for split in ("train", "test"):
            path = tmp_path / "src" / split / ("cat", "dog")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    store = open_store(prepare(str(tmp_path / "src"), tmp_path / "store", workers=1), "train")
    given = next(make_loader("torch", store, size=28, batch_size=4, train=True).epoch(0))
    views = maker(teacher_size=4)(given, epoch=0)
    contact_sheet(tmp_path / "sheet.png", store, given, views, mean=MEAN, std=STD, count=3, tile=28)
    alone = maker(teacher_size=None)(given, epoch=0)
    contact_sheet(tmp_path / "alone.png", store, given, alone, mean=MEAN, std=STD, count=3, tile=28)
    assert Image.open(tmp_path / "alone.png").size == (4 + 3 * 32, 3 * 46 + 14)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert sheet.shape == (4 * 46 + 14, 4 + 3 * 32, 3)  # a tile with its gap is 32 px, a line of text 14
    crops, students, teachers = (sheet[28 + 46 * row : 56 + 46 * row] for row in (1, 2, 3))
    mirrored = torch.where(given.flip[:, None, None, None], given.images.flip(2), given.images).numpy()
    for i in range(3):
        columns = slice(4 + 32 * i, 32 + 32 * i)
        assert np.array_equal(crops[:, columns], given.images[i])
        assert np.array_equal(students[:, columns], mirrored[i])
        assert np.array_equal(teachers[:, columns], mirrored[i][3::7, 3::7].repeat(7, 0).repeat(7, 1))


@pytest.mark.parametrize("teacher_size", [None, 4, 9, 28])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("settings", [{}, {"rand_augment": None}, {"erase": 0.0}, {"rand_augment": None, "erase": 0.0}])
def test_training_views_are_timms_chain_of_the_public_parts(teacher_size, interpolation, settings):
    given = batch(count=9)
    views = ViewMaker(teacher_size=teacher_size, seed=5, interpolation=interpolation, **settings)(given, 3)
    expected = torch.where(given.flip[:, None, None, None], given.images.flip(2), given.images)
    seeds = {name: sample_seeds(5, 3, given.sample_ids, name) for name in ("rand_augment", "erase")}
    if "rand_augment" not in settings:
        expected = rand_augment(expected, seeds["rand_augment"], resample=interpolation)
    expected = normalise(expected, MEAN, STD)
    expected = random_erasing(expected, seeds["erase"], probability=settings.get("erase", 0.25))
    assert torch.equal(views.student, expected)
    if teacher_size is not None:
        truth = F.interpolate(expected, size=(teacher_size,) * 2, mode="bilinear", align_corners=False)
        torch.testing.assert_close(views.teacher, truth, rtol=1e-6, atol=1e-6)


KEPT = {
    "one pass": {"teacher_size": 4},
    "source": {"teacher_size": 8, "teacher_source": "source", "interpolation": "bilinear"},
    "weighted": {"rand_augment": "rand-m9-n3-mstd1-tweights", "dtype": torch.bfloat16},
    "plain": {"rand_augment": None, "erase": 0.0},
    "mixed": {"mixer": Mixer(mixup=0.8, cutmix=1.0, probability=0.7, switch=0.5, seed=5), "num_classes": 40},
}


@pytest.mark.parametrize("options", KEPT.values(), ids=KEPT)
def test_draws_kept_for_an_epoch_give_the_bits_of_draws_made_per_batch(options):
    """Batches of any order and length, epochs forth and back, a start amid an epoch, another size, two ranks' ids."""
    store = batch(count=40, size=28)._replace(sample_ids=torch.arange(40))
    small = batch(count=40, size=20)._replace(sample_ids=torch.arange(40))
    settings = {"teacher_size": 4, "seed": 5, "erase": 0.5, **options}
    kept, resumed, anew = ViewMaker(**settings, samples=40), ViewMaker(**settings, samples=40), ViewMaker(**settings)
    order = epoch_order(5, 1, 40)
    steps = [(0, store, slice(0, 8)), (0, store, slice(8, 13)), (1, store, order[:7]), (1, store, order[32:])]
    steps += [(1, store, order[0:20:2]), (1, store, order[1:20:2]), (1, small, order[:7]), (0, store, slice(39, 40))]
    seen = set()
    for epoch, images, index in steps:
        given = rows(images, index)
        expected, makers = anew(given, epoch), [kept, resumed] if epoch == 1 else [kept]
        for views in (maker(given, epoch) for maker in makers):
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(views, expected, strict=True))
        seen.add(expected.student[0].float().mean().item())
    assert len(seen) > 3


def test_a_sample_beyond_the_store_is_no_other_samples_view():
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        maker(samples=3)(batch(count=6), epoch=0)


# Two layers of RandAugment are 7 kernels: the affine maps, and per layer the tables and two passes. The samples' rows
# of five columns are 5 launches, and what each layer is to do 7 more: the mask and its inverse, the operations, their
# two kinds, how many came before. Resizing is 3 kernels and 5 small copies to the device.
AUGMENT, RESIZE = 7 + 5 + 7, 3 + 5
# Rows of two columns; 16 for the images (where the rectangle lies, what is kept, the sum), 8 for the probabilities.
MIXING = 2 + 16 + 8


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({}, AUGMENT),
        ({"interpolation": "bilinear", "dtype": torch.bfloat16}, AUGMENT),
        ({"teacher_source": "source"}, AUGMENT + RESIZE + 3),
        ({"rand_augment": None, "erase": 0.0}, 5 + 3),
        ({"mixer": KEPT["mixed"]["mixer"], "num_classes": 40}, AUGMENT + MIXING),
    ],
    ids=["one pass", "bilinear", "source", "plain", "mixed"],
)
def test_a_batch_of_an_epoch_is_a_bounded_number_of_launches(options, bound):
    """The host starts each: a batch that takes hundreds waits for the host, whatever its size."""
    pytest.importorskip("triton")
    meta = {"device": torch.device("meta")}
    images, ids = torch.empty(16, 224, 224, 3, dtype=torch.uint8, **meta), torch.empty(16, dtype=torch.int64, **meta)
    given = Batch(images, ids, ids, torch.empty(16, 4, **meta), torch.empty(16, dtype=torch.bool, **meta))
    views = ViewMaker(teacher_size=32, **options, samples=1000)
    with counted() as launches:
        for epoch in (0, 1):
            views(given, epoch)
            for _ in range(2):
                launches.counts.clear()
                views(given, epoch)
                assert 0 < launches.total <= bound, launches.counts


def test_cutting_a_batch_from_the_store_is_a_bounded_number_of_launches():
    pytest.importorskip("triton")
    pixels, sizes = torch.empty(10**6, dtype=torch.uint8, device="meta"), torch.full((16, 2), 32)
    ragged = RaggedImages(pixels, torch.arange(16) * 3072, sizes)
    with counted() as launches:
        resize_crops(ragged, torch.cat((torch.zeros_like(sizes), sizes), dim=1), 224)
    assert 0 < launches.total <= RESIZE, launches.counts
