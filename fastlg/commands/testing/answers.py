"""What a network says of every test image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastlg.analysis.scores import BINS, Calibration, calibration
from fastlg.commands.evaluate import over
from fastlg.config import Config
from fastlg.data.store.store import Store
from fastlg.run.metrics import Accuracy, AccuracyMeter


class Answers(NamedTuple):
    """Each [N], a row per test image.

    labels      int64
    predicted   int64
    confidence  float64, the probability of ``predicted``
    of_true     float64, that of the label
    rank        int64, how many classes are likelier than the label
    loss        float64, cross entropy
    squares     float64, the sum over the classes of the squared probability
    """

    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    of_true: np.ndarray
    rank: np.ndarray
    loss: np.ndarray
    squares: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.labels

    @property
    def top1(self) -> float:
        """In percent, as all of these."""
        return 100 * float(self.right.mean())

    def top(self, most: int) -> float:
        return 100 * float((self.rank < most).mean())

    def calibrated(self, bins: int = BINS) -> Calibration:
        """Confidence against accuracy, and the expected calibration error (Guo et al. 2017)."""
        return calibration(self.confidence.clip(0, 1), self.right, bins)

    @property
    def nll(self) -> float:
        """Negative log-likelihood of the label, the mean over the images, in nats: the cross entropy."""
        return float(self.loss.mean())

    @property
    def brier(self) -> float:
        """Squared distance of the probabilities to the label's one-hot vector, summed over the classes; the mean over
        the images, from 0 to 2 (Brier 1950)."""
        return float((self.squares - 2 * self.of_true + 1).mean())


def answers_of(config: Config, network: nn.Module, store: Store) -> tuple[Answers, Accuracy]:
    """Of every image of a store, in its order, where and as precise as the config says; and their accuracy, counted as
    in training (the two differ where classes are equally likely)."""
    found, accuracy = over(partial(look, count=len(store)), config, network, store)
    columns = found.numpy()
    predicted, rank = columns[:, 0].astype(np.int64), columns[:, 3].astype(np.int64)
    labels = np.asarray(store.labels, dtype=np.int64)
    return Answers(labels, predicted, *columns[:, 1:3].T, rank, *columns[:, 4:].T), accuracy


@torch.inference_mode()
def look(
    predict: Callable[[Tensor], Tensor], loader, views, device: torch.device, count: int
) -> tuple[Tensor, Accuracy]:
    """(float64 [count, 6] on the CPU, rows in the order of the store: class, its probability, the label's, how many
    classes are likelier than the label, cross entropy, sum of squared probabilities; accuracy). Two syncs."""
    found, meter = torch.zeros(count, 6, dtype=torch.float64, device=device), AccuracyMeter(device)
    for batch in loader.epoch(0):
        logits, labels = predict(views(batch, 0, train=False).student), batch.labels.to(device)
        meter.update(logits, labels)
        logs = logits.double().log_softmax(dim=1)
        own = logs.gather(1, labels[:, None])
        best = logs.max(dim=1)
        rank, squares = (logs > own).sum(dim=1), logs.exp().square().sum(dim=1)
        rows = (best.indices, best.values.exp(), own[:, 0].exp(), rank, -own[:, 0], squares)
        found[batch.sample_ids.to(device)] = torch.stack([row.double() for row in rows], dim=1)
    return found.cpu(), meter.read()
