"""Triton's interpreter on every stack that the kernels claim, and without what it does again and again for nothing."""

from __future__ import annotations

import dataclasses

import pytest


@pytest.fixture(scope="session")
def interpreter():
    """Its module, or None where Triton is not and nothing is interpreted."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return None
    return interpreter


@pytest.fixture(autouse=True, scope="session")
def interpreter_with_any_numpy(interpreter):
    """Triton 3.6 makes a loop's bounds of arrays [1], which NumPy turns into no number since 2.4; 3.7 mended it so."""
    if interpreter is None:
        yield
        return
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang_tensor", patched)
        yield


@pytest.fixture(autouse=True, scope="session")
def language_is_patched_once_a_launch(interpreter, interpreter_with_any_numpy):
    """Not again at every call of a function within a kernel: a third of the time, and the same functions every time."""
    if interpreter is None:
        yield
        return
    patch, done = interpreter._patch_lang, set()  # ids of the globals of modules that this launch has patched for

    def patched(function):
        if id(function.__globals__) in done:
            return None  # a call within a kernel, which asks for nothing
        scope, is_kernel = patch(function), not done
        done.add(id(function.__globals__))
        if is_kernel:
            restore = scope.restore
            scope.restore = lambda: (done.clear(), restore())
        return scope

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang", patched)
        yield


@pytest.fixture(autouse=True, scope="session")
def whole_numbers_wrap(interpreter):
    """As on a GPU. Their check is three more operations at each, and small shapes never come near its bounds."""
    if interpreter is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patches:
        options = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
        patches.setattr(interpreter.interpreter_builder, "options", options)
        yield


@pytest.fixture
def overflow_is_an_error(interpreter, whole_numbers_wrap, monkeypatch):
    """For tests whose offsets are large."""
    options = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=True)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)
