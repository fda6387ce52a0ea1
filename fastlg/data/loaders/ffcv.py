"""FFCV's file and FFCV's JPEG decoder (libjpeg-turbo, called without the GIL), in threads of our own.

FFCV's own loop is left out: its random crops take no seed; it ignores the decoder's verdict, so a damaged file becomes
a grey picture; it waits forever for a thread that died; an epoch left early keeps its thread and buffers; it compiles
for ten seconds and sets torch's thread count. Here worker threads decode whole images, once each, and cut the crops.
For the CPU the same thread resizes them, raw ones by Pillow as in torch.py, those of JPEG files by torch. For a
GPU they are packed, sent, and resized there by the kernel that the resident loader uses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastlg.batch import Batch
from fastlg.data.loaders.plan import Draw, SamplePlan
from fastlg.data.loaders.torch import crop_and_resize
from fastlg.data.store.beton_read import Beton, find_beton
from fastlg.data.store.beton_write import ensure_beton
from fastlg.data.store.decode import BadImage, decode_image
from fastlg.data.store.store import Store
from fastlg.errors import RunError, UserError, first_line
from fastlg_kernels import RaggedImages, resize_crops

BATCHES_AHEAD = 2  # decoded while the caller works on the last one
_TASK_IMAGES = 8  # images a thread takes at a time


class FfcvLoader:
    """Batches of a store's .beton file, raw or JPEG; a raw one is written first where there is none.

    Args:
        store: one split, from ``open_store``.
        plan: what is delivered (data/loaders/plan.py).
        device: where the batches go; to CUDA through pinned memory without waiting.
        workers: decoding threads, at least one.

    Raises:
        UserError: FFCV is missing, or the file is damaged or of another store.
    """

    def __init__(self, store: Store, plan: SamplePlan, *, device: torch.device | str = "cpu", workers: int = 0):
        self.store = store
        self.plan = plan
        self.device = torch.device(device)
        self.workers = max(1, workers)
        self.resize_on_device = self.device.type == "cuda"  # else in the decoding threads
        self.imdecode = _import_imdecode()
        self.beton = _beton_of(store)
        self._sizes = torch.from_numpy(self.beton.sizes)
        # Kept from epoch to epoch: FFCV's decoder never frees what it keeps per thread.
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="fastlg-ffcv")

    @property
    def batch_size(self) -> int:
        """Samples per process and step."""
        return self.plan.batch_size

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.plan.slices(len(self.beton)))

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_batch`` on; earlier ones are neither read nor decoded.

        An epoch may be left at any batch: what is still being decoded is waited for, and nothing is kept.

        Raises:
            RunError: an image cannot be decoded; the sample is named.
        """
        ahead: deque[_Batch] = deque()
        try:
            for draw in self.plan.batches(self._sizes, epoch, start_batch):
                ahead.append(self._start(draw))
                if len(ahead) > BATCHES_AHEAD:
                    yield self._finish(ahead.popleft())
            while ahead:
                yield self._finish(ahead.popleft())
        finally:
            for batch in ahead:
                _abandon(batch)

    def _start(self, draw: Draw) -> _Batch:
        """Give the batch's images to the threads."""
        boxes = draw.boxes
        areas = boxes[:, 2:].prod(1) if self.resize_on_device else torch.full((len(boxes),), self.plan.size**2)
        ends = (3 * areas).cumsum(0)
        starts = ends - 3 * areas
        pixels = torch.empty(int(ends[-1]), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        rows = list(zip(draw.sample_ids.tolist(), boxes.tolist(), starts.tolist(), strict=True))
        tasks = [rows[i : i + _TASK_IMAGES] for i in range(0, len(rows), _TASK_IMAGES)]
        # an error waits in its future until the batch is due
        futures = [self._threads.submit(self._fill, task, pixels.numpy()) for task in tasks]
        return _Batch(draw, pixels, starts, futures)

    def _fill(self, rows: list[tuple[int, list[int], int]], pixels: np.ndarray) -> None:
        """Write the crop of each (sample, box, start) to ``pixels`` [bytes] from ``start`` on. Runs in a thread."""
        size, interpolation = self.plan.size, self.plan.resample
        for sample, box, start in rows:
            y, x, height, width = box
            try:
                image = _decode(self.beton, self.imdecode, sample)
                if self.resize_on_device:
                    crop = image[y : y + height, x : x + width]
                elif self.beton.is_jpeg[sample]:
                    crop = _resize(image[y : y + height, x : x + width], size, interpolation)
                else:
                    crop = crop_and_resize(image, box, size, interpolation)
            except Exception as error:
                reason = error.reason if isinstance(error, BadImage) else first_line(error)
                raise RunError(f"{self.beton.path}, sample {sample}: {reason}; write it again") from error
            pixels[start : start + crop.size].reshape(crop.shape)[:] = crop

    def _finish(self, batch: _Batch) -> Batch:
        draw, size = batch.draw, self.plan.size
        try:
            for future in batch.futures:
                future.result()
        finally:
            _abandon(batch)
        pixels = self._send(batch.pixels)
        if self.resize_on_device:
            sizes = draw.boxes[:, 2:]
            crops = RaggedImages(pixels, batch.starts, sizes)  # stay here like boxes, where resize_crops reads them
            boxes = torch.cat([torch.zeros_like(sizes), sizes], dim=1)
            images = resize_crops(crops, boxes, size, interpolation=self.plan.resample)
        else:
            images = pixels.view(-1, size, size, 3)
        labels = torch.from_numpy(self.beton.labels[draw.sample_ids.numpy()])
        rest = (labels, draw.sample_ids, draw.fractions(self._sizes), draw.flip)
        return Batch(images, *(self._send(tensor) for tensor in rest))

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


class _Batch(NamedTuple):
    """A batch on its way: crops back to back, as cut or resized, and the threads' tasks."""

    draw: Draw
    pixels: Tensor
    starts: Tensor
    futures: list[Future]


def _abandon(batch: _Batch) -> None:
    """Take back the tasks not yet begun and wait for the others: they write to the batch's memory."""
    wait([future for future in batch.futures if not future.cancel()])


def _resize(crop: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """A crop uint8 [h, w, 3] to [size, size, 3] in torch's vector code, with antialias.

    Within 2 levels of Pillow on 99.9 % of values and several times as fast; for JPEG files, whose decoders differ more.
    """
    batch = torch.from_numpy(np.ascontiguousarray(crop))[None].permute(0, 3, 1, 2)  # channels last: the result too
    resized = functional.interpolate(batch, (size, size), mode=interpolation, antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()


def _decode(beton: Beton, imdecode: Callable, sample: int) -> np.ndarray:
    """Image ``sample``, uint8 [H, W, 3]."""
    stored = beton.stored(sample)
    height, width = beton.sizes[sample].tolist()
    if not beton.is_jpeg[sample]:
        return stored.reshape(height, width, 3)
    image = np.empty((height, width, 3), dtype=np.uint8)
    if imdecode(stored, image, height, width, height, width) == 0:
        return image
    # libjpeg-turbo also fails files that only made it warn: Pillow has the last word, as when the store was made
    image = decode_image(stored.tobytes(), f"image {sample}")
    if image.shape != (height, width, 3):
        raise BadImage(f"image {sample}", f"{image.shape[1]}x{image.shape[0]} pixels instead of {width}x{height}")
    return image


def _beton_of(store: Store) -> Beton:
    beton = find_beton(store)
    if beton is None:
        ensure_beton(store, "raw")
        beton = find_beton(store)
    return beton


def _import_imdecode() -> Callable:
    """FFCV's call into libjpeg-turbo.

    Raises:
        UserError: FFCV is not installed or does not load.
    """
    threads = torch.get_num_threads()
    try:
        from ffcv.libffcv import imdecode
    except Exception as error:  # besides ImportError: OSError for a missing library, and what another NumPy brings
        raise UserError(
            f"data.loader=ffcv needs ffcv ({first_line(error)}): pip install 'fastlg[ffcv]', which builds it; on "
            "Debian after apt-get install pkg-config libturbojpeg0-dev libopencv-dev"
        ) from None
    finally:
        torch.set_num_threads(threads)  # importing FFCV sets it to 1
    return imdecode
