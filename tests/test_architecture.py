"""The house is as docs/architecture.md draws it: every folder, no lobby, no dead name, the floors in their order."""

from __future__ import annotations

import re
from pathlib import Path

import mutate
import pytest
from step_files import files_of_a_step
from test_floors import FLOORS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = {"fastlg": ROOT / "fastlg", "fastlg_kernels": ROOT / "kernels" / "torch-ext" / "fastlg_kernels"}
BENCHMARKS = ROOT / "benchmarks"
ROOMS = sorted({path.parent for path in BENCHMARKS.rglob("*.py")})
MOST_ENTRIES = 12
MOST_FILES = 31  # of one guided step


def folders() -> dict[str, Path]:
    """Name on the page -> path of every folder of both packages that holds code, the packages themselves left out."""
    found = {}
    for name, root in PACKAGES.items():
        for path in root.rglob("__init__.py"):
            if path.parent != root:
                found[f"{name}/{path.parent.relative_to(root)}/"] = path.parent
    return found


def test_the_page_draws_every_folder_and_no_other():
    drawn = set(re.findall(r"\bfastlg(?:_kernels)?/(?:[a-z_]+/)+", PAGE))
    assert drawn == set(folders())


def test_the_page_draws_every_room_of_the_benchmarks():
    drawn = set(re.findall(r"`(benchmarks/(?:[a-z_]+/)*)`", PAGE))
    assert drawn == {f"{path.relative_to(ROOT)}/" for path in ROOMS} | {"benchmarks/results/"}


def test_every_file_of_the_benchmarks_that_is_named_anywhere_is_there():
    """Commands in documents, scripts and the files' own heads; the log of changes tells of what was."""
    sources = [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "kernels" / "README.md"]
    for folder, ending in (("docs", "*.md"), ("scripts", "*"), ("configs", "*.yaml"), ("fastlg", "*.py")):
        sources += (ROOT / folder).rglob(ending)
    sources = {path for path in [*sources, *BENCHMARKS.rglob("*.py")] if path.is_file()}
    named = [name for path in sources for name in re.findall(r"\bbenchmarks/[a-z_/]+\.py\b", path.read_text("utf-8"))]
    assert len(set(named)) > 10
    assert [name for name in sorted(set(named)) if not (ROOT / name).is_file()] == []


def test_the_page_names_no_file_that_is_not_there():
    for name in re.findall(r"\b(fastlg(?:_kernels)?/[a-z_/]+\.py|tests/[a-z_/]+\.py)", PAGE):
        package, _, rest = name.partition("/")
        assert (PACKAGES.get(package, ROOT / package) / rest).is_file(), name


@pytest.mark.parametrize("folder", [*PACKAGES.values(), *folders().values(), *ROOMS], ids=str)
def test_no_folder_is_a_lobby(folder):
    """Files and rooms apart, for the package itself holds both: the spine, and the folders that the page draws."""
    entries = [path for path in folder.iterdir() if not path.name.startswith("__")]
    for kind in (Path.is_file, Path.is_dir):
        of_kind = sorted(path.name for path in entries if kind(path))
        assert len(of_kind) <= MOST_ENTRIES, of_kind


def test_a_reader_of_one_guided_step_opens_few_files(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLG_CACHE", str(tmp_path / "cache"))
    files = files_of_a_step(tmp_path)
    assert {"fastlg/train.py", "fastlg/objective.py", "fastlg_kernels/guidance/plain.py"} < set(files)
    assert len(files) <= MOST_FILES, files


def test_the_page_draws_the_floors_that_are_enforced():
    block = re.search(r"```text\n( cli\b.*?)```", PAGE, re.DOTALL).group(1)
    drawn = [set(line.replace("/", "").split()) for line in block.splitlines()]
    assert drawn[::-1] == [floor - {"__init__"} for floor in FLOORS if floor != {"__main__"}]


def test_every_fault_that_the_tests_have_to_find_can_be_made():
    """``python tests/mutate.py`` makes each, by a text that is in its file once."""
    for fault in mutate.FAULTS:
        assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1, fault.name
