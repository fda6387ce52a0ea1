"""One decoder for every source: bytes (or an array) in, uint8 RGB out, or a named refusal.

The rules, one for each way an image file surprises a loader:

* The format comes from the content; the file's extension is never looked at.
* EXIF orientation IS applied, so a portrait photograph stands upright (torchvision's ImageFolder does not do this).
* Alpha is dropped, not composited; a palette is looked up; CMYK becomes RGB; the first frame of an animation counts.
* 16-bit grey is scaled by 1/257 and rounded; 16-bit colour keeps its high byte (what Pillow itself reads).
* A PNG's checksums count, also those that Pillow leaves unread.
* Truncated, empty, foreign and oversized files are refused. Nothing is ever returned half decoded.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageFile, ImageOps

from fastlg.errors import UserError, first_line, printable

MAX_PIXELS = 178_956_970  # 0.5 GB as RGB: where Pillow, too, takes an image for a decompression bomb
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


class BadImage(UserError):
    """An image that cannot be used. ``name`` is the file or row, on one printable line; ``reason`` why."""

    def __init__(self, name: str, reason: str):
        self.name, self.reason = printable(name), printable(reason)
        super().__init__(f"{self.name}: {self.reason}")

    def __reduce__(self):
        return BadImage, (self.name, self.reason)


def decode_image(data: bytes | np.ndarray, name: str) -> np.ndarray:
    """Decode one image to uint8 [H, W, 3], C-contiguous.

    Args:
        data: an encoded image file, or uint8 pixels [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha is dropped).
        name: file or row, for the error message.

    Raises:
        BadImage: the image is empty, truncated, of no known format, too large, or of a depth with no 8-bit meaning.
    """
    if isinstance(data, np.ndarray):
        return _from_array(data, name)
    if len(data) == 0:
        raise BadImage(name, "the file is empty (0 bytes)")
    # Another library in the process may have switched this on; it turns a truncated file into a half grey picture.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=_formats()) as image:
            # Pillow warns of what is refused or accepted here anyway
            _check_size(image, name)
            if image.format == "PNG" and (chunk := _altered_chunk(data)):
                raise BadImage(name, f"damaged image (the checksum of its {chunk} chunk does not fit)")
            image.load()
            return _to_rgb(_upright(image), name)
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(name, f"not an image (the file starts with {bytes(data[:12])!r})") from None
    except Image.DecompressionBombError:
        raise BadImage(name, f"more than {MAX_PIXELS} pixels, taken for a decompression bomb") from None
    except Exception as error:  # codecs raise OSError, SyntaxError, ValueError, struct.error, MemoryError, ...
        raise BadImage(name, f"damaged image ({' '.join(str(error).split()) or type(error).__name__})") from error


def upright_rgb(image: Image.Image, name: str) -> np.ndarray:
    """The pixels of an open image, uint8 [H, W, 3], by the rules above; it is left as it is. Raises BadImage."""
    _check_size(image, name)
    try:
        image.load()
        return _to_rgb(_upright(image), name)
    except BadImage:
        raise
    except Exception as error:  # whatever the codec raises: a PIL image reads its file when it is first looked at
        raise BadImage(name, f"damaged image ({first_line(error)})") from error


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(name, f"{width}x{height} is more than {MAX_PIXELS} pixels, taken for a decompression bomb")


def _altered_chunk(png: bytes) -> str | None:
    """The first chunk that decoding needs whose checksum is wrong. Pillow does not look at those of the pixels."""
    position, view = 8, memoryview(png)
    while position + 12 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        end = position + 8 + length
        is_needed = not kind[0] & 0x20  # PNG specification, 5.4: an upper case first letter
        if is_needed and view[end : end + 4] != struct.pack(">I", zlib.crc32(view[position + 4 : end])):
            return kind.decode("ascii", "backslashreplace")
        if kind == b"IEND":
            break
        position = end + 4
    return None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)  # a copy in any case
    except Exception:  # EXIF that cannot be read says nothing about orientation; the pixels are whole
        return image.copy()


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode.startswith("I"):
        return _grey_to_rgb(_scale_16_bit(np.asarray(image), name))
    if image.mode == "F":
        raise BadImage(name, "32-bit float pixels have no fixed white level; save the image with 8 or 16 bits")
    image.info.pop("transparency", None)  # alpha is dropped; Pillow would warn that a palette has some
    return np.array(image.convert("RGB"))


def _scale_16_bit(grey: np.ndarray, name: str) -> np.ndarray:
    """16-bit grey [H, W] (in any integer type) to uint8: value / 257, rounded."""
    if grey.min() < 0 or grey.max() > 65535:
        raise BadImage(name, "32-bit integer pixels have no fixed white level; save the image with 8 or 16 bits")
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _from_array(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype != np.uint8:
        raise BadImage(name, f"pixels are {pixels.dtype}, not uint8")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise BadImage(name, f"pixels of shape {tuple(pixels.shape)} are no picture; expected [H, W] or [H, W, 3]")
    if pixels.ndim == 2:
        return _grey_to_rgb(pixels)
    return np.ascontiguousarray(pixels[:, :, :3])
