"""Where the photographs of frost lie. Imports nothing heavy."""

from __future__ import annotations

from importlib import util
from pathlib import Path

from fastlg.errors import UserError

PHOTOGRAPHS = (
    "frost1.png",
    "frost2.png",
    "frost3.png",
    "frost4.jpg",
    "frost5.jpg",
)  # the authors' sixth is never drawn
FROST = (
    "the corruption frost is made of photographs that come with imagecorruptions-imaug, which is not installed: "
    "pip install 'fastlg[frost]', or leave it out with --without frost"
)


def photograph_files() -> list[Path]:
    """Where the photographs of frost lie. Raises UserError where they are not installed."""
    spec = util.find_spec("imagecorruptions")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = [Path(places[0]) / "frost" / name for name in PHOTOGRAPHS] if places else []
    if not files or not all(path.is_file() for path in files):
        raise UserError(FROST)
    return files
