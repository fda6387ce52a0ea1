"""fastlg in Python: the verbs of the command line for notebooks and scripts; ``import fastlg`` has them by name."""

from fastlg.api.results import Comparison, Rows, TrainedRun, open_run
from fastlg.api.verbs import compare, evaluate, predict, sweep, train

__all__ = [
    "Comparison",
    "Rows",
    "TrainedRun",
    "compare",
    "evaluate",
    "open_run",
    "predict",
    "sweep",
    "train",
]
