"""A backbone of fastlg's in torchvision's FCOS detector, on made images: squares and disks on noise.

    fastlg export runs/mine backbone --backbone
    python examples/detector.py backbone --steps 60

torchvision is there wherever timm is, which needs it. Real detection data was not at hand where this was written: what
is shown is that a backbone fits and learns, and nothing is claimed of how well.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

import fastlg.models  # noqa: F401  (tells timm of the students that it lacks)

CLASSES = ("background", "square", "disk")  # torchvision counts from the background


class Pyramid(nn.Module):
    """The maps of a backbone as torchvision's detectors want them: from fine to coarse, ``out_channels`` each.

    Stages go through a feature pyramid network (arXiv 1612.03144). The blocks of a plain transformer all have one grid:
    its last map is resized to twice, once and half its sides, as in ViTDet (arXiv 2203.16527).
    """

    def __init__(self, body: nn.Module, out_channels: int = 64):
        super().__init__()
        channels, reductions = body.feature_info.channels(), body.feature_info.reduction()
        self.body, self.out_channels = body, out_channels
        self.is_flat = len(set(reductions)) == 1
        self.strides = [max(reductions[-1] // 2, 1), reductions[-1], 2 * reductions[-1]] if self.is_flat else reductions
        self.merge = FeaturePyramidNetwork([channels[-1]] * 3 if self.is_flat else channels, out_channels)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.body(images)
        if self.is_flat:
            maps = [F.interpolate(maps[-1], scale_factor=scale, mode="bilinear") for scale in (2.0, 1.0, 0.5)]
        return self.merge(OrderedDict((str(level), own) for level, own in enumerate(maps)))


def new_detector(folder: str, side: int) -> FCOS:
    """FCOS (arXiv 1904.01355) on a backbone that ``fastlg export --backbone`` wrote, for images of ``side`` px."""
    body = timm.create_model(f"local-dir:{folder}", pretrained=True)
    pyramid, own = Pyramid(body), body.pretrained_cfg
    anchors = AnchorGenerator(tuple((4 * stride,) for stride in pyramid.strides), ((1.0,),) * len(pyramid.strides))
    views = {"min_size": side, "max_size": side, "fixed_size": (side, side)}
    views |= {"image_mean": own["mean"], "image_std": own["std"]}
    return FCOS(pyramid, len(CLASSES), anchor_generator=anchors, **views)


def made_images(count: int, side: int, generator: torch.Generator) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images [3, side, side] from 0 to 1 with one square or disk each, and their boxes (x0, y0, x1, y1) and labels."""
    images, targets = [], []
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for _ in range(count):
        image = 0.3 * torch.rand(3, side, side, generator=generator)
        label, wide = (
            int(torch.randint(*span, (1,), generator=generator)) for span in ((1, 3), (side // 4, side // 2))
        )
        x, y = (int(torch.randint(0, side - wide, (1,), generator=generator)) for _ in range(2))
        inside = (columns >= x) & (columns < x + wide) & (rows >= y) & (rows < y + wide)
        if label == 2:
            middle = (wide - 1) / 2
            inside &= (columns - x - middle) ** 2 + (rows - y - middle) ** 2 <= (wide / 2) ** 2
        image[:, inside] = 0.6 + 0.4 * torch.rand(3, 1, generator=generator)
        images.append(image)
        targets.append({"boxes": torch.tensor([[x, y, x + wide, y + wide]]).float(), "labels": torch.tensor([label])})
    return images, targets


def train(folder: str, *, steps: int = 60, batch: int = 4, side: int = 64, lr: float = 1e-3) -> list[float]:
    """Trains the whole detector on made images; returns the loss of each step."""
    torch.manual_seed(0)
    detector, generator = new_detector(folder, side).train(), torch.Generator().manual_seed(0)
    optimizer, losses = torch.optim.AdamW(detector.parameters(), lr=lr), []
    for step in range(steps):
        loss = sum(detector(*made_images(batch, side, generator)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step}  loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbone", help="the folder that fastlg export --backbone wrote")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--side", type=int, default=64, help="of the images, px")
    given = parser.parse_args()
    train(given.backbone, steps=given.steps, side=given.side)
