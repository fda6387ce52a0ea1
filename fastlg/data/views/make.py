"""From one uint8 batch on the device to what student and teacher see, seeded per sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlg.batch import Batch, Views
from fastlg.data.views.mixing import Mix, Mixer, mix_images, mix_targets
from fastlg.data.views.pairs import PairSampler
from fastlg_kernels.augment.api import normalise, parse_rand_augment, resize_crops
from fastlg_kernels.augment.views import ViewDraw, draw_views, teacher_view, train_views
from fastlg_kernels.rng import sample_seeds


class ViewMaker:
    """Flip, RandAugment, colour jitter, normalise, erase -> student view; the teacher's is cut from the finished one.

    The order is that of timm's train transform, whose parts and defaults these are. A sample's view is a pure function
    of (seed, epoch, sample_id), whatever batch it comes in.

    Args:
        teacher_size: side of the teacher's view in pixels; None makes an empty teacher view [N, 3, 0, 0].
        rand_augment: timm's spec string, "three-augment" for DeiT III's, or None for none.
        color_jitter: torchvision's amounts of brightness, contrast and saturation, or one for all three; 0 for none.
        erase: probability of random erasing with a pixel-wise normal rectangle; 0 for none.
        mean, std: per channel, of pixels scaled to 0..1.
        interpolation: of RandAugment's geometric operations, "bicubic" or "bilinear"; they fill with the mean colour.
        dtype: of the views.
        teacher_source: "student": the teacher sees the finished student view, as in the reference. "source": it sees
            the same crop and flip without RandAugment and erasing, reduced with antialias.
        mixer, num_classes: mixup and CutMix, which both views share and ``Views.targets`` tells; None for none.
        pairs: draws ``Views.pairs`` and their weight; None leaves both empty.
        samples: length of the training store. All its draws are then made once per epoch and kept on the device (about
            50 bytes a sample), and a batch takes its rows; None draws for every batch anew. The views are the same.
        student_size: epoch -> side in pixels that the student's finished view is reduced to in training, bilinear with
            antialias; None leaves it. The teacher's is cut before that, and nothing that is drawn depends on it.

    Raises:
        ValueError: a spec or option that does not exist, on the first call at the latest.
    """

    def __init__(
        self,
        *,
        teacher_size: int | None,
        rand_augment: str | None = "rand-m9-mstd0.5-inc1",
        color_jitter: float | Sequence[float] = 0.0,
        erase: float = 0.25,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        seed: int = 0,
        interpolation: str = "bicubic",
        dtype: torch.dtype = torch.float32,
        teacher_source: str = "student",
        mixer: Mixer | None = None,
        num_classes: int = 0,
        pairs: PairSampler | None = None,
        samples: int | None = None,
        student_size: Callable[[int], int] | None = None,
    ):
        if teacher_source not in ("student", "source"):
            raise ValueError(f"teacher_source={teacher_source!r}; choose student or source")
        self.teacher_size = teacher_size
        self.rand_augment = parse_rand_augment(rand_augment) if rand_augment else None
        self.jitter = (float(color_jitter),) * 3 if isinstance(color_jitter, (int, float)) else tuple(color_jitter)
        self.erase = erase
        self.mean, self.std = tuple(mean), tuple(std)
        self.seed = seed
        self.interpolation = interpolation
        self.dtype = dtype
        self.teacher_source = teacher_source
        self.mixer, self.num_classes = mixer, num_classes
        self.pairs, self.samples = pairs, samples
        self.student_size = student_size
        self._kept: tuple[tuple, ViewDraw, Mix | None] | None = None  # what the draws are of; those of all samples

    def __call__(self, batch: Batch, epoch: int, train: bool = True) -> Views:
        """Views of ``batch`` on its device; with ``train=False`` the pixels are only normalised."""
        targets, mix = batch.labels, None
        if train:
            draw, mix = self._draw(batch, epoch)
            is_cut = self.teacher_source == "student" and mix is None  # the teacher's view, in the same pass
            student, teacher = self._augmented(batch, draw, self.teacher_size if is_cut else None)
            if mix is not None:
                targets = mix_targets(batch.labels, mix, self.num_classes)
                student = mix_images(student, mix)
        else:
            student, teacher = self._normalise(batch.images, None), None
        if self.teacher_size is None:
            teacher = student.new_empty(len(student), 3, 0, 0)
        elif self.teacher_source == "source":
            teacher = self._source(batch, batch.flip if train else None)
            teacher = teacher if mix is None else mix_images(teacher, mix)
        elif teacher is None:
            teacher = teacher_view(student, self.teacher_size)
        pairs = batch.labels.new_empty(0), student.new_empty(0)
        if train and self.pairs is not None:
            pairs = self.pairs(batch.sample_ids.to(student.device), epoch)
        if train and self.student_size is not None:
            student = _reduced(student, self.student_size(epoch))
        return Views(student, teacher, targets, batch.crop, batch.flip, *pairs)

    def _augmented(self, batch: Batch, draw: ViewDraw, teacher_size: int | None) -> tuple[Tensor, Tensor | None]:
        return train_views(
            batch.images,
            None,
            None,
            self.mean,
            self.std,
            flip=batch.flip,
            draw=draw,
            resample=self.interpolation,
            teacher_size=teacher_size,
            dtype=self.dtype,
        )

    def _draw(self, batch: Batch, epoch: int) -> tuple[ViewDraw, Mix | None]:
        """The batch's draws: rows of the epoch's where these are kept."""
        size, device = tuple(batch.images.shape[1:3]), batch.images.device
        ids = batch.sample_ids.to(device)
        if self.samples is None:
            return self._drawn(ids, epoch, size)
        # A CUDA stream of its own for each: memory that one stream let go may be written by it while others still read.
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        facts = (epoch, size, device, stream)
        if self._kept is None or self._kept[0] != facts:
            self._kept = None  # so that two epochs' draws never lie side by side
            self._kept = facts, *self._drawn(torch.arange(self.samples, device=device), epoch, size)
        return tuple(None if drawn is None else drawn.rows(ids) for drawn in self._kept[1:])

    def _drawn(self, sample_ids: Tensor, epoch: int, size: tuple[int, int]) -> tuple[ViewDraw, Mix | None]:
        purposes = ("rand_augment", "erase", "color_jitter")
        first, second, third = (sample_seeds(self.seed, epoch, sample_ids, purpose) for purpose in purposes)
        own = {"spec": self.rand_augment, "erase": self.erase, "jitter_seeds": third, "jitter": self.jitter}
        draw = draw_views(first, second, size, **own)
        is_mixed = self.mixer is not None and self.mixer.active
        return draw, self.mixer.draw(sample_ids, epoch, size[1]) if is_mixed else None

    def _source(self, batch: Batch, flip: Tensor | None) -> Tensor:
        """The unaugmented crop at the teacher's size, reduced with antialias."""
        height, width = batch.images.shape[1:3]
        boxes = torch.tensor([0, 0, height, width]).expand(len(batch.images), 4)
        images = resize_crops(batch.images, boxes, self.teacher_size, interpolation="bilinear")
        return self._normalise(images, flip)

    def _normalise(self, images: Tensor, flip: Tensor | None) -> Tensor:
        return normalise(images, self.mean, self.std, flip=flip, dtype=self.dtype)


def _reduced(images: Tensor, size: int) -> Tensor:
    """[N, 3, S, S] -> [N, 3, size, size] in the same dtype, computed in float32."""
    if images.shape[-1] == size:
        return images
    small = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return small.to(images.dtype)
