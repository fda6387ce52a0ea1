"""The trainable unit of a run without labels, and the teacher that follows it."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlg import ranks
from fastlg.batch import StepOutput
from fastlg.config import PretrainConfig
from fastlg.errors import UserError, first_line
from fastlg.models.pretraining.loss import cosine, self_distillation, sharpened, teacher_temperature
from fastlg.models.resolution import takes_sizes
from fastlg.models.student import Student

HIDDEN, BOTTLENECK = 512, 256  # widths of the head
NORM_EPS = 1e-6  # added to a gradient's length


class Shares(NamedTuple):
    """What the teacher says of a batch: [N, 2, K], of each large view as shares of the outputs."""

    large: Tensor


class OutputHead(nn.Module):
    """Features [M, D] -> answers [M, K]: three linear layers with GELU between them, then the cosine to each output.

    Linear layers begin truncated normal 0.02, biases zero; the last layer as torch draws it, and only the direction of
    its rows counts, as in the authors' code, whose weight norm keeps a gain of 1.
    """

    def __init__(self, dim: int, outputs: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, BOTTLENECK)
        )
        for layer in self.layers[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.last = nn.Linear(BOTTLENECK, outputs, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        directions = F.normalize(self.layers(features), dim=-1)
        return F.linear(directions, F.normalize(self.last.weight, dim=-1))


class SelfTaught(nn.Module):
    """A student without its classifier, and a head; small views are seen at a size of their own.

    ``unit(large [N, 2, 3, S, S], targets, shares, (small [N, V, 3, s, s],)) -> StepOutput``, whose ``correct`` counts
    the images of which student and teacher, on one large view each, name the same output. Labels are not read.

    Raises UserError for a student that cannot do without its classifier, or does not take the small views' size.
    """

    guidance = drloc = None

    def __init__(self, student: Student, config: PretrainConfig, image_size: int):
        super().__init__()
        self.student, self.config, self.image_size = student, config, image_size
        without_classifier(student)
        self.sizes = (image_size, config.local_size or about_half(student, image_size))[: 1 + bool(config.local_crops)]
        dim = [self._probed(size) for size in self.sizes][0]
        self.head = OutputHead(dim, config.outputs)
        self.rests = False  # the head's last layer

    def prepare(self) -> None:
        """For images of both sizes, where the weights now are."""
        if len(set(self.sizes)) > 1 and takes_sizes(self.student.bare):
            for size in self.sizes[::-1]:
                self.student.take_size(size)

    def _probed(self, size: int) -> int:
        """Channels of what the student makes of images of ``size`` px."""
        name = self.student.name
        try:
            if size != self.image_size and takes_sizes(self.student.bare):
                self.student.take_size(size)
                self.student.take_size(self.image_size)
            was_training = self.student.training
            with torch.no_grad():
                features = self.student.eval()(torch.zeros(1, 3, size, size))[0]
            self.student.train(was_training)
        except Exception as error:  # whatever a network makes of images of another size
            reason = first_line(error).removeprefix("model.resolution: ").rstrip(".")
            raise UserError(
                f"pretrain.local_size: {name} at {self.image_size} px takes no small views of {size} px ({reason}); "
                f"set pretrain.local_size={self.image_size}, or pretrain.local_crops=0 for large views alone"
            ) from None
        return features.shape[-1]

    def forward(self, images: Tensor, targets: Tensor, guide: Shares, beside: tuple[Tensor]) -> StepOutput:
        (small,) = beside
        large = self._answers(images)
        answers = torch.cat((large, self._answers(small)), dim=1) if small.shape[1] else large
        loss = self_distillation(answers, guide.large, self.config.student_temperature)
        with torch.no_grad():
            correct = (large[:, 0].argmax(1) == guide.large[:, 1].argmax(1)).sum()
            count = torch.full_like(correct, len(images))
        none = loss.new_zeros(())
        return StepOutput(loss, loss.detach(), none, none, correct, count)

    def _answers(self, views: Tensor) -> Tensor:
        """[N, V, 3, s, s] -> [N, V, K]."""
        return self.head(self.student(views.flatten(0, 1))[0]).unflatten(0, views.shape[:2])

    @torch.no_grad()
    def limit(self) -> None:
        """Before an update, gradients being whole: each parameter's is cut by its own length, as the authors do."""
        if self.rests:
            self.head.last.weight.grad = None
        gradients = [own.grad for own in self.parameters() if own.grad is not None]
        if self.config.clip_each and gradients:
            lengths = torch._foreach_norm(gradients)
            torch._foreach_mul_(
                gradients, [(self.config.clip_each / (own + NORM_EPS)).clamp(max=1.0) for own in lengths]
            )


def about_half(student: Student, side: int) -> int:
    """Half of ``side``, or the size nearest to it, below ``side``, that whole patches fill; px."""
    patches = getattr(getattr(student.bare, "patch_embed", None), "patch_size", None) or 1
    patch = math.lcm(*patches) if isinstance(patches, tuple) else patches
    return max(1, min(math.floor(side / 2 / patch + 0.5), (side - 1) // patch)) * patch


def without_classifier(student: Student) -> Student:
    """``student`` gives, in the place of logits, what its classifier would see. Raises UserError where it cannot."""
    reset = getattr(student.bare, "reset_classifier", None)
    if reset is None:
        raise UserError(
            f"pretrain: {student.name} has no reset_classifier(0), as timm's models have, so its classifier cannot be "
            "left out; take another model"
        )
    reset(0)
    return student


class MomentumTeacher(nn.Module):
    """The unit's running mean: what answers to a batch's large views, and what a run without labels hands on.

    Its weights follow after every update; norms' statistics are its own. It drops paths as the student does. The mean
    of its answers, over all ranks, is followed, too, and taken off them (``center``), after it was used.
    """

    def __init__(self, unit: SelfTaught):
        super().__init__()
        self.config = unit.config
        self.student, self.head = copy.deepcopy(unit.student), copy.deepcopy(unit.head)
        weight = unit.head.last.weight
        self.register_buffer("center", weight.new_zeros(unit.config.outputs))
        self.temperature, self.momentum = unit.config.teacher_temperature[0], unit.config.momentum
        self.requires_grad_(False)
        self._pairs = (
            [*self.student.parameters(), *self.head.parameters()],
            [*unit.student.parameters(), *unit.head.parameters()],
        )

    @torch.no_grad()
    def forward(self, views: Tensor, batch: object = None) -> Shares:
        """[N, 2, 3, S, S] -> Shares."""
        answers = self.head(self.student(views.flatten(0, 1))[0]).unflatten(0, views.shape[:2])
        answers = answers if answers.dtype == torch.float64 else answers.float()
        shares = sharpened(answers, self.center, self.temperature)
        sums = torch.cat((answers.double().sum(dim=(0, 1)), answers.new_tensor([2.0 * len(answers)]).double()))
        sums = ranks.total(sums)
        self.center.lerp_((sums[:-1] / sums[-1]).to(self.center.dtype), 1 - self.config.center_momentum)
        return Shares(shares)

    @torch.no_grad()
    def follow(self) -> None:
        """After an update of the unit."""
        own, latest = self._pairs
        torch._foreach_lerp_(own, latest, 1 - self.momentum)


class SelfTeaching:
    """What changes from epoch to epoch of a run without labels. Rates are one throughout an epoch, like the learning
    rate; in the authors' code they move with every step."""

    def __init__(self, unit: SelfTaught, teacher: MomentumTeacher, epochs: int, weight_decay: float):
        self.unit, self.teacher, self.epochs, self.weight_decay = unit, teacher, epochs, weight_decay
        self.limit, self.follow = unit.limit, teacher.follow  # what the engine does around an update

    def begin_epoch(self, engine, epoch: int) -> None:
        """Sets all that a 0-based ``epoch`` goes by; ``engine``: the plain one."""
        own = self.unit.config
        self.unit.prepare()
        self.unit.rests = epoch < own.frozen_epochs
        self.teacher.temperature = teacher_temperature(own.teacher_temperature, own.temperature_epochs, epoch)
        self.teacher.momentum = cosine(own.momentum, 1.0, epoch, self.epochs)
        if own.final_weight_decay:
            engine.set_weight_decay(cosine(self.weight_decay, own.final_weight_decay, epoch, self.epochs))
