"""Trained networks read back: of a run, an export or a teacher; and the weights that a training may start from."""

from fastlg.run.trained.begin import begin_from
from fastlg.run.trained.exports import is_export, load_export
from fastlg.run.trained.runs import as_tested, load_trained
from fastlg.run.trained.teachers import load_teacher

__all__ = ["as_tested", "begin_from", "is_export", "load_export", "load_teacher", "load_trained"]
