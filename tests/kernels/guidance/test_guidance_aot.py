"""Every tuned configuration compiles for Ampere and Hopper without a GPU, spills nothing and fits on the chip."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from guidance_aot import MULTIPROCESSORS, SHAPES, fits, record, usage  # noqa: E402

from fastlg_kernels.guidance import launch as guidance_triton
from fastlg_kernels.guidance import tiles as guidance_configs  # noqa: E402

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Together these take every row of the configuration tables; guidance_aot.py as a script goes through all shapes.
CASES = [
    ("sm90", "deit_ti/0", BF16, {}),
    ("sm90", "deit_ti/1", BF16, {"teacher": "last", "teacher_dtype": FP32}),
    ("sm90", "deit_ti/2", BF16, {}),
    ("sm90", "deit_ti/2", BF16, {"student": "maps"}),
    ("sm90", "deit_ti/2", BF16, {"student": "far channels"}),
    ("sm90", "deit_ti/2", FP16, {"weights": False}),
    ("sm90", "pvt_ti/2", BF16, {}),
    ("sm90", "pvt_ti/2", BF16, {"student": "maps", "teacher": "last"}),
    ("sm90", "pvt_ti/3", BF16, {}),
    ("sm90", "vit_small/0", BF16, {}),
    ("sm90", "vit_small/2", BF16, {"residuals": False}),
    ("sm90", "wide", BF16, {}),
    ("sm90", "flat C112", BF16, {}),
    ("sm90", "flat C383", BF16, {}),
    ("sm90", "window C300", BF16, {}),
    ("sm90", "7 to 28", BF16, {}),
    ("sm90", "14 to 48", BF16, {}),
    ("sm90", "deit_ti/0", FP32, {"allow_tf32": True, "teacher_dtype": BF16}),
    ("sm90", "deit_ti/1", FP32, {"allow_tf32": True, "teacher_dtype": BF16}),
    ("sm90", "deit_ti/2", FP32, {"allow_tf32": True}),
    ("sm90", "window C300", FP32, {}),
    ("sm80", "deit_ti/0", BF16, {}),
    ("sm80", "vit_small/0", BF16, {"teacher": "last"}),
    ("sm80", "7 to 56", FP16, {"student": "maps"}),
    ("sm90", "wide", FP32, {"allow_tf32": True}),
    ("sm80", "window C191", BF16, {"teacher": "last"}),
    ("sm80", "pvt_ti/3", BF16, {"student": "maps"}),
    ("sm80", "deit_ti/2", BF16, {"student": "far samples"}),
    ("sm80", "mixed", FP32, {"teacher_dtype": BF16}),
    ("sm80", "deit_ti/0", FP32, {}),
    ("sm80", "deit_ti/2", FP32, {"student": "far channels"}),
    # these spilled with one Triton and not with another
    ("sm90", "14 to 48", BF16, {"student": "far samples"}),
    ("sm80", "window C191", BF16, {"student": "maps"}),
    ("sm80", "flat C191", FP32, {}),
    ("sm80", "flat C383", FP32, {}),
    ("sm80", "pvt_ti/3", FP32, {"student": "maps"}),
]


@pytest.mark.parametrize(("family", "case", "dtype", "options"), CASES)
def test_no_spills_and_it_fits(monkeypatch, family, case, dtype, options):
    for launch in record(monkeypatch, family, [SHAPES[case]], dtype, **options):
        used = usage(launch, int(family[2:]))
        assert fits(used, family), used


def test_the_cases_take_every_row_of_the_tables(monkeypatch):
    taken = set()
    choose_row = guidance_configs.choose_row
    monkeypatch.setattr(guidance_configs, "choose_row", lambda *a, **k: taken.add(row := choose_row(*a, **k)) or row)
    for family, case, dtype, options in CASES:
        record(monkeypatch, family, [SHAPES[case]], dtype, **options)
    assert taken == {*guidance_configs.SAFE, *(row for rows in guidance_configs.FAMILIES.values() for row in rows)}


DEIT = [SHAPES[f"deit_ti/{index}"] for index in range(3)]


def token_readings(launches, channels: int) -> int:
    """How often forward kernels and those of weights read the tokens: each block of teacher's channels reads them."""
    readings = 0
    for launch in launches:
        match launch.kernel.fn.__name__:
            case "flat_kernel" | "window_kernel":
                readings += launch.grid[0]
            case "weight_grad_kernel":
                assert launch.grid[0] * launch.keywords["BC"] >= channels  # its blocks of channels read their own
                readings += launch.grid[1]
    return readings


@pytest.mark.parametrize(("dtype", "readings"), [(FP32, 5), (BF16, 3)])
def test_deit_ti_reads_its_tokens_as_often_as_its_rows_say(monkeypatch, dtype, readings):
    """As in training: autocast, a float32 stream or a bfloat16 one, a bfloat16 teacher; three pairs."""
    options = {"allow_tf32": True, "teacher_dtype": BF16, "batch": 1024}
    launches = record(monkeypatch, "sm90", DEIT, dtype, **options)
    assert token_readings(launches, 192) == readings
    safe = record(monkeypatch, "sm80", DEIT, dtype, **options)
    assert token_readings(safe, 192) > readings
    exact = record(monkeypatch, "sm90", DEIT, FP32, **{**options, "allow_tf32": False})
    assert [launch.keywords for launch in exact] != [launch.keywords for launch in launches]


def resnet50(channels):
    return [((14, 14), channels, dim, size) for dim, size in ((512, (28, 28)), (1024, (14, 14)), (2048, (7, 7)))]


PVT = [SHAPES[f"pvt_ti/{index}"] for index in range(4)]
LARGE = {
    "vit_base": resnet50(768),
    "vit_small": resnet50(384),
    "vit_tiny": resnet50(192),
    "vit_large": [((16, 16), 1024, 2048, (8, 8))],
    "small beside large": [*DEIT, *resnet50(768)],
    "more than the limit at one row": [((16, 16), 4096, 8192, (8, 8))],
}


def partial_sums(launches):
    """Partial sums of the loss and of the gradients, as reduce_kernel gets them: [programs, columns] each."""
    (reduction,) = [launch for launch in launches if launch.kernel is guidance_triton.reduce_kernel.kernel]
    return reduction.arguments[:2]


@pytest.mark.parametrize("family", MULTIPROCESSORS)
@pytest.mark.parametrize("case", LARGE)
def test_partial_sums_of_large_projections_are_bounded(monkeypatch, family, case):
    launches = record(monkeypatch, family, LARGE[case], BF16)
    losses, gradients = partial_sums(launches)
    weights = sum(dim * (channels + 1) for _, channels, dim, _ in LARGE[case])
    assert gradients.shape[1] == weights and losses.nbytes <= 2**20
    assert gradients.nbytes <= max(64 * 2**20, 4 * weights)
    for launch in launches:  # every row of both is written by somebody
        if launch.kernel.fn.__name__ in ("flat_kernel", "window_kernel"):
            assert launch.grid[1] == len(losses)
            assert not launch.keywords["FUSED"] or len(gradients) == len(losses)
        if launch.kernel.fn.__name__ == "weight_grad_kernel":
            assert launch.grid[2] == len(gradients)


def test_partial_sums_of_the_papers_students_keep_a_row_per_program(monkeypatch):
    for pairs, limit in ((DEIT, 11), (PVT, 58)):
        launches = record(monkeypatch, "sm90", pairs, BF16, batch=1024)
        losses, gradients = partial_sums(launches)
        assert len(losses) == len(gradients) and losses.nbytes + gradients.nbytes <= limit * 2**20
        assert len(launches) == 2 * len(pairs) + 1 + (pairs is PVT)  # forward, token gradient; the sums; one weight
