"""Dense attention rollout: which patches stand for a class, by the attention of all tokens.

LIFE (arXiv 2305.08551) has, by its abstract, class-specific maps that use the attention maps of all tokens; neither its
paper nor code of it could be had. This is a reconstruction: what is weighted, and by which scores, may differ from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlg.models.student import Student


@dataclass
class DenseMaps:
    """labels  per image the class that its maps are about
    soft, hard  float64 [N, H, W], see ``class_maps``; a hard map is 0 where no token is of its class
    """

    labels: list[str]
    soft: Tensor
    hard: Tensor


def token_rollout(matrices: Sequence[Tensor]) -> Tensor:
    """float64 [N, L, L]: the product of (A + 1) / 2 over the blocks, the last leftmost; A [N, L, L] of one grid, the
    mean over heads. Row i: shares of the first block's tokens in what the last one's token i is made of."""
    product = torch.eye(matrices[0].shape[-1], dtype=torch.float64, device=matrices[0].device)
    for matrix in matrices:
        product = (matrix.double() @ product + product) / 2
    return product


def class_maps(rolled: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """(soft, hard) maps float64 [N, K, P] of every class, from the rollout [N, L, L] and scores [N, P, K] of the
    patches, which are the last P tokens.

    soft: the mean of the patches' own maps, weighted by each one's softmax probability of the class
    hard: the mean over the patches whose best score is that class's; 0 where there is none
    """
    count = scores.shape[1]
    maps = rolled[:, -count:, -count:].double()
    shares = scores.double().softmax(dim=-1)
    votes = F.one_hot(scores.argmax(dim=-1), scores.shape[-1]).double()
    soft, hard = (own.mT @ maps for own in (shares, votes))
    return soft / shares.sum(1)[..., None], hard / votes.sum(1)[..., None].clamp(min=1)


def token_scores(student: Student, tokens: Tensor) -> Tensor | None:
    """Logits [N, P, K] of every patch token of the last block's output [N, L, C], by the last norm and the class
    token's head; None of a student whose head reads no single token of that width."""
    bare = student.bare
    head, norm = getattr(bare, "head", None), getattr(bare, "norm", None)
    if not isinstance(head, nn.Linear) or head.in_features != tokens.shape[-1] or norm is None:
        return None
    if getattr(bare, "attn_pool", None) is not None or getattr(bare, "blocks_token_only", None):
        return None
    height, width = student.grids[-1]
    after = getattr(bare, "fc_norm", None) or nn.Identity()
    return head(after(norm(tokens))[:, -height * width :])
