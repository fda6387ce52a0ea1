"""NVIDIA DALI: decode, crop and resize in one pipeline, on the CPU or (nvJPEG) on the GPU.

DALI draws nothing: sample order, boxes and flips are ours and are fed from outside, so its epochs have the length and
the last batch that plan.py says. Of a JPEG file only the box is decoded. The GPU pipeline is the CPU pipeline with
another device.

DALI's resize is its own: on the CPU within one level of Pillow's on 99.9 % of values, except where the filter reaches
over the crop's edge. There DALI repeats the outermost pixels, while Pillow leaves them out and scales the rest.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fastlg.batch import Batch
from fastlg.data.loaders.plan import Draw, SamplePlan
from fastlg.data.store.beton_read import Beton, find_beton
from fastlg.data.store.decode import BadImage, decode_image
from fastlg.data.store.store import Store
from fastlg.errors import RunError, UserError, first_line

BATCHES_AHEAD = 2  # prepared by DALI's threads while the caller works on the last one


class DaliLoader:
    """Batches of a store: JPEG files from its .beton file where there is one of JPEGs, else the store's raw pixels.

    Args:
        store: one split, from ``open_store``.
        plan: what is delivered (data/loaders/plan.py).
        device: where the batches are made: "cpu" needs no GPU; "cuda" decodes with nvJPEG and resizes there.
        workers: DALI's threads, at least one.

    Raises:
        UserError: DALI is missing, or the .beton file is damaged, of another store, or not all JPEG.
    """

    def __init__(self, store: Store, plan: SamplePlan, *, device: torch.device | str = "cpu", workers: int = 0):
        _import_dali()
        self.store = store
        self.plan = plan
        self.device = torch.device(device)
        self.workers = max(1, workers)
        self.beton = _jpeg_beton(store)
        self._sizes = torch.from_numpy(store.sizes)
        self._idle: list[_Pipeline] = []

    @property
    def batch_size(self) -> int:
        """Samples per process and step."""
        return self.plan.batch_size

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.plan.slices(len(self.store)))

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_batch`` on; earlier ones are neither read nor decoded.

        An epoch may be left at any batch: what DALI has begun is waited for, and its pipeline serves the next epoch.

        Raises:
            RunError: an image cannot be decoded; the sample is named.
        """
        pipeline = self._idle.pop() if self._idle else self._pipeline()
        draws = self.plan.batches(self._sizes, epoch, start_batch)
        whole = False  # whether the pipeline can be used again
        try:
            for draw, images in pipeline.run(draws):
                labels = torch.from_numpy(self.store.labels[draw.sample_ids.numpy()])
                rest = (labels, draw.sample_ids, draw.fractions(self._sizes), draw.flip)
                yield Batch(images, *(tensor.to(self.device, non_blocking=True) for tensor in rest))
            whole = True
        except GeneratorExit:
            whole = pipeline.drain()
            raise
        finally:
            if whole:
                self._idle.append(pipeline)

    def _pipeline(self) -> _Pipeline:
        return _Pipeline(self.plan, _Feed(self.store, self.beton), self.device, self.workers)


class _Feed:
    """What DALI asks for its next batch. It knows no pipeline: see _Pipeline."""

    def __init__(self, store: Store, beton: Beton | None):
        self.store = store
        self.beton = beton
        self.draws: Iterator[Draw] = iter(())
        self.begun: deque[Draw] = deque()  # asked for by DALI, not delivered yet

    def raw_crops(self) -> list[np.ndarray]:
        """The boxes' pixels, uint8 [h, w, 3] each."""
        draw = self._begin()
        crops = []
        for sample, (y, x, height, width) in zip(draw.sample_ids.tolist(), draw.boxes.tolist(), strict=True):
            try:
                crop = self.store.images(sample)[y : y + height, x : x + width]
            except Exception as error:
                raise RunError(f"{self.store.path} {self.store.split}, sample {sample}: {error!r}") from error
            crops.append(np.ascontiguousarray(crop))
        return crops

    def jpeg_files(self) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """JPEG files uint8 [bytes], box corners int32 [2] and box sizes int32 [2]."""
        draw = self._begin()
        boxes = draw.boxes.int().numpy()
        return [self.beton.stored(i) for i in draw.sample_ids.tolist()], list(boxes[:, :2]), list(boxes[:, 2:])

    def _begin(self) -> Draw:
        draw = next(self.draws)  # at the end StopIteration, which tells DALI that the epoch is over
        self.begun.append(draw)
        return draw

    def blame(self, error: Exception) -> str:
        """One line for an error of the batches begun. DALI seldom says which file it was: ask Pillow."""
        if self.beton is not None:
            for sample in (int(i) for draw in self.begun for i in draw.sample_ids):
                try:
                    decode_image(self.beton.stored(sample).tobytes(), f"sample {sample}")
                except BadImage as bad:
                    return f"{self.beton.path}, {bad}; write it again"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if re.search("fail|sample #", line, re.I)), lines[-1] if lines else "")
        return f"DALI failed on {self.store.path} {self.store.split}: {reason[:160] or type(error).__name__}"


class _Pipeline:
    """A DALI pipeline, fed by ``run``. After an error it cannot be used again.

    Nothing it refers to refers back, so it ends when it is dropped. Left to the garbage collector it might be collected
    in a forked process, say a DataLoader's worker, and wait there forever for threads that only the parent has.
    """

    def __init__(self, plan: SamplePlan, feed: _Feed, device: torch.device, threads: int):
        from nvidia.dali import Pipeline, fn, types

        self._feed = feed
        self._device = device
        gpu = device.type == "cuda"
        interpolation = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}[plan.resample]
        self._pipeline = Pipeline(
            batch_size=plan.batch_size,
            num_threads=threads,
            device_id=_device_index(device) if gpu else None,
            prefetch_queue_depth=BATCHES_AHEAD,
        )
        with self._pipeline:
            if feed.beton is None:
                crops = fn.external_source(source=feed.raw_crops, dtype=types.UINT8, ndim=3, layout="HWC")
                crops = crops.gpu() if gpu else crops
            else:
                files, starts, shapes = fn.external_source(
                    source=feed.jpeg_files,
                    num_outputs=3,
                    dtype=[types.UINT8, types.INT32, types.INT32],
                    ndim=[1, 1, 1],
                )
                crops = fn.decoders.image_slice(
                    files,
                    starts,
                    shapes,
                    axes=[0, 1],
                    device="mixed" if gpu else "cpu",
                    adjust_orientation=False,  # boxes and sizes are those of the pixels as stored
                    jpeg_fancy_upsampling=True,  # nvJPEG's chroma as libjpeg's
                )
            resized = fn.resize(crops, size=(plan.size, plan.size), interp_type=interpolation, antialias=True)
            self._pipeline.set_outputs(resized)
        self._pipeline.build()

    def run(self, draws: Iterator[Draw]) -> Iterator[tuple[Draw, Tensor]]:
        """Each batch of ``draws`` and its crops, uint8 [N, S, S, 3] on the device.

        Raises:
            RunError: an image cannot be decoded; the sample is named.
        """
        self._feed.draws = draws
        while (images := self._next()) is not None:
            yield self._feed.begun.popleft(), images

    def drain(self) -> bool:
        """Wait for the batches that were begun; whether the pipeline can be used again."""
        self._feed.draws = iter(())
        try:
            while self._next() is not None:
                pass
        except RunError:
            return False
        self._feed.begun.clear()
        return True

    def _next(self) -> Tensor | None:
        from nvidia.dali.plugin.pytorch import feed_ndarray

        try:
            self._pipeline.schedule_run()
            (outputs,) = self._pipeline.share_outputs()
        except StopIteration:
            self._pipeline.reset()
            return None
        except RunError:  # from _Feed.raw_crops
            raise
        except Exception as error:
            raise RunError(self._feed.blame(error)) from error
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        crops = outputs.as_tensor()
        images = feed_ndarray(crops, torch.empty(crops.shape(), dtype=torch.uint8, device=self._device), stream)
        self._pipeline.release_outputs()
        return images


def _jpeg_beton(store: Store) -> Beton | None:
    """The store's .beton file if it holds JPEG files. Raw ones hold the store's own pixels."""
    beton = find_beton(store)
    if beton is None or not beton.is_jpeg.any():
        return None
    if not beton.is_jpeg.all():
        raise UserError(f"{beton.path} holds JPEG and raw images, which DALI cannot decode together; write it again")
    return beton


def _device_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _import_dali() -> None:
    """Raises UserError when DALI is not installed or does not load."""
    try:
        import nvidia.dali  # noqa: F401
    except Exception as error:  # besides ImportError: OSError for a missing shared library
        raise UserError(
            f"data.loader=dali needs nvidia-dali ({first_line(error)}): pip install 'fastlg[dali]'"
        ) from None
