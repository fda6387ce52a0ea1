"""The notebook runs top to bottom, as it is in the repository: without outputs.

Its cells are executed here, one after another in one namespace, not by a kernel: that would need Jupyter's packages and
a socket, and would import torch anew for the same statements. Magics, which only a kernel knows, fail.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from html_tree import read

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "own_images.ipynb"
MOST_BYTES = 1 << 15


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def run(source: str, name: str, names: dict) -> object:
    """Executes a cell; the value of its last line, as a notebook shows it, None where that is no expression."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    return eval(compile(ast.Expression(last.value), name, "eval"), names) if last is not None else None


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, names, what each code cell shows)."""
    folder, names = tmp_path_factory.mktemp("notebook"), {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FASTLG_CACHE", str(folder / "cache"))
        code = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
        shown = [run(source, f"cell {number}", names) for number, source in enumerate(code, 1)]
        return folder, names, shown


def test_the_notebook_is_committed_without_what_it_shows():
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5) and NOTEBOOK.stat().st_size < MOST_BYTES
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in book["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
    assert set(book["metadata"]) == {"kernelspec", "language_info"}


def test_every_cell_runs_in_order_and_leaves_what_it_promises(done):
    folder, names, shown = done
    found, page = names["found"], names["page"]
    assert len(list((folder / "my_images").rglob("*.png"))) == 240 and shown[1].size == (720, 120)
    table = shown[3]
    assert table["run"].tolist() == ["teacher", "unguided", "guided"] and (table["top1_last"] > 0).all()
    assert shown[4]["epoch"].tolist() == [1, 2, 3, 4]
    assert shown[4]["top1"].iloc[-1] == found.guided.summary["top1_last"]
    assert shown[5]["image"].tolist() == [str(path) for path in names["files"][::15]]
    assert shown[6] == ["checks", "rings", "stripes"] and (folder / "exported_student" / "README.md").is_file()
    assert page == found.folder / "report.html"
    assert read(folder / page).all("h1")[0].text == "Comparison own_images"


def test_the_page_about_it_names_what_is_there():
    said = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    assert "examples/own_images.ipynb" in said and "docs/notebook.md" in "".join(cells()[0]["source"])
