"""The documentation as a site: links lead somewhere, every page has its place, every object is there, it builds."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from patience import HANG_S

ROOT = Path(__file__).resolve().parent.parent
SITE = runpy.run_path(str(ROOT / "scripts" / "site.py"))
PAGES = SITE["pages"]()


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as both builders and GitHub name them."""
    text = SITE["FENCE"].sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_its_heading(page):
    for found in SITE["links"](page.read_text(encoding="utf-8")):
        address, _, anchor = found[0].partition("#")
        if not SITE["is_local"](found[0]) and address:
            continue
        target = (page.parent / address).resolve() if address else page
        assert target.is_file() and ROOT in target.parents, found[0]
        assert not anchor or anchor in anchors(target), found[0]


def test_the_source_of_the_site_has_every_page_and_what_they_link_to(tmp_path):
    config = yaml.safe_load(SITE["lay_out"](tmp_path).read_text(encoding="utf-8"))
    assert {path.name for path in (tmp_path / "source").glob("*.md")} == set(PAGES.values())
    text = (tmp_path / "source" / "recipe.md").read_text(encoding="utf-8")
    assert "(files/benchmarks/results/recipe-mini.png)" in text
    assert (tmp_path / "source" / "files" / "benchmarks" / "results" / "recipe-mini.png").is_file()
    assert "(kernels.md)" in (tmp_path / "source" / "index.md").read_text(encoding="utf-8")
    named = re.findall(r"[\w.]+\.md", yaml.safe_dump(config["nav"]))
    assert sorted(named) == sorted(PAGES.values()), "each page once"


def test_every_task_has_its_page_in_the_navigation():
    named = re.findall(r"[\w.]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert set(PAGES.values()) <= set(named), "a page that mkdocs.yml gives no place stands below More"


def test_a_link_to_nothing_ends_the_build(tmp_path):
    with pytest.raises(FileNotFoundError, match="README.md: the link to docs/nosuch.md leads to no file"):
        SITE["on_site"](ROOT / "README.md", "see [this](docs/nosuch.md)", tmp_path)
    assert SITE["on_site"](ROOT / "README.md", "`[a](docs/nosuch.md)`", tmp_path) == "`[a](docs/nosuch.md)`"


def test_every_object_of_the_reference_is_there_and_documented():
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 15
    for name in names:
        module, _, last = name.rpartition(".")
        tree, inner = tree_of(name), None
        if tree is None:
            nodes = tree_of(module).body
            inner = next(node for node in nodes if getattr(node, "name", "") == last)
        assert ast.get_docstring(inner or tree), name


def tree_of(module: str) -> ast.Module | None:
    """The source of a module of either package, read as the site's builder does: without importing it."""
    for root in (ROOT, ROOT / "kernels" / "torch-ext"):
        path = root / f"{module.replace('.', '/')}.py"
        if path.is_file():
            return ast.parse(path.read_text(encoding="utf-8"))
    return None


def test_the_verbs_of_the_package_are_all_in_the_reference():
    import fastlg

    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in fastlg._LAZY if not re.search(rf"^::: \S+\.{name}$", page, re.MULTILINE)] == []


@pytest.mark.skipif(find_spec("zensical") is None, reason="Zensical is not installed (extra docs; make docs adds it)")
def test_the_site_builds_and_nothing_is_called_wrong(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "site.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fastlg.api.verbs.train" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
