"""Every tuned configuration compiles for Ampere and Hopper without a GPU, spills nothing and fits on the chip."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from guidance_aot import SHAPES, SHARED_LIMIT, record, usage  # noqa: E402

BF16, FP32 = torch.bfloat16, torch.float32
# Together these take every row of the configuration tables; guidance_aot.py as a script goes through all shapes.
CASES = [
    ("sm90", "deit_ti/0", BF16, {}),
    ("sm90", "deit_ti/1", BF16, {"channels_last": True}),
    ("sm90", "deit_ti/2", BF16, {}),
    ("sm90", "pvt_ti/0", BF16, {"maps": True}),
    ("sm90", "pvt_ti/2", BF16, {}),
    ("sm90", "pvt_ti/3", BF16, {}),
    ("sm90", "vit_small/2", BF16, {}),
    ("sm90", "wide", BF16, {}),
    ("sm90", "deit_ti/0", FP32, {}),
    ("sm90", "deit_ti/2", FP32, {"allow_tf32": True}),
    ("sm80", "deit_ti/0", BF16, {}),
    ("sm80", "deit_ti/2", BF16, {"wide": True}),
    ("sm80", "mixed", FP32, {}),
    ("sm80", "deit_ti/2", FP32, {}),
]


@pytest.mark.parametrize(("family", "case", "dtype", "options"), CASES)
def test_no_spills_and_it_fits(monkeypatch, tmp_path, family, case, dtype, options):
    for launch in record(monkeypatch, family, SHAPES[case], dtype, **options):
        used = usage(launch, int(family[2:]))
        assert used.stack == 0 and used.registers <= 255, used
        assert used.shared <= SHARED_LIMIT[family], used
