"""decode_image: every hostile file is accepted or refused as promised, by content, and never half decoded."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageFile

from fastlg.data.store.decode import MAX_PIXELS, BadImage, decode_image
from fastlg.errors import UserError


def encoded(pixels, fmt, mode=None, **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, fmt, **options)
    return file.getvalue()


def photo(height=37, width=53, seed=0) -> np.ndarray:
    """Smooth colour gradients with a bright corner, so that codecs and orientation mistakes show."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=2)
    picture[:9, :13] = 255
    return picture.astype(np.uint8)


@pytest.fixture(scope="module")
def corrupt(shared):
    folder = shared / "data" / "corrupt"
    return folder, json.loads((folder / "manifest.json").read_text())["files"]


def test_hostile_files_are_accepted_or_refused_as_their_manifest_says(corrupt):
    folder, entries = corrupt
    assert len(entries) == 12
    for entry in entries:
        data = (folder / entry["file"]).read_bytes()
        if entry["expect"] == "reject":
            with pytest.raises(BadImage, match=entry["file"]) as caught:
                decode_image(data, entry["file"])
            assert len(caught.value.reason) > 10 and "\n" not in str(caught.value)
            continue
        pixels = decode_image(data, entry["file"])
        width, height = entry["rgb_size"]
        assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8, entry["file"]
        tolerance = entry["mean_tolerance"]
        corner = pixels[: height // 2, : width // 2]
        assert np.abs(pixels.mean((0, 1)) - entry["rgb_mean"]).max() <= tolerance, entry["file"]
        assert np.abs(corner.mean((0, 1)) - entry["top_left_quadrant_mean"]).max() <= tolerance + 1, entry["file"]


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_bit_for_bit(fmt):
    options = {"lossless": True} if fmt == "WEBP" else {}
    assert np.array_equal(decode_image(encoded(photo(), fmt, **options), "a.jpg"), photo())


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decode_image(encoded(values, "PNG"), "deep.png")
    assert np.array_equal(pixels[..., 0].ravel(), np.rint(np.arange(65536) / 257))
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_depths_without_a_white_level_are_refused():
    for values in (np.full((5, 4), 0.5, np.float32), np.full((5, 4), 70000, np.int32)):
        with pytest.raises(BadImage, match="deep.tif.*8 or 16 bits"):
            decode_image(encoded(values, "TIFF"), "deep.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_ends_upright(orientation):
    upright = photo(24, 40)
    # how each orientation stores an upright picture (EXIF 2.32, tag 0x0112)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # a viewer turns it clockwise, so it is stored turned the other way
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_image(encoded(np.ascontiguousarray(stored), "PNG", exif=exif), "a.png"), upright)


def test_alpha_is_dropped_and_palettes_are_looked_up():
    rgba = np.dstack([photo(), np.full((37, 53), 3, np.uint8)])
    assert np.array_equal(decode_image(encoded(rgba, "PNG"), "a.png"), photo())
    palette = Image.fromarray(photo()).quantize(17)
    file = io.BytesIO()
    palette.save(file, "PNG")
    assert np.array_equal(decode_image(file.getvalue(), "p.png"), np.asarray(palette.convert("RGB")))
    bits = (photo()[..., 0] > 99).astype(np.uint8) * 255
    assert np.array_equal(decode_image(encoded(bits, "PNG", mode="1"), "b.png"), np.repeat(bits[..., None], 3, 2))


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_no_cut_file_passes(fmt, share, monkeypatch):
    # another library may have told Pillow to accept such files
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = encoded(noise, fmt)
    with pytest.raises(BadImage, match="cut.img"):
        decode_image(data[: int(len(data) * share)], "cut.img")


def test_what_pillow_warns_of_is_refused_or_accepted_without_a_word_of_its_own(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # it warns above, and refuses above twice as much
    assert decode_image(encoded(photo(), "PNG"), "large.png").shape == (37, 53, 3)
    with pytest.raises(BadImage, match="cut.tif"):
        decode_image(encoded(photo(), "TIFF")[:-60], "cut.tif")
    assert not recwarn.list


@pytest.mark.parametrize("chunk", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_png_whose_checksum_is_wrong_is_refused(chunk):
    file = io.BytesIO()
    Image.fromarray(photo()).quantize(9).save(file, "PNG")
    data = bytearray(file.getvalue())
    at = data.index(chunk)
    end = at + 4 + int.from_bytes(data[at - 4 : at], "big")
    data[end] ^= 1
    with pytest.raises(BadImage, match="x.png: damaged image|x.png: not an image"):
        decode_image(bytes(data), "x.png")


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # another library may have switched Pillow's own limit off
    side = int(MAX_PIXELS**0.5) + 1
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("the pixels were unpacked"))
    with pytest.raises(BadImage, match="bomb.png.*decompression bomb"):
        decode_image(file.getvalue(), "bomb.png")


def test_arrays_become_rgb_or_are_refused():
    grey = photo()[..., 0]
    expected = np.repeat(grey[..., None], 3, 2)
    assert np.array_equal(decode_image(grey, "row 0"), expected)
    assert np.array_equal(decode_image(grey[..., None], "row 0"), expected)
    strided = photo()[:, ::-1]
    assert np.array_equal(decode_image(strided, "row 0"), strided)
    assert decode_image(strided, "row 0").flags.c_contiguous
    for bad in (grey.astype(np.float32), np.zeros((4, 5, 2), np.uint8), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(UserError, match="row 7"):
            decode_image(bad, "row 7")
