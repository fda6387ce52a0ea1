"""What a classifier's answers are worth: confusion, accuracy per class, calibration. numpy alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 15  # of confidence, as in Guo et al. 2017 (arXiv 1706.04599)


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: how many images of the row's class were taken for the column's.

    labels, predicted  integers [N], from 0 to ``classes`` - 1

    Raises ValueError for others.
    """
    labels, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if labels.shape != predicted.shape or labels.ndim != 1:
        raise ValueError(f"labels are {labels.shape} and predictions {predicted.shape}; both have to be [N]")
    if labels.size and not (0 <= min(labels.min(), predicted.min()) <= max(labels.max(), predicted.max()) < classes):
        raise ValueError(f"labels and predictions of {classes} classes lie from 0 to {classes - 1}")
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


class PerClass(NamedTuple):
    """Each [classes]; NaN where there is nothing to divide by.

    images     int64: how many have this class
    taken      int64: how many are taken for it
    accuracy   float64 from 0 to 1, of its images (recall)
    precision  float64 from 0 to 1, of those taken for it
    """

    images: np.ndarray
    taken: np.ndarray
    accuracy: np.ndarray
    precision: np.ndarray


def per_class(matrix: np.ndarray) -> PerClass:
    """``matrix``: of ``confusion``."""
    images, taken, right = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
    return PerClass(images, taken, _share(right, images), _share(right, taken))


def most_confused(matrix: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """(class, class that it is taken for, images) of the commonest mistakes, at most ``most`` of them."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    places = np.argsort(-wrong, axis=None, kind="stable")[:most]
    found = [(*divmod(int(place), len(matrix)), int(wrong.flat[place])) for place in places]
    return [own for own in found if own[2]]


def most_involved(matrix: np.ndarray, most: int) -> np.ndarray:
    """Classes, ascending: all, or the ``most`` that are taken for others or have others taken for them most often."""
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    return np.sort(np.argsort(-wrong, kind="stable")[:most])


class Calibration(NamedTuple):
    """Of ``bins`` equal intervals of confidence, each open below and closed above; NaN where a bin is empty.

    edges       float64 [bins + 1], from 0 to 1
    images      int64 [bins]
    confidence  float64 [bins], their mean
    accuracy    float64 [bins], from 0 to 1
    error       expected calibration error, from 0 to 1: |accuracy - confidence|, the mean over all images
    """

    edges: np.ndarray
    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """confidence: probability of the predicted class, [N], from 0 to 1. right: bool [N], whether it was the true one.

    Raises ValueError for others; of no images the error is NaN.
    """
    confidence, right = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    if confidence.shape != right.shape or confidence.ndim != 1:
        raise ValueError(f"confidence is {confidence.shape} and right {right.shape}; both have to be [N]")
    if not np.all((confidence >= 0) & (confidence <= 1 + 1e-6)):  # rounded sums of a softmax
        raise ValueError("confidence lies from 0 to 1")
    edges = np.linspace(0.0, 1.0, bins + 1)
    places = np.searchsorted(edges[1:-1], confidence, side="left")
    images = np.bincount(places, minlength=bins)
    means = _share(np.bincount(places, weights=confidence, minlength=bins), images)
    accuracy = _share(np.bincount(places, weights=right, minlength=bins), images)
    gaps = np.where(images > 0, np.abs(accuracy - means), 0.0)
    error = float((gaps * images).sum() / len(confidence)) if len(confidence) else float("nan")
    return Calibration(edges, images, means, accuracy, error)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
