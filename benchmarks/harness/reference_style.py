"""Locality guidance as a straightforward script would train it, written from the paper's recipe: what we compare with.

One step: a DataLoader whose workers run timm's ``create_transform`` on decoded images, one by one; the 224 px view is
resized to the teacher's input; the teacher runs in eager mode, with batch statistics; every block's tokens are copied
to NCHW; a 1x1 convolution, two ``interpolate`` calls and a mean squared error per guided block; AdamW; and one host
sync for every value that a progress line shows. The network, its initial weights and the parameter groups are
fastlg's, so that style alone differs. Each field of Style replaces one of these habits; the ablation ladder takes them
in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fastlg.config import Config
from fastlg.data.store.store import Store
from fastlg.models.build import new_model
from fastlg.models.param_groups import param_groups
from fastlg.objective import GuidedStudent

TEACHER_SIZE = 32


@dataclass(frozen=True)
class Style:
    """autocast: bf16 forward. syncs: ``.item()`` per logged value. copies: every block's tokens to NCHW.
    kernel: fastlg_kernels' guidance loss on the tokens as they lie. fused: the optimizer in one kernel."""

    autocast: bool = False
    syncs: bool = True
    copies: bool = True
    kernel: bool = False
    fused: bool = False


class TransformedImages(Dataset):
    """Decoded images through timm's train transform: (view [3, S, S], label). ``count`` of them, again and again, so
    that no epoch ends, and no worker starts anew, while steps are timed."""

    def __init__(self, store: Store, size: int, count: int):
        self.store, self.count = store, count
        self.transform = create_transform(
            size,
            is_training=True,
            auto_augment="rand-m9-mstd0.5-inc1",
            re_prob=0.25,
            re_mode="pixel",
            re_count=1,
            interpolation="bicubic",
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        i %= len(self.store)
        image = Image.fromarray(self.store.images(i))
        while True:
            try:
                return self.transform(image), int(self.store.labels[i])
            except ValueError:  # timm 1.0.31 with Pillow 13: posterize to 0 bits, in 0.15 % of the images
                continue


class ReferenceStyle:
    """One training in this style, step by step: ``open``, ``step`` as often as wanted, ``close``."""

    def __init__(
        self,
        config: Config,
        store: Store,
        teacher: nn.Module | None,
        style: Style,
        *,
        device: torch.device,
        workers: int,
    ):
        torch.manual_seed(config.run.seed)
        student = new_model(config.model, config.teacher, len(store.class_names))
        self.style, self.device, self.batch = style, device, config.optim.global_batch_size
        self.beta, self.workers = config.guidance.weight, workers
        self.guided = list(config.model.blocks) if teacher is not None else []
        if style.copies:
            student.guide(range(student.depth))
        self.student = student.to(self.device).train()
        self.teacher = teacher.to(self.device).train().requires_grad_(False) if teacher is not None else None
        dims = teacher.dims if teacher is not None else []
        self.unit = GuidedStudent(student, dims, config.guidance).to(self.device) if style.kernel and dims else None
        channels = student.dims if not style.copies else [student.dims[block] for block in self.guided]
        pairs = zip(channels, dims, strict=True) if dims and not style.kernel else ()
        self.projections = nn.ModuleList(nn.Conv2d(own, other, 1) for own, other in pairs).to(self.device)
        trained = nn.ModuleDict({"student": student, "projections": self.projections})
        groups = param_groups(self.unit if self.unit is not None else trained, config.optim.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.optim.lr, fused=True if style.fused else None)
        images = TransformedImages(store, config.model.image_size, count=max(len(store), 100 * self.batch))
        options = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": device.type == "cuda"}
        self.loader = DataLoader(images, self.batch, shuffle=True, drop_last=True, **options)
        self.batches: Iterator | None = None

    def open(self) -> None:
        self.batches = iter(self.loader)

    def close(self) -> None:
        self.batches = None

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """The next batch on the device; epochs follow each other."""
        try:
            images, labels = next(self.batches)
        except StopIteration:
            self.open()
            images, labels = next(self.batches)
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def step(self, mark: Callable[[str], None] = lambda part: None) -> dict[str, float]:
        """One update; returns what a progress line would show, read from the device where the style does that.

        ``mark`` is called with a part's name after it: input wait, teacher, student forward, ...
        """
        images, labels = self.next_batch()
        mark("input wait")
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, self.style.autocast):
            maps = self.teach(images) if self.teacher is not None else ()
            mark("teacher")
            logits, guidance = self.forward(images, maps)
            loss_cls = F.cross_entropy(logits, labels)
            loss = loss_cls + self.beta * guidance
        mark("student forward")
        loss.backward()
        mark("backward")
        self.optimizer.step()
        mark("optimizer")
        values = {"loss": loss, "loss_cls": loss_cls, "loss_guidance": guidance}
        values["correct"] = (logits.argmax(1) == labels).sum()
        shown = (
            {name: float(torch.as_tensor(value).item()) for name, value in values.items()} if self.style.syncs else {}
        )
        mark("other")
        return shown

    @torch.no_grad()
    def teach(self, images: Tensor) -> tuple[Tensor, ...]:
        """Stage maps of the frozen teacher on the resized view."""
        view = F.interpolate(images, size=(TEACHER_SIZE, TEACHER_SIZE), mode="bilinear", align_corners=False)
        return self.teacher(view)[1]

    def forward(self, images: Tensor, maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | float]:
        """(logits, guidance loss before its weight)."""
        logits, features = self.student(images)
        if self.style.kernel:
            return logits, self.unit.guidance(features, maps) if maps else 0.0
        if self.style.copies:
            grids = zip(features, self.student.grids, strict=True)
            copies = [to_nchw(tokens, grid).contiguous() for tokens, grid in grids]
            features = [copies[block] for block in self.guided]
        else:
            features = [to_nchw(tokens, grid) for tokens, grid in zip(features, self.student.grids, strict=True)]
        pairs = zip(self.projections, features, maps, strict=True) if maps else ()
        return logits, sum((pair_loss(*pair) for pair in pairs), start=0.0)


def to_nchw(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens [N, L, C] without their prefix as a map [N, C, H, W]; a map [N, C, H, W] passes."""
    if tokens.dim() == 4:
        return tokens
    height, width = grid
    patches = tokens[:, tokens.shape[1] - height * width :]
    return patches.transpose(1, 2).reshape(len(tokens), -1, height, width)


def pair_loss(projection: nn.Conv2d, feature: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the projected map and the teacher's, both resized to the larger size."""
    projected = projection(feature)
    size = [max(pair) for pair in zip(projected.shape[2:], teacher.shape[2:], strict=True)]
    resized = (F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in (projected, teacher))
    return F.mse_loss(*resized)
