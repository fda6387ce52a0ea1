"""A student as ONNX, for whatever runs that: images of any batch size in, logits out, compared with torch by
onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from fastlg.data.sources.base import import_extra
from fastlg.errors import RunError, first_line
from fastlg.models import Student

FILE = "model.onnx"
TOLERANCE = 1e-3  # of the largest logit: another library's float32 kernels
LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
SIZES = (1, 3)  # of the batches that are compared


def expect_onnx() -> None:
    """Raises UserError where a library is missing, before anything is written."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(module, "onnx", "export --onnx")


def write_onnx(student: Student, path: Path) -> None:
    """Writes ``images`` float32 [N, 3, S, S], normalised, -> ``logits`` [N, K] for any N.

    Raises UserError where a library is missing, RunError where the student cannot be exported or onnxruntime does not
    give its logits.
    """
    expect_onnx()
    bare, training = student.bare, student.training
    device, size = next(bare.parameters()).device, student.image_size
    student.eval().cpu()
    images = torch.randn(max(SIZES), 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with _quiet(), torch.no_grad():
            network = bare if isinstance(bare(images[:1]), torch.Tensor) else _Logits(bare)
            _exported(network, images[:2]).save(str(path))
            want = {count: network(images[:count]) for count in SIZES}
    except OSError:
        raise
    except Exception as error:  # whatever torch's exporter makes of a network
        why = first_line(_cause(error))
        raise RunError(f"torch {torch.__version__} cannot write {student.name} as ONNX: {why}") from None
    finally:
        student.train(training).to(device)
    _check(path, images, want)


class _Logits(nn.Module):
    """A user's own network, without the features that it gives beside its logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)[0]


def _exported(network: nn.Module, images: torch.Tensor):
    """What torch makes of a network; attention in plain steps where the fused call has no ONNX, as of five axes."""
    how = {
        "input_names": ["images"],
        "output_names": ["logits"],
        "dynamic_shapes": ({0: torch.export.Dim("batch")},),
    }
    try:
        return torch.onnx.export(network, (images,), dynamo=True, verbose=False, **how)
    except Exception:
        fused = [
            module for module in network.modules() if getattr(module, "fused_attn", False)
        ]  # as timm's layers say it
        if not fused:
            raise
    try:
        for module in fused:
            module.fused_attn = False
        return torch.onnx.export(network, (images,), dynamo=True, verbose=False, **how)
    finally:
        for module in fused:
            module.fused_attn = True


def _cause(error: BaseException) -> BaseException:
    """The first of the errors that led to this one: the exporter's own last words are advice to its authors."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _check(path: Path, images: torch.Tensor, want: dict[int, torch.Tensor]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count, logits in want.items():
        (found,) = session.run(["logits"], {"images": images[:count].numpy()})
        worst = (torch.from_numpy(found) - logits).abs().max().item()
        if not worst <= TOLERANCE * max(1.0, logits.abs().max().item()):
            raise RunError(
                f"onnxruntime {onnxruntime.__version__} reads {path.name}, but its logits differ by {worst:.2g} for a "
                f"batch of {count}"
            )


@contextlib.contextmanager
def _quiet():
    """The exporter's own reports, of steps that end well."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
