"""A file of weights, whoever wrote it."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from fastlg.errors import UserError, first_line
from fastlg.run.checkpoint import expect_whole


def read_weights(path: Path, field: str, instead: str) -> dict:
    """What a file of weights holds. Raises UserError, which calls it by the config ``field`` that named it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):  # as torch writes them since 1.6
            expect_whole(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise half a dozen types for a file they cannot read
        is_legible = isinstance(error, OSError) and error.errno != errno.EINVAL  # which torch gives for a cut file
        reason = first_line(error) if is_legible else "it is truncated or no checkpoint"
        raise UserError(
            f"{field} {path} cannot be read: {reason}; give {instead}, or a file of tensors that torch.load reads with "
            "weights_only=True"
        ) from None
