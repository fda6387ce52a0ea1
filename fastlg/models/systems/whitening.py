"""First weights of a patch embedding that make its first channels uncorrelated on the training images (PoorViT)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastlg.errors import UserError

IMAGES = 5000  # batches are taken until there are more, or no more; as its authors have it
EPS = 5e-4  # added to variances


def expect_patches(model: nn.Module, name: str) -> nn.Conv2d:
    """The convolution that embeds patches. Raises UserError for a model without one, or with too few channels."""
    conv = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != conv.stride or conv.padding not in (0, (0, 0)):
        raise UserError(
            f"model.init whitening: {name} does not embed patches by one convolution; use model.init=reference"
        )
    needed = conv.weight[0].numel()
    if conv.out_channels < needed:
        high, wide = conv.kernel_size
        raise UserError(
            f"model.init whitening: {name} has {conv.out_channels} channels, but patches of {high} x {wide} px need "
            f"{needed}; use model.args.embed_dim={needed} or more, or smaller patches"
        )
    return conv


@torch.no_grad()
def start_whitening(conv: nn.Conv2d, images: Iterable[Tensor]) -> str:
    """Overwrites the first channels of ``conv``, in place; its other channels and all biases stay. Returns what to say.

    images  batches [N, 3, S, S] as the student sees them
    """
    total, patches, count = 0, 0, 0
    for batch in images:
        found = _patches(batch, conv.kernel_size)
        total = total + (found.mT @ found).cpu()
        patches, count = patches + len(found), count + len(batch)
        if count > IMAGES:
            break
    rows = whitening_rows(total / patches)
    conv.weight[: len(rows)] = rows.view(-1, *conv.weight.shape[1:]).to(conv.weight)
    return f"whitening in {len(rows)} of {conv.out_channels} channels, from {count:,} views"


def whitening_rows(moments: Tensor) -> Tensor:
    """[C, C], the mean of p p' over patches p, not centred -> rows [C, C]: eigenvectors by falling eigenvalue, each
    divided by sqrt(eigenvalue + 5e-4), and of both signs the one whose largest entry is positive."""
    values, vectors = torch.linalg.eigh(moments)
    rows = vectors.mT.flip(0)
    rows = rows * rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
    return rows / (values.flip(0)[:, None] + EPS).sqrt()


def _patches(images: Tensor, size: tuple[int, int]) -> Tensor:
    """float64 [patches, 3 p p]: all of them, at every pixel, by channel, row and column."""
    found = images.double().unfold(2, size[0], 1).unfold(3, size[1], 1)  # [N, 3, H', W', p, p]
    return found.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
