"""The values that flow through a training step. All tensors live on the training device."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """What every loader yields: one decode per image, cropped, not yet augmented.

    images      uint8 [N, S, S, 3]: each sample's random resized crop (whole image when evaluating)
    labels      int64 [N]
    sample_ids  int64 [N]: row of the sample in its store, the key of all its randomness
    crop        float32 [N, 4]: y, x, h, w of the crop as fractions of the stored image
    flip        bool [N]: the sample is to be mirrored (data/views/make.py does it)
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    crop: Tensor
    flip: Tensor


class CropsBatch(NamedTuple):
    """A batch of a run without labels: several crops of every image, the two large ones first.

    images      uint8 [N, 2, S, S, 3]: the large crops
    small       uint8 [N, V, s, s, 3]: the small ones
    labels, sample_ids  as in Batch
    crop        float32 [N, 2 + V, 4] and flip bool [N, 2 + V]: as in Batch, of every crop
    """

    images: Tensor
    small: Tensor
    labels: Tensor
    sample_ids: Tensor
    crop: Tensor
    flip: Tensor


class Views(NamedTuple):
    """What the two networks see, cut from the same augmented pixels.

    student  float [N, 3, S, S], normalised
    teacher  float [N, 3, T, T], normalised
    targets  int64 [N] labels, or float32 [N, K] class probabilities where samples were mixed
    crop     float32 [N, 4] and flip bool [N]: as in Batch, for cached teacher features
    pairs    int64 [N, 2, m, 2]: (row, column) of the first and second ends of m pairs of grid places, for drloc
    pair_weight  float32 [N]: what their loss counts in this epoch; both are empty where there is no such loss
    """

    student: Tensor
    teacher: Tensor
    targets: Tensor
    crop: Tensor
    flip: Tensor
    pairs: Tensor
    pair_weight: Tensor


class CropViews(NamedTuple):
    """What the two networks of a run without labels see of a CropsBatch.

    student  float [N, 2, 3, S, S], normalised; ``teacher`` is the same tensor
    small    float [N, V, 3, s, s]: seen by the student alone
    targets  int64 [N]: labels, which no loss reads
    """

    student: Tensor
    teacher: Tensor
    small: Tensor
    targets: Tensor


class StepOutput(NamedTuple):
    """Sums and means of one step, 0-d tensors on the device, detached except ``loss``.

    loss           the value that is differentiated
    loss_cls       classification part (mean over the batch)
    loss_guidance  guidance part before its weight (0 when there is no teacher)
    loss_drloc     localisation part before its weight (0 when it is off)
    correct        int64: top-1 hits
    count          int64: samples in the batch
    """

    loss: Tensor
    loss_cls: Tensor
    loss_guidance: Tensor
    loss_drloc: Tensor
    correct: Tensor
    count: Tensor
