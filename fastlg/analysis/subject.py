"""What is analysed: the student of a run folder or of an export, the images, and the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastlg.assemble import make_views
from fastlg.batch import Batch
from fastlg.config import AugmentConfig, Config, read_saved_config
from fastlg.data.loaders.torch import crop_and_resize
from fastlg.data.store.store import Store, open_store
from fastlg.data.stores import open_stores, store_to_measure
from fastlg.errors import UserError
from fastlg.models.general.teaching import as_teacher
from fastlg.models.student import Student
from fastlg.ranks.say import say
from fastlg.run.report import read_metrics
from fastlg.run.trained import is_export, load_export, load_teacher, load_trained
from fastlg.teacher.recipe import teacher_config

BATCH = 32  # images; attention step by step takes memory


@dataclass
class Subject:
    """A trained student.

    config   the run's with the overrides of images and device; of an export only what it says and they
    trained  the run's own; None for an export, which names no images and no teacher
    """

    name: str
    folder: Path
    student: Student
    config: Config
    class_names: list[str]
    trained: Config | None

    @property
    def rows(self) -> list[dict]:
        """Of its metrics.jsonl."""
        return [] if self.trained is None else read_metrics(self.folder)


def load_subject(folder: Path, which: str, overrides: dict, source: str | None = None) -> Subject:
    """``overrides``: dotted keys of data and engine; ``source``: of the images, for an export beside a run.

    Raises UserError for what is no run, no export or no student.
    """
    if is_export(folder):
        if (source := overrides.get("data.source", source)) is None:
            raise UserError(f"{folder} is an exported model, which knows no images; add data.source=IMAGES")
        config, student, names = load_export(folder, source)
        return Subject(str(folder), folder, student, config.replace(overrides), names, None)
    trained, model, names = load_trained(folder, which)
    if not isinstance(model, Student):
        raise UserError(f"{folder} holds a {trained.model.name}, which has no attention; analyze a student's run")
    return Subject(str(folder), folder, model, trained.replace(overrides), names, trained)


def images_of(subject: Subject, is_other: bool) -> Store:
    """The test images of a run; ``is_other``: of another ``data.source``, whose classes are matched by name."""
    data = subject.config.data
    if not (is_other or subject.trained is None):
        return open_stores(data).test
    return open_store(store_to_measure(data, subject.class_names), "test")


def evenly(count: int, wanted: int) -> list[int]:
    """``wanted`` of ``count`` rows, evenly spread: test images lie class by class."""
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()


def batches(
    subject: Subject, store: Store, rows: list[int], teacher_size: int | None, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(the student's view, the teacher's) of the given rows of ``store``, as the run is evaluated, batch by batch."""
    views, size = make_views(subject.config, teacher_size), subject.config.model.image_size
    for first in range(0, len(rows), BATCH):
        ids = rows[first : first + BATCH]
        made = views(_batch(store, ids, size, device), 0, train=False)
        yield made.student, made.teacher


def _batch(store: Store, ids: list[int], size: int, device: torch.device) -> Batch:
    pixels = pictures(store, ids, size)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(ids), 4)
    parts = (torch.from_numpy(pixels), torch.from_numpy(store.labels[ids]), torch.tensor(ids), whole)
    return Batch(*(part.to(device) for part in (*parts, torch.zeros(len(ids), dtype=torch.bool))))


def pictures(store: Store, ids: list[int], size: int) -> np.ndarray:
    """uint8 [N, size, size, 3]: whole images, as evaluation sees them."""
    whole = [store.images(row) for row in ids]
    return np.stack([crop_and_resize(image, [0, 0, *image.shape[:2]], size, "bilinear") for image in whole])


class Guiding(NamedTuple):
    """A teacher, the images that it was trained on (``augment`` normalises them; ``size`` in px), and what it is."""

    network: nn.Module
    augment: AugmentConfig
    size: int
    what: str

    def for_views_of(self, subject: Subject) -> nn.Module:
        """(logits, stage maps) of views that are normalised as the subject's are."""
        return as_teacher(self.network, self.augment, subject.config.augment).eval()


def find_teacher(subjects: list[Subject], given: Path | None) -> Guiding | None:
    """The teacher that was ``given``, or of the first run that has one; None, with a line said where there should be
    one. Raises UserError for a given one that is no run."""
    if given is not None:
        config, model, _ = load_trained(given)
        network = as_teacher(model, config.augment, config.augment)
        return Guiding(network, config.augment, config.model.image_size, f"{config.model.name} {given}")
    for subject in subjects:
        trained = subject.trained
        if trained is None or trained.teacher is None:
            continue
        try:
            stores = open_stores(trained.data)
            recipe = teacher_config(trained, stores.fingerprints)
            weights = trained.teacher.weights or recipe.run_dir
            model, size = load_teacher(weights, recipe, stores)
            own = read_saved_config(weights / "config.yaml") if weights.is_dir() else recipe
        except UserError as error:
            say(f"teacher  similarity to it is left out: {error}; --teacher RUN names it")
            continue
        return Guiding(model, own.augment, size, f"{recipe.model.name} {weights}")
    return None
