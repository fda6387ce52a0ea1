"""What the fields of a config's sections are made of: ranges, paths, names."""

from __future__ import annotations

import os
from pathlib import Path as _Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fastlg.files.reading import NAME_BYTES, usable_path


def _given(path: Any) -> Any:
    if path == "":
        raise ValueError("give a folder or file; . is the working folder")
    if isinstance(path, str) and path.startswith("./~"):  # a Path forgets the dot, and ~ is the home folder
        return os.path.abspath(path)
    return path


def _known_home(text: str) -> str:
    if text.startswith("~"):
        usable_path(_Path(text))
    return text


def _run_name(name: str) -> str:
    """Folders below run.root; whoever wants another place sets that."""
    parts = name.split("/")
    if name and ({"", ".", ".."} & set(parts)):
        raise ValueError("a run's name is a folder below run.root: no / at its ends, no . or .. between; set run.root")
    if any(len(os.fsencode(part)) > NAME_BYTES for part in parts) or len(parts) > 20:
        raise ValueError(f"a run's name has at most {NAME_BYTES} bytes; give a shorter one")
    return name


TIMM = "timm:"  # begins the name of an optimizer or a schedule that is timm's


def _of_timm(name: str) -> str:
    if not name.startswith(TIMM) or not name.removeprefix(TIMM):
        raise ValueError(f"one of timm's is named {TIMM}NAME")
    return name


class Form(str):
    """Marks a text field that takes a form of text alone, as messages show it."""


# Every integer has a largest value, beyond which there is no run but only a machine out of memory.
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Aspect = Annotated[float, Field(ge=0.01, le=100)]
Deviation = Annotated[float, Field(ge=0.001, le=1)]
Alpha = Annotated[float, Field(ge=0, le=1000)]  # of a Beta distribution
Temperature = Annotated[float, Field(ge=0.01, le=1000)]  # what answers are divided by before their softmax
Size = Annotated[int, Field(ge=8, le=4096)]  # px
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Batch = Annotated[int, Field(ge=1, le=65_536)]
Stage = Annotated[int, Field(ge=0, le=999)]
Block = Annotated[int, Field(ge=0, le=999)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
Switch = bool | Literal["auto"]
Auto = Literal["auto"]  # a number that is made of the images, see auto.py
Path = Annotated[_Path, BeforeValidator(_given), AfterValidator(usable_path)]
Text = Annotated[str, Field(min_length=1)]
HomeText = Annotated[Text, AfterValidator(_known_home)]  # a path or a name; a ~ in front has a home
OfTimm = Annotated[str, AfterValidator(_of_timm), Form("timm:NAME")]
RunName = Annotated[str, AfterValidator(_run_name)]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
