"""L_drloc, the dense relative localisation loss (arXiv 2106.03746): a head tells how far apart two patches lie."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlg.config import DrlocConfig
from fastlg.errors import UserError

VARIANCE_EPS, VARIANCE_WEIGHT = 1e-8, 1e-3  # of mode cbr


class DenseRelativeLoc(nn.Module):
    """Two tokens of one map in, their distance along both axes out; the loss is how wrong that is.

    grid       (H, H) of the patch tokens
    dim        their channels C
    is_pooled  the map is averaged to half its side first (3 x 3, stride 2)
    std        first weights are truncated normal of it, biases zero; None: torch's own

    ``side`` is that of the grid on which pairs are drawn. With classes (ce, cbr) there are as many as the unpooled
    grid has distances. Raises UserError for a grid without distances.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int,
        config: DrlocConfig,
        *,
        is_pooled: bool = False,
        std: float | None = None,
    ):
        super().__init__()
        self.grid, self.config, self.is_pooled = grid, config, is_pooled
        self.side = (grid[0] + 1) // 2 if is_pooled else grid[0]
        if grid[0] != grid[1] or self.side < 2:
            raise UserError(
                f"drloc.weight is {config.weight:g}, but the student's last grid is {self.side} x {self.side}, on "
                "which there are no distances; set a larger model.image_size, or drloc.weight=0"
            )
        width, classes = config.hidden, grid[0] if config.use_abs else 2 * grid[0] - 1
        layers = [nn.Linear(2 * dim, width), nn.ReLU(), nn.Linear(width, width)]
        layers += [nn.ReLU()] if config.mode == "l1" else [nn.ReLU(), nn.Linear(width, width)]  # and none after that
        self.hidden = nn.Sequential(*layers)
        outputs = [2] if config.mode == "l1" else [classes, classes]  # both axes from one layer, or one layer for each
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in outputs)
        for module in self.modules() if std is not None else ():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, pairs: Tensor) -> Tensor:
        """tokens [N, L, C], the grid's last, any prefix before them, or their map [N, C, H, H]; pairs int64
        [N, 2, m, 2] -> losses [N]."""
        tokens = tokens.flatten(2).transpose(1, 2) if tokens.dim() == 4 else tokens
        answers = self.answers(tokens, pairs)
        answers = answers if answers.dtype == torch.float64 else answers.float()
        return getattr(self, f"_{self.config.mode}")(answers, self.distances(pairs))

    def answers(self, tokens: Tensor, pairs: Tensor) -> Tensor:
        """[N, m, 2] distances (row, column), or with classes [N, m, K, 2] of both axes."""
        places = self._picked(tokens, pairs[..., 0] * self.side + pairs[..., 1])
        hidden = self.hidden(places)
        if self.config.mode == "l1":
            return self.heads[0](hidden)
        return torch.stack([head(hidden) for head in self.heads], dim=-1)

    def distances(self, pairs: Tensor) -> Tensor:
        """What the head should say, int64 [N, m, 2]; ``normalize`` makes it float32, from 0 to 1."""
        apart, most = pairs[:, 0] - pairs[:, 1], self.side - 1
        apart, most = (apart.abs(), most) if self.config.use_abs else (apart + most, 2 * most)
        return apart / most if self.config.normalize else apart

    def _picked(self, tokens: Tensor, index: Tensor) -> Tensor:
        """index [N, 2, m] -> the tokens there, first and second side by side [N, m, 2 C].

        By a product with zeros and ones: gathering adds up its gradients in an order that differs from run to run.
        """
        height, width = self.grid
        tokens = tokens[:, tokens.shape[1] - height * width :]
        if self.is_pooled:
            maps = tokens.transpose(1, 2).unflatten(2, self.grid)
            maps = F.avg_pool2d(maps, 3, stride=2, padding=1, count_include_pad=False)
            tokens = maps.flatten(2).transpose(1, 2)
        chosen = index.flatten(1)[..., None] == torch.arange(self.side**2, device=index.device)
        picked = chosen.to(tokens.dtype) @ tokens
        return picked.unflatten(1, index.shape[1:]).transpose(1, 2).flatten(2)

    @staticmethod
    def _l1(answers: Tensor, wanted: Tensor) -> Tensor:
        return (answers - wanted).abs().mean(dim=(1, 2))

    @staticmethod
    def _ce(answers: Tensor, wanted: Tensor) -> Tensor:
        each = F.cross_entropy(answers.flatten(0, 1), wanted.flatten(0, 1), reduction="none")  # [N m, 2]
        return each.view(wanted.shape).sum(dim=2).mean(dim=1)

    @staticmethod
    def _cbr(answers: Tensor, wanted: Tensor) -> Tensor:
        """Cycle-back regression: the mean of the classes should be right, and their spread small."""
        shares = answers.softmax(dim=2)  # [N, m, K, 2]
        values = torch.arange(answers.shape[2], device=answers.device, dtype=answers.dtype)[:, None]
        mean = (shares * values).sum(dim=2)
        variance = (shares * (values - mean[:, :, None]).square()).sum(dim=2) + VARIANCE_EPS
        each = (mean - wanted).square() / variance + VARIANCE_WEIGHT * variance.log()
        return each.sum(dim=2).mean(dim=1)


def loss_weight(config: DrlocConfig, epoch: int, epochs: int) -> float:
    """What the loss counts in an ``epoch`` (0-based) of a run of ``epochs``: up from 0, then down where it decays."""
    warm, total = config.warmup_epochs, config.total_epochs or epochs
    if epoch <= warm and warm > 0:
        return config.weight * epoch / warm
    if config.decay == "none" or total <= warm:
        return config.weight
    return config.weight * max(0.0, 1 - (epoch - warm) / (total - warm))
