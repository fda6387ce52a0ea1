"""An export put on the Hugging Face Hub, or whatever HF_ENDPOINT names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fastlg.data.sources.base import import_extra
from fastlg.errors import RunError, UserError, brief, first_line

_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def expect_hub(name: str) -> None:
    """Raises UserError for what is no OWNER/NAME, or without the library, before anything is written."""
    if not _NAME.fullmatch(name):
        raise UserError(f"--push-to-hub is {brief(name)}; write OWNER/NAME")
    import_extra("huggingface_hub", "hf", "export --push-to-hub")


def push(folder: Path, name: str) -> str:
    """Uploads an export's files to the model repository OWNER/NAME, made (private) where there is none; its address.

    Raises RunError: not reached, not allowed, no token; the export itself stays.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        address = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="fastlg export")
    except Exception as error:  # its own errors, httpx's and OSError
        raise RunError(
            f"cannot push {folder} to {name}: {first_line(error)} ({type(error).__name__}); the export is whole: mend "
            "name, connection or token (hf auth login), then: hf upload " + f"{name} {folder}"
        ) from None
    return address
