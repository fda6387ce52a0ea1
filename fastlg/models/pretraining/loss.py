"""DINO's loss (Caron et al. 2021, arXiv 2104.14294), and what of it changes from epoch to epoch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def self_distillation(answers: Tensor, shares: Tensor, temperature: float) -> Tensor:
    """How far what a student says of each view is from what its teacher says of the two large ones, a scalar.

    answers      [N, V, K] of the student, V views of each image, the large ones first; V is 2 at least
    shares       [N, 2, K] of the teacher: ``sharpened`` answers, each sums to 1
    temperature  of the student's answers

    The cross-entropy of every pair of a teacher's view and another one of the student's, 2 V - 2 pairs in all, each a
    mean over the images; their mean. In float64 for float64 answers, else in float32.
    """
    answers = answers if answers.dtype == torch.float64 else answers.float()
    logs = (answers / temperature).log_softmax(dim=-1)
    each = -torch.einsum("nik,nvk->iv", shares.to(logs.dtype), logs) / len(answers)
    pairs = 2 * answers.shape[1] - 2
    return (each.sum() - each.diagonal().sum()) / pairs


def sharpened(answers: Tensor, center: Tensor, temperature: float | Tensor) -> Tensor:
    """Answers of a teacher [..., K], the ``center`` [K] of earlier ones taken off, as shares of the K outputs."""
    return ((answers - center) / temperature).softmax(dim=-1)


def teacher_temperature(bounds: tuple[float, float], rising: int, epoch: int) -> float:
    """In a 0-based ``epoch``: from the first bound to the second in equal steps over ``rising`` epochs."""
    low, high = bounds
    return high if epoch >= rising or rising < 2 else low + (high - low) * epoch / (rising - 1)


def cosine(first: float, last: float, epoch: int, epochs: int) -> float:
    """From ``first`` towards ``last``, which it would reach after ``epochs``."""
    return last + (first - last) * (1 + math.cos(math.pi * epoch / epochs)) / 2
