"""A student as ONNX, for whatever runs that: images of any batch size in, logits out, compared with torch by
onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch

from fastlg.data.sources.base import import_extra
from fastlg.errors import RunError, first_line
from fastlg.models import Student

FILE = "model.onnx"
TOLERANCE = 1e-3  # of the largest logit: another library's float32 kernels
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
            program = torch.onnx.export(
                bare,
                (images[:2],),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
            program.save(str(path))
            want = {count: bare(images[:count]) for count in SIZES}
    except OSError:
        raise
    except Exception as error:  # whatever torch's exporter makes of a network
        raise RunError(f"torch {torch.__version__} cannot write {student.name} as ONNX: {first_line(error)}") from None
    finally:
        student.train(training).to(device)
    _check(path, images, want)


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
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
