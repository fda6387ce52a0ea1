"""fastlg: vision transformers on tiny datasets, guided by a small frozen CNN (arXiv 2207.10026).

``train``, ``compare``, ``evaluate``, ``predict``, ``sweep`` and ``open_run`` are the command line's verbs for Python
code (docs/python.md). Nothing heavy is imported before one of them is asked for; ``fastlg --help`` stays quick.
"""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_VERBS = ("compare", "evaluate", "open_run", "predict", "sweep", "train")
_LAZY = {
    **dict.fromkeys((*_VERBS, "Comparison", "Rows", "TrainedRun"), "fastlg.api"),
    **dict.fromkeys(("RunError", "UserError"), "fastlg.errors"),
}
__all__ = sorted(_LAZY)


class _Package(ModuleType):
    """``fastlg.train`` is the verb; the module of that name is had by ``from fastlg.train import ...`` alone. Python
    would put the module in the verb's place when it is first imported, by whomever."""

    def __getattr__(self, name: str):
        if name not in _LAZY:
            raise AttributeError(f"module 'fastlg' has no attribute {name!r}")
        value = getattr(import_module(_LAZY[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _LAZY or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *_LAZY})


sys.modules[__name__].__class__ = _Package
