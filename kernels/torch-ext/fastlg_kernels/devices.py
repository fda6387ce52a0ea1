"""Where the Triton kernels can run."""

from __future__ import annotations

from importlib.util import find_spec

HAS_TRITON = find_spec("triton") is not None  # torch without it runs the plain twins
