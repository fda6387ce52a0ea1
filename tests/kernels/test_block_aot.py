"""The fused parts of a block compile for Ampere and Hopper without a GPU, spill nothing and fit on the chip."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import block_aot  # noqa: E402

# of each operator what a DeiT-Ti takes; block_aot.py as a script goes through all
CASES = [("sm90", "norm C192 fp32 stream"), ("sm90", "attention L197 D64 bf16"), ("sm90", "mlp C192 fp32 stream")]


@pytest.mark.parametrize(("family", "case"), CASES)
def test_no_spills_and_it_fits(monkeypatch, family, case):
    launches = block_aot.record(monkeypatch, family, case)
    assert {launch.kernel.fn.__name__ for launch in launches} >= {"forward_kernel", "backward_kernel"}
    for launch in launches:
        used = block_aot.usage(launch, int(family[2:]))
        assert block_aot.fits(used, family, case), used


@pytest.mark.parametrize("family", block_aot.MULTIPROCESSORS)
@pytest.mark.parametrize("case", block_aot.CASES)
def test_every_launch_is_what_its_kernel_asks_for(monkeypatch, family, case):
    """Arguments by number and name, and no launch needs a tensor's values: it can be captured in a CUDA graph."""
    for launch in block_aot.record(monkeypatch, family, case):
        names = launch.kernel.arg_names
        own = {name for name in launch.keywords if name not in block_aot.OPTIONS}
        assert set(names[: len(launch.arguments)]) | own == set(names)
        assert len(launch.arguments) + len(own) == len(names) and all(size > 0 for size in launch.grid)
        assert all(value.is_meta for value in launch.arguments if hasattr(value, "is_meta"))
