"""Small pictures and parquet files for the tests of sources, and how a refusal is checked."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from fastlg.data.sources.choose import open_source, open_splits
from fastlg.data.store.decode import decode_image
from fastlg.errors import UserError


def picture(seed: int, height=6, width=9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(seed: int, **size) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed, **size)).save(file, "PNG")
    return file.getvalue()


def save(path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed))


def pixels(source) -> list[np.ndarray]:
    return [decode_image(source.read(i), source.name(i)) for i in range(len(source))]


def refuses(match: str, spec: str, split: str | None, **kwargs) -> None:
    """``split`` None opens both."""
    with pytest.raises(UserError, match=match) as caught:
        open_source(spec, split, **kwargs) if split else open_splits(spec, **kwargs)
    assert "\n" not in str(caught.value)


# ---- class folders


def write_parquet(path, columns: dict, features: dict | None = None, row_group=2, **options):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group, **options)


def images(*seeds):
    return [{"bytes": png(seed), "path": f"{seed}.png"} for seed in seeds]


FEATURES = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["dog", "cat", "owl"]}}
