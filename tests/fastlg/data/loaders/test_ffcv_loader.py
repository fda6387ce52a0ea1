"""FFCV: files FFCV can read and write, our samples and boxes, exact raw pixels, damage named instead of shown grey."""

import contextlib
import io
import multiprocessing
import shutil
import sys

import numpy as np
import pytest
import torch
from loader_cases import (
    TRAIN_COUNT,
    assert_ranks_share,
    assert_same_samples,
    differences,
    joined,
    own_copy,
    photographs_as_beton,
    plan,
    write_pictures,
)
from patience import HANG_S
from PIL import Image

from fastlg.data.loaders.plan import SamplePlan
from fastlg.data.loaders.torch import TorchLoader
from fastlg.data.sources.choose import open_source
from fastlg.data.store.beton_read import FILE_NAME, find_beton, open_beton
from fastlg.data.store.beton_write import write_beton
from fastlg.data.store.make import open_store, prepare
from fastlg.errors import RunError, UserError


@pytest.fixture(scope="module")
def ffcv():
    """torch's thread count, set to 3, after the loader's import of FFCV; tests of the file format do without FFCV."""
    from fastlg.data.loaders.ffcv import _import_imdecode

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        _import_imdecode()
        return torch.get_num_threads()
    except UserError as missing:
        pytest.skip(str(missing))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lossless(tmp_path_factory):
    """A store made of PNG files: its path."""
    folder = tmp_path_factory.mktemp("lossless")
    write_pictures(folder / "source")
    return prepare(str(folder / "source"), folder / "store", workers=1)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    """A store made of JPEG files with their .beton file: (store, source folder)."""
    folder = tmp_path_factory.mktemp("jpegs")
    write_pictures(folder / "source", ".jpg")
    path = prepare(str(folder / "source"), folder / "store", workers=1)
    for split in ("train", "test"):
        write_beton(open_store(path, split), mode="jpeg", source=open_source(str(folder / "source"), split))
    return path, folder / "source"


def ffcv_loader(store, settings: SamplePlan, **options):
    from fastlg.data.loaders.ffcv import FfcvLoader

    return FfcvLoader(store, settings, **options)


# The file


def test_ffcv_reads_the_raw_file_we_write_pixel_for_pixel(ffcv, lossless, tmp_path):
    from ffcv.memory_managers import OSCacheManager
    from ffcv.pipeline.compiler import Compiler
    from ffcv.reader import Reader

    store = open_store(lossless, "train")
    reader = Reader(str(write_beton(store, tmp_path / "x.beton")))
    assert reader.field_names == ["image", "label"] and reader.num_samples == TRAIN_COUNT
    assert reader.metadata["f1"].tolist() == store.labels.tolist()
    Compiler.set_enabled(False)
    try:
        manager = OSCacheManager(reader)
        read = manager.compile_reader()
        with manager.schedule_epoch([]) as context:
            for i, entry in enumerate(reader.metadata["f0"]):
                pixels = read(entry["data_ptr"], context.state).reshape(entry["height"], entry["width"], 3)
                assert entry["mode"] == 1 and np.array_equal(pixels, store.images(i))
    finally:
        Compiler.set_enabled(True)


def test_ffcvs_own_loader_shows_the_jpegs_we_write(ffcv, tmp_path):
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.compiler import Compiler

    for i in range(12):
        path = tmp_path / "source" / ("train" if i < 8 else "test") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(90 * i).resize((16, 24)).convert("RGB").save(path)
    store = open_store(prepare(str(tmp_path / "source"), tmp_path / "store", workers=1), "train")
    path = write_beton(store, mode="jpeg", quality=100)
    threads = torch.get_num_threads()
    Compiler.set_enabled(False)  # plain Python: the same code without compiling for ten seconds
    try:
        pipelines = {"image": [SimpleRGBImageDecoder()], "label": None}
        loader = Loader(str(path), 8, num_workers=1, order=OrderOption.SEQUENTIAL, pipelines=pipelines)
        ((images,),) = list(loader)
    finally:
        Compiler.set_enabled(True)
        torch.set_num_threads(threads)
    truth = np.stack([store.images(i) for i in range(8)])
    assert np.abs(images.astype(int) - truth).max() <= 8  # quality 100, and FFCV's fast DCT: 5 levels by itself


@pytest.mark.parametrize("mode", ["raw", "jpg", "proportion"])
def test_we_read_what_ffcv_writes_also_beside_other_fields(ffcv, tmp_path, mode):
    from ffcv.fields import BytesField, FloatField, IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    grey = Image.linear_gradient("L")  # FFCV halves the resolution of colours: a grey picture shows the decoder's error
    images = [np.asarray(grey.rotate(90 * i).resize((9 + i, 30 - i)).convert("RGB")) for i in range(9)]
    fields = {
        "weight": FloatField(),
        "note": BytesField(),
        "photo": RGBImageField(write_mode=mode, jpeg_quality=100),
        "kind": IntField(),
    }
    samples = [(0.5 * i, np.arange(i + 1, dtype=np.uint8), image, i % 3) for i, image in enumerate(images)]
    np.random.seed(3)  # FFCV draws which images "proportion" compresses
    with contextlib.redirect_stderr(io.StringIO()):
        DatasetWriter(str(tmp_path / "x.beton"), fields, num_workers=1).from_indexed_dataset(samples)
    beton = open_beton(tmp_path / "x.beton")
    assert beton.store is None and beton.labels.tolist() == [i % 3 for i in range(9)]
    assert beton.sizes.tolist() == [list(image.shape[:2]) for image in images]
    assert beton.is_jpeg.sum() in {"raw": {0}, "jpg": {9}, "proportion": set(range(1, 9))}[mode]
    for i, image in enumerate(images):
        stored = beton.stored(i)
        if beton.is_jpeg[i]:
            assert np.abs(np.asarray(Image.open(io.BytesIO(stored))).astype(int) - image).max() <= 3
        else:
            assert np.array_equal(stored.reshape(image.shape), image)


def test_jpeg_files_are_taken_over_byte_for_byte_unless_their_pixels_are_not_the_stores(tmp_path):
    write_pictures(tmp_path / "source", ".jpg")
    folder = tmp_path / "source" / "train" / "cat"
    upright = Image.open(folder / "01.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    upright.save(folder / "90.jpg", exif=turned)
    upright.convert("CMYK").save(folder / "91.jpg")
    upright.save(folder / "92.png")
    upright.convert("L").save(folder / "93.jpg")
    (folder / "00.jpg").write_bytes(b"no picture")  # left out: rows of store and source differ from here on
    path = prepare(str(tmp_path / "source"), tmp_path / "store", on_bad="skip", workers=1)
    store, source = open_store(path, "train"), open_source(str(tmp_path / "source"), "train")
    beton = open_beton(write_beton(store, mode="jpeg", source=source))
    assert beton.is_jpeg.all() and len(beton) == len(source) - 1
    rows = [row for row in range(len(source)) if not source.name(row).endswith("cat/00.jpg")]
    for i, row in enumerate(rows):
        taken = bytes(beton.stored(i)) == source.read(row)
        assert taken != (source.name(row)[-6:] in ("90.jpg", "91.jpg", "92.png")), source.name(row)
        decoded = np.asarray(Image.open(io.BytesIO(beton.stored(i))).convert("RGB")).astype(int)
        assert np.abs(decoded - store.images(i)).max() <= (0 if taken else 12)


def test_a_changed_source_is_not_taken_for_the_stores(jpegs, tmp_path):
    path, source = jpegs
    shutil.copytree(source, tmp_path / "source")
    with pytest.raises(UserError, match="changed; prepare it again"):
        write_beton(open_store(path, "train"), mode="jpeg", source=open_source(str(tmp_path / "source"), "train"))


def test_damaged_files_are_refused_with_the_reason(lossless, tmp_path):
    store = own_copy(lossless, tmp_path)
    path = write_beton(store)
    whole = path.read_bytes()
    beton = open_beton(path)
    first = int(beton.starts[0])
    cases = {
        "cut short": whole[: len(whole) // 2],
        "cut short:": whole[:100],
        "cannot be read": b"",
        "no .beton file": b"\x07" * 4096,
        "its content does not match": whole[:first] + bytes([whole[first] ^ 1]) + whole[first + 1 :],
        "cut short or altered": whole[:-24],
    }
    for reason, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=reason) as caught:
            open_beton(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert np.array_equal(open_beton(path).stored(3), store.images(3).reshape(-1))


def test_a_file_of_another_store_is_refused(lossless, jpegs, tmp_path):
    store = own_copy(lossless, tmp_path)
    shutil.copy(jpegs[0] / "train" / FILE_NAME, store.path / "train" / FILE_NAME)
    with pytest.raises(UserError, match="other images than its store"):
        find_beton(store)


def test_a_failed_write_leaves_the_old_file_and_no_other(lossless, tmp_path, monkeypatch):
    store = own_copy(lossless, tmp_path)
    before = write_beton(store).read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunError, match="No space left"):
        write_beton(store, mode="jpeg")
    assert (store.path / "train" / FILE_NAME).read_bytes() == before
    assert not list((store.path / "train").glob("*.partial"))
    with pytest.raises(UserError, match="choose raw or jpeg"):
        write_beton(store, mode="png")


def test_prepare_writes_the_file_on_request_and_again_only_when_it_is_not_as_wanted(tmp_path):
    write_pictures(tmp_path / "source", ".jpg")
    arguments = {"spec": str(tmp_path / "source"), "out_dir": tmp_path / "store", "workers": 1}
    store = open_store(prepare(**arguments, beton="jpeg"), "test")
    path = store.path / "test" / FILE_NAME
    assert find_beton(store).is_jpeg.all() and (store.path / "train" / FILE_NAME).is_file()
    made = path.stat().st_ino
    prepare(**arguments, beton="jpeg")
    assert path.stat().st_ino == made
    prepare(**arguments, beton="raw")
    assert not find_beton(store).is_jpeg.any()
    path.write_bytes(path.read_bytes()[:1000])
    prepare(**arguments, beton="raw")
    assert len(find_beton(store)) == len(store)
    with pytest.raises(UserError, match="choose raw or jpeg"):
        prepare(**arguments, beton="png")


def _ensure(path) -> None:
    from fastlg.data.store.beton_write import ensure_beton

    ensure_beton(open_store(path, "train"), "raw")


def test_of_processes_that_need_the_file_at_once_one_writes_it(lossless, tmp_path):
    store = own_copy(lossless, tmp_path)
    processes = [multiprocessing.get_context("fork").Process(target=_ensure, args=(store.path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG_S)
        assert process.exitcode == 0
    assert np.array_equal(find_beton(store).stored(2), store.images(2).reshape(-1))
    assert {p.name for p in (store.path / "train").glob("*beton*")} <= {FILE_NAME, FILE_NAME + ".checked.json"}
    assert not list((store.path / "train").glob(".*partial"))


# The loader


@pytest.mark.parametrize("options", [{}, {"interpolation": "bilinear", "size": 40}, {"train": False}])
def test_raw_pixels_are_pillows_and_samples_those_of_every_loader(ffcv, lossless, options):
    store = open_store(lossless, "train")
    loader = ffcv_loader(store, plan(**options), workers=2)
    got, want = list(loader.epoch(2)), list(TorchLoader(store, plan(**options)).epoch(2))
    assert len(got) == len(loader) == 6 and [len(b.labels) for b in got] == [4, 4, 4, 4, 4, 1]
    assert_same_samples(got, want)
    assert differences(got, want).max() == 0


@pytest.mark.parametrize("options", [{}, {"size": 50}, {"train": False}])
def test_jpeg_pixels_stay_within_a_few_levels_of_pillows(ffcv, jpegs, options):
    store = open_store(jpegs[0], "train")
    got = list(ffcv_loader(store, plan(**options)).epoch(1))
    want = list(TorchLoader(store, plan(**options)).epoch(1))
    assert_same_samples(got, want)
    error = differences(got, want).float()
    assert error.max() <= 10 and error.mean() < 2  # FFCV decodes with the fast, less exact DCT


def test_jpeg_photographs_stay_within_8_levels_and_1_on_average(ffcv, shared, tmp_path):
    store = photographs_as_beton(shared, tmp_path)
    settings = plan(size=224)
    error = differences(ffcv_loader(store, settings).epoch(0), TorchLoader(store, settings).epoch(0)).float()
    assert error.max() <= 8 and error.mean() < 1.2


@pytest.mark.parametrize("options", [{}, {"interpolation": "bilinear", "size": 40}, {"train": False}])
def test_crops_resized_on_the_device_are_pillows(ffcv, lossless, options):
    store = open_store(lossless, "train")
    loader = ffcv_loader(store, plan(**options), workers=2)
    loader.resize_on_device = True  # as on CUDA: crops are packed, sent and resized there
    got, want = list(loader.epoch(2)), list(TorchLoader(store, plan(**options)).epoch(2))
    assert_same_samples(got, want)
    assert differences(got, want).max() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_cuda_are_those_on_the_cpu(ffcv, lossless):
    store = open_store(lossless, "train")
    got = list(ffcv_loader(store, plan(), device="cuda", workers=2).epoch(2))
    assert all(tensor.is_cuda for batch in got for tensor in batch)
    got = [type(batch)(*(tensor.cpu() for tensor in batch)) for batch in got]
    want = list(ffcv_loader(store, plan()).epoch(2))
    assert_same_samples(got, want)
    assert differences(got, want).max() == 0


def test_an_epoch_starts_anywhere_and_two_run_side_by_side(ffcv, jpegs):
    store = open_store(jpegs[0], "train")
    loader = ffcv_loader(store, plan(), workers=2)
    whole = list(loader.epoch(3))
    for got, want in zip(loader.epoch(3, start_batch=4), whole[4:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert list(loader.epoch(3, start_batch=6)) == []
    pairs = list(zip(loader.epoch(3), loader.epoch(5), strict=True))
    assert all(torch.equal(a.images, b.images) for (a, _), b in zip(pairs, whole, strict=True))
    assert not torch.equal(joined(a for a, _ in pairs).sample_ids, joined(b for _, b in pairs).sample_ids)


def test_processes_share_an_epoch_without_repeat_or_loss(ffcv, lossless):
    assert_ranks_share(ffcv_loader, open_store(lossless, "train"))


def damaged_jpeg(store, sample: int, damage) -> None:
    """Write the store's .beton anew with one JPEG file replaced by ``damage(file)``, which may be shorter."""
    beton = open_beton(write_beton(store, mode="jpeg"))
    start, length = int(beton.starts[sample]), int(beton.lengths[sample])
    content = bytearray(beton.path.read_bytes())
    data = damage(bytes(content[start : start + length]))
    content[start : start + len(data)] = data
    entry = len(content) - 24 * (len(beton) - sample)  # sample, pointer, bytes
    content[entry + 16 : entry + 24] = len(data).to_bytes(8, "little")
    note = content.index(b'{"store"')
    content[note : note + 2] = b"{}"  # no digest, as in FFCV's own files
    beton.path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"), [(lambda data: data[: len(data) // 2], "truncated"), (lambda data: b"a text", "not an image")]
)
def test_a_damaged_jpeg_stops_the_epoch_by_name_and_is_never_a_grey_picture(ffcv, lossless, tmp_path, damage, reason):
    store = own_copy(lossless, tmp_path)
    wanted = int(plan().order(TRAIN_COUNT, 0)[6])
    damaged_jpeg(store, wanted, damage)
    batches = ffcv_loader(store, plan(), workers=2).epoch(0)
    next(batches)
    with pytest.raises(RunError, match=f"sample {wanted}: .*{reason}") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


def test_a_jpeg_that_only_makes_the_decoder_warn_is_still_read(ffcv, lossless, tmp_path):
    store = own_copy(lossless, tmp_path)
    last = TRAIN_COUNT - 1  # followed by the unused end of its page, so that it may grow
    damaged_jpeg(store, last, lambda data: data[:20] + b"\0\0" + data[20:])  # behind the first segment: junk
    loader = ffcv_loader(store, plan(train=False))
    stored = loader.beton.stored(last)
    height, width = store.sizes[last].tolist()
    assert loader.imdecode(stored, np.empty((height, width, 3), np.uint8), height, width, height, width) != 0
    got = joined(loader.epoch(0)).images[last]
    want = Image.open(io.BytesIO(stored)).resize((19, 19), Image.Resampling.BILINEAR)
    assert np.abs(got.numpy().astype(int) - np.asarray(want)).max() <= 2


def test_without_a_file_the_loader_writes_one_beside_the_pixels(ffcv, lossless, tmp_path, caplog):
    store = own_copy(lossless, tmp_path)
    caplog.set_level("INFO")
    loader = ffcv_loader(store, plan())
    assert (store.path / "train" / FILE_NAME).is_file() and "images.beton: 21 images" in caplog.text
    assert not loader.beton.is_jpeg.any() and loader.batch_size == 4


def test_importing_ffcv_leaves_torchs_threads_alone(ffcv):
    assert ffcv == 3  # FFCV itself sets it to 1


def test_a_missing_ffcv_is_one_line_with_the_commands(lossless, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv", None)
    monkeypatch.setitem(sys.modules, "ffcv.libffcv", None)
    commands = r"pip install 'fastlg\[ffcv\]'.*pkg-config libturbojpeg0-dev libopencv-dev"
    with pytest.raises(UserError, match=commands) as caught:
        ffcv_loader(open_store(lossless, "train"), plan())
    assert "\n" not in str(caught.value)
