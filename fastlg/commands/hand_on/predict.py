"""``fastlg predict``: what a run, or an export of it, says of images that nobody labelled."""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastlg.batch import Batch
from fastlg.commands.hand_on.images import readable
from fastlg.config import Config
from fastlg.data.loaders.torch import crop_and_resize
from fastlg.data.views.make import ViewMaker
from fastlg.engine.precision import pick_device, pick_dtype
from fastlg.engine.protocol import autocast
from fastlg.errors import UserError, printable
from fastlg.ranks.pulse import Pulse
from fastlg.run.trained import as_tested, is_export, load_export, load_trained

BATCH = 64  # images in memory at once


class Prediction(NamedTuple):
    """Of one image. ``top``: (class, probability from 0 to 1), the likeliest first."""

    image: str
    top: list[tuple[str, float]]


class Predictor:
    """A trained network with the evaluation transform of its run: the whole image, squashed to the square, bilinear.

    ``predictor([(name, uint8 pixels [H, W, 3]), ...])`` yields a Prediction for each.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], class_names: Sequence[str], *, size: int, views: ViewMaker):
        """``size`` in px; ``views`` normalises, and lies in the dtype that ``logits`` takes."""
        self.logits, self.class_names, self.size, self.views = logits, list(class_names), size, views
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def on(self, device: torch.device, dtype: torch.dtype) -> Predictor:
        self.device, self.dtype = device, dtype
        return self

    def __call__(self, images: Iterable[tuple[str, np.ndarray]], top_k: int = 5) -> Iterator[Prediction]:
        """Raises UserError for a ``top_k`` below 1; one above the number of classes gives all of them."""
        if top_k < 1:
            raise UserError(f"top-k is {top_k}; it is at least 1")
        images = iter(images)
        while some := list(itertools.islice(images, BATCH)):
            ranked = self.probabilities([pixels for _, pixels in some]).sort(dim=1, descending=True, stable=True)
            for (name, _), values, labels in zip(some, ranked.values, ranked.indices, strict=True):
                pairs = zip(labels[:top_k].tolist(), values[:top_k].tolist(), strict=True)
                yield Prediction(name, [(self.class_names[label], value) for label, value in pairs])

    @torch.inference_mode()
    def probabilities(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 [H, W, 3] each -> float32 [N, K] on the CPU."""
        whole = [crop_and_resize(pixels, [0, 0, *pixels.shape[:2]], self.size, "bilinear") for pixels in images]
        pixels = torch.from_numpy(np.stack(whole)).to(self.device)
        ids = torch.zeros(len(images), dtype=torch.int64, device=self.device)
        batch = Batch(pixels, ids, ids, torch.zeros(len(images), 4, device=self.device), ids.bool())
        with autocast(self.device, self.dtype):
            return self.logits(self.views(batch, 0, train=False).student).float().softmax(1).cpu()


def predictor_of(folder: Path, which: str = "last", overrides: dict[str, Any] | None = None) -> Predictor:
    """Of a run folder, or of a folder that ``fastlg export`` wrote. ``overrides``: engine.* alone. Raises UserError."""
    overrides = overrides or {}
    if foreign := [key for key in overrides if not key.startswith("engine.")]:
        raise UserError(f"predict cannot change {foreign[0]}: it is part of the trained run; engine.* may differ")
    config, model, class_names = load_export(folder) if is_export(folder) else load_trained(folder, which)
    return of_network(model, class_names, config.replace(overrides))


def of_network(model: nn.Module, class_names: Sequence[str], config: Config) -> Predictor:
    """Of a run's network, which gives (logits, features), in the device and precision of its ``engine`` section."""
    device = pick_device(config.engine)
    dtype = pick_dtype(config.engine, device)
    model = as_tested(model, config, device, dtype).eval()
    views = _normaliser(config.augment.mean, config.augment.std, dtype)
    size = config.model.image_size
    return Predictor(lambda images: model(images)[0], class_names, size=size, views=views).on(device, dtype)


def _normaliser(mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> ViewMaker:
    return ViewMaker(teacher_size=None, rand_augment=None, erase=0.0, mean=tuple(mean), std=tuple(std), dtype=dtype)


def predict(folder: Path, paths: Sequence[Path], *, top_k: int = 5, form: str = "text", which: str = "last") -> int:
    """Prints what the run or export in ``folder`` says of image files, as text, csv or json; returns the exit status.

    That is 1 where a file could not be read: it is told with its reason on stderr and left out, the others are
    predicted. Raises UserError; where no image is left, after that has been said of each.
    """
    if top_k < 1:
        raise UserError(f"--top-k is {top_k}; it is at least 1")
    skipped: list[str] = []
    writer = _Writer(form, sys.stdout)
    with Pulse(lambda: f"predict  {writer.count} of {len(paths)} images", aside=True):
        for prediction in predictor_of(folder, which)(readable(paths, skipped), top_k):
            writer.write(prediction)
            if writer.count % BATCH == 0:  # into a file or a pipe, too
                sys.stdout.flush()
    writer.close()
    for line in skipped:
        print(f"fastlg: left out {line}", file=sys.stderr)
    if not writer.count:
        raise UserError(f"none of the {len(paths)} images can be read; see the lines above")
    return 1 if skipped else 0


class _Writer:
    """Predictions on a stream as they come: plain lines, one CSV row per image and class, or one JSON list."""

    def __init__(self, form: str, stream):
        self.form, self.stream, self.count = form, stream, 0
        if form == "csv":
            self._row("image", "rank", "class", "probability")

    def write(self, own: Prediction) -> None:
        match self.form:
            case "csv":
                for rank, (name, probability) in enumerate(own.top, 1):
                    self._row(own.image, rank, name, f"{probability:.6f}")
            case "json":
                top = [{"class": name, "probability": round(probability, 6)} for name, probability in own.top]
                text = json.dumps({"image": own.image, "top": top}, ensure_ascii=True)
                self._put(f"{'[' if self.count == 0 else ','}\n {text}")
            case _:
                said = "  ".join(f"{name} {100 * probability:.1f} %" for name, probability in own.top)
                self._put(printable(f"{own.image}: {said}") + "\n")
        self.count += 1

    def close(self) -> None:
        if self.form == "json":
            self._put("\n]\n" if self.count else "[]\n")
        self.stream.flush()

    def _row(self, *cells: object) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        self._put(text.getvalue())

    def _put(self, text: str) -> None:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
