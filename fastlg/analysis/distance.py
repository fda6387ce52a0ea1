"""Attention distance (Dosovitskiy et al. 2021; Raghu et al. 2021): how far the tokens of each head look."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlg.analysis.geometry import Layout, distance_matrix


class AttentionDistance:
    """Sums over any batches; ``see`` is what ``attention.watch`` calls.

    Of head h, with attention a(q, k) of patch token q to the key k of patches, |q - k| between their middles:

        distance_px  mean over images and q of  sum_k a(q, k) |q - k|, in pixels of the model's input
        distance     the same with |q - k| in tokens, and the mean over k in place of the sum: the number of the paper's
                     Table 5, see docs/analyze.md

    Attention to class and other prefix tokens, which lie nowhere, counts as zero; ``prefix_share`` says how much it is.
    """

    def __init__(self, pitches: list[tuple[float, float]]):
        self.pitches = pitches
        self.layouts: list[Layout | None] = [None] * len(pitches)
        self.sums: list[Tensor | None] = [None] * len(pitches)  # float64 [3, heads]
        self.lengths: dict[int, tuple[Tensor, Tensor]] = {}
        self.images = [0] * len(pitches)

    @torch.no_grad()
    def see(self, block: int, matrix: Tensor, layout: Layout) -> None:
        """matrix [N, heads, tokens, keys] of one block."""
        if self.sums[block] is None:
            self.layouts[block] = layout
            self.sums[block] = torch.zeros(3, matrix.shape[1], dtype=torch.float64, device=matrix.device)
            pitch = self.pitches[block]
            self.lengths[block] = tuple(distance_matrix(layout, unit).to(matrix.device) for unit in (pitch, (1.0, 1.0)))
        total = matrix.sum(dim=0, dtype=torch.float64)[:, layout.prefix :]  # of all images: [heads, H W, keys]
        px, tokens = self.lengths[block]
        patches = total[..., layout.prefix :]
        queries = total.shape[1]
        found = ((patches * px).sum((1, 2)), (patches * tokens).sum((1, 2)), total[..., : layout.prefix].sum((1, 2)))
        self.sums[block] += torch.stack(found) / queries
        self.images[block] += len(matrix)

    def result(self) -> list[dict[str, Any]]:
        """One entry per block, plain numbers; lists have one per head. ``uniform_*``: of attention that is everywhere
        the same."""
        found = []
        for block, (layout, sums, images) in enumerate(zip(self.layouts, self.sums, self.images, strict=True)):
            px, tokens, prefix = (sums / images).cpu()
            keys = layout.keys[0] * layout.keys[1]
            lengths_px, lengths = (lengths.mean().item() for lengths in self.lengths[block])
            found.append(
                {
                    "block": block,
                    "grid": list(layout.grid),
                    "keys": list(layout.keys),
                    "token_px": list(self.pitches[block]),
                    "distance_px": px.mean().item(),
                    "distance": tokens.mean().item() / keys,
                    "heads_px": px.tolist(),
                    "heads": (tokens / keys).tolist(),
                    "uniform_px": lengths_px * keys / (keys + layout.prefix),
                    "uniform": lengths / (keys + layout.prefix),
                    "prefix_share": prefix.tolist(),
                }
            )
        return found
