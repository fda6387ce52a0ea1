"""Every field of a config reaches the part it is for, seen from outside. A field without a row fails here."""

from __future__ import annotations

import pytest
import reach_engine
import reach_images
import reach_network
import reach_training
from reach import ROWS, all_fields
from tiny_project import write_project

TABLES = (reach_images, reach_network, reach_training, reach_engine)  # imported for their rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory, image_folder):
    """One project for all rows: its store is made once."""
    folder = tmp_path_factory.mktemp("reach")
    write_project(folder, image_folder)
    return folder


@pytest.mark.parametrize("row", range(len(ROWS)), ids=lambda row: f"{ROWS[row][0].__name__}: {', '.join(ROWS[row][1])}")
def test_a_field_reaches_its_part(row, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FASTLG_CACHE", str(folder / "cache"))
    ROWS[row][0](tmp_path, monkeypatch)


def test_every_field_has_a_row_and_every_row_a_field():
    assert sorted({field for _, fields in ROWS for field in fields}) == sorted(all_fields())
