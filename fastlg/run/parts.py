"""What the training loop touches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastlg.config import Config
from fastlg.data.loaders.plan import SamplePlan
from fastlg.data.stores import Stores
from fastlg.data.views.crops import CropViewMaker
from fastlg.data.views.make import ViewMaker
from fastlg.engine.protocol import Engine
from fastlg.engine.switches import Switches
from fastlg.files.verify import Digested
from fastlg.models.pretraining.unit import MomentumTeacher, SelfTaught, SelfTeaching
from fastlg.objective import GuidedStudent
from fastlg.teacher.cache.read import CachedTeacher
from fastlg.teacher.online import OnlineTeacher


@dataclass
class Parts:
    """Everything the training loop touches, on one device."""

    config: Config
    stores: Stores
    engine: Engine
    switches: Switches
    unit: GuidedStudent | SelfTaught
    teacher: OnlineTeacher | CachedTeacher | MomentumTeacher | None
    plan: SamplePlan  # of the training batches on this rank
    train_loader: object
    test_loader: object
    views: ViewMaker | CropViewMaker
    teacher_id: str  # what the teacher's weights and statistics hash to; "" without a teacher
    val_loader: object | None = None  # where there is a validation split
    self_teaching: SelfTeaching | None = None  # of a run without labels, whose ``teacher`` is the student's past
    known_loader: object | None = None  # of its training images as they are, among which neighbours are looked for

    @property
    def chooser(self) -> str:
        """The split that says which epoch is the best: validation, or else test, as in the paper."""
        return "test" if self.val_loader is None else "validation"

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def told_losses(self) -> tuple[str, ...]:
        """Parts that the loss is made of, by their names in StepOutput without "loss_"; none where it is one alone."""
        is_on = {"guidance": self.config.teacher is not None, "drloc": self.unit.drloc is not None}
        beside = tuple(name for name, on in is_on.items() if on)
        return ("cls", *beside) if beside else ()

    def digested(self) -> list[Digested]:
        """The files that the run reads and that were not hashed at its start."""
        cached = self.teacher.cache.digested() if isinstance(self.teacher, CachedTeacher) else []
        return [*(store.digested() for store in self.stores.splits), *cached]

    def step_total(self, step: int) -> int:
        """Samples that all ranks together train on at a 0-based step of an epoch."""
        return self.plan.step_total(len(self.stores.train), step)
