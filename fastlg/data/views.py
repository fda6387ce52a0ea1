"""From one uint8 batch on the device to what student and teacher see, seeded per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastlg.batch import Batch, Views
from fastlg.data.mixing import Mix, Mixer, mix_images, mix_targets
from fastlg_kernels.augment import normalise, parse_rand_augment, rand_augment, random_erasing, resize_crops
from fastlg_kernels.rng import sample_seeds
from fastlg_kernels.views import train_views


class ViewMaker:
    """Flip, RandAugment, normalise, erase -> student view; the teacher view is cut from the finished student view.

    The order is that of timm's train transform, whose parts and defaults these are. A sample's view is a pure function
    of (seed, epoch, sample_id), whatever batch it comes in.

    Args:
        teacher_size: side of the teacher's view in pixels; None makes an empty teacher view [N, 3, 0, 0].
        rand_augment: timm's spec string, or None for none.
        erase: probability of random erasing with a pixel-wise normal rectangle; 0 for none.
        mean, std: per channel, of pixels scaled to 0..1.
        interpolation: of RandAugment's geometric operations, "bicubic" or "bilinear"; they fill with the mean colour.
        dtype: of the views.
        teacher_source: "student": the teacher sees the finished student view, as in the reference. "source": it sees
            the same crop and flip without RandAugment and erasing, reduced with antialias.
        mixer, num_classes: mixup and CutMix, which both views share and ``Views.targets`` tells; None for none.

    Raises:
        ValueError: a spec or option that does not exist, on the first call at the latest.
    """

    def __init__(
        self,
        *,
        teacher_size: int | None,
        rand_augment: str | None = "rand-m9-mstd0.5-inc1",
        erase: float = 0.25,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        seed: int = 0,
        interpolation: str = "bicubic",
        dtype: torch.dtype = torch.float32,
        teacher_source: str = "student",
        mixer: Mixer | None = None,
        num_classes: int = 0,
    ):
        if teacher_source not in ("student", "source"):
            raise ValueError(f"teacher_source={teacher_source!r}; choose student or source")
        self.teacher_size = teacher_size
        self.rand_augment = parse_rand_augment(rand_augment) if rand_augment else None
        self.erase = erase
        self.mean, self.std = tuple(mean), tuple(std)
        self.fill = tuple(min(255, round(255 * value)) for value in mean)  # timm's img_mean
        self.seed = seed
        self.interpolation = interpolation
        self.dtype = dtype
        self.teacher_source = teacher_source
        self.mixer, self.num_classes = mixer, num_classes

    def __call__(self, batch: Batch, epoch: int, train: bool = True) -> Views:
        """Views of ``batch`` on its device; with ``train=False`` the pixels are only normalised."""
        is_mixed = train and self.mixer is not None and self.mixer.active
        if train and not is_mixed and self.teacher_source == "student" and self.interpolation == "bicubic":
            return self._fused(batch, epoch)
        student = self._student(batch, epoch) if train else self._normalise(batch.images, None)
        mix, targets = None, batch.labels
        if is_mixed:
            mix = self.mixer.draw(batch.sample_ids, epoch, student.shape[-1])
            targets = mix_targets(batch.labels, mix, self.num_classes)
            student = mix_images(student, mix)
        return Views(student, self._teacher(batch, student, mix, train), targets, batch.crop, batch.flip)

    def _fused(self, batch: Batch, epoch: int) -> Views:
        """The common case in one call, which on a GPU makes both views in one pass over memory."""
        student, teacher = train_views(
            batch.images,
            sample_seeds(self.seed, epoch, batch.sample_ids, "rand_augment"),
            sample_seeds(self.seed, epoch, batch.sample_ids, "erase"),
            self.mean,
            self.std,
            flip=batch.flip,
            spec=self.rand_augment,
            erase=self.erase,
            teacher_size=self.teacher_size,
            dtype=self.dtype,
        )
        if teacher is None:
            teacher = student.new_empty(len(student), 3, 0, 0)
        return Views(student, teacher, batch.labels, batch.crop, batch.flip)

    def _student(self, batch: Batch, epoch: int) -> Tensor:
        if self.rand_augment is None:
            student = self._normalise(batch.images, batch.flip)
        else:
            images = torch.where(batch.flip[:, None, None, None], batch.images.flip(2), batch.images)
            seeds = sample_seeds(self.seed, epoch, batch.sample_ids, "rand_augment")
            images = rand_augment(images, seeds, spec=self.rand_augment, resample=self.interpolation, fill=self.fill)
            student = self._normalise(images, None)
        if self.erase > 0:
            seeds = sample_seeds(self.seed, epoch, batch.sample_ids, "erase")
            student = random_erasing(student, seeds, probability=self.erase)
        return student

    def _teacher(self, batch: Batch, student: Tensor, mix: Mix | None, train: bool) -> Tensor:
        if self.teacher_size is None:
            return student.new_empty(len(student), 3, 0, 0)
        if self.teacher_source == "student":
            return teacher_view(student, self.teacher_size)
        height, width = batch.images.shape[1:3]
        boxes = torch.tensor([0, 0, height, width]).expand(len(batch.images), 4)
        images = resize_crops(batch.images, boxes, self.teacher_size, interpolation="bilinear")
        images = self._normalise(images, batch.flip if train else None)
        return images if mix is None else mix_images(images, mix)

    def _normalise(self, images: Tensor, flip: Tensor | None) -> Tensor:
        return normalise(images, self.mean, self.std, flip=flip, dtype=self.dtype)


def teacher_view(student: Tensor, size: int) -> Tensor:
    """The finished student view [N, 3, S, S] reduced to [N, 3, size, size] as the reference does.

    That is bilinear without antialias (align_corners=False): where S / size is odd, exactly every (S / size)-th pixel,
    the middle one of its block (``x[..., 3::7, 3::7]`` for 224 -> 32). Equal sizes return ``student`` itself.
    """
    side = student.shape[-1]
    if side == size:
        return student
    step, rest = divmod(side, size)
    if rest == 0 and step % 2:
        return student[..., step // 2 :: step, step // 2 :: step].contiguous()
    return F.interpolate(student, size=(size, size), mode="bilinear", align_corners=False)
