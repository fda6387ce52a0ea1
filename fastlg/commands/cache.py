"""``fastlg cache``: the teacher's features of a config's images, kept on disk."""

from __future__ import annotations

from pathlib import Path

from fastlg.assemble import check_buildable
from fastlg.config import Config
from fastlg.data.stores import open_stores
from fastlg.derived import derived
from fastlg.errors import UserError
from fastlg.features import build_or_verify, plan_cache
from fastlg.run.report import Pulse
from fastlg.teacher.cache.build import expect_writable
from fastlg.train import find_or_train_teacher, has_teacher, untrained_teacher


def make_cache(config: Config) -> Path:
    """The feature cache of a config, built where it is missing, every byte checked where it is not.

    Raises UserError, RunError.
    """
    if config.teacher is None:
        raise UserError(f"{config.run.name} has no teacher section; there is nothing to cache")
    with Pulse(lambda: f"caching  the features of {config.run.name}"):
        stores = open_stores(config.data)
        config = derived(config, stores)
        check_buildable(config, stores)
        if config.teacher.weights is None and not has_teacher(config, stores):
            expect_writable(plan_cache(config, stores, *untrained_teacher(config, stores)))
        return build_or_verify(config, stores, *find_or_train_teacher(config, stores, dry_run=False))
