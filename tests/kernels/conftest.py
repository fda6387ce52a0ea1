"""Triton's interpreter on every stack that the kernels claim."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def interpreter_with_any_numpy():
    """Triton 3.6 makes a loop's bounds of arrays [1], which NumPy turns into no number since 2.4; 3.7 mended it so."""
    try:
        from triton.runtime import interpreter
    except ImportError:  # where Triton is not, nothing is interpreted
        yield
        return
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang_tensor", patched)
        yield
