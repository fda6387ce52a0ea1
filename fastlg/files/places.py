"""Where fastlg keeps what it makes for more than one run."""

from __future__ import annotations

import os
from pathlib import Path

from fastlg.files.reading import expanded


def cache_root() -> Path:
    """Where downloads, stores and feature caches are kept: $FASTLG_CACHE or ~/.cache/fastlg. Raises UserError."""
    return expanded(os.environ.get("FASTLG_CACHE") or "~/.cache/fastlg", "FASTLG_CACHE")
