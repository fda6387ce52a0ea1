"""engine.precision=auto is bf16 where the processor multiplies it, everywhere in a run, and says so."""

from __future__ import annotations

import pytest
import torch
from reach import config_of, parts_of

from fastlg.commands.hand_on.predict import of_network
from fastlg.config import EngineConfig
from fastlg.engine.precision import pick_dtype
from fastlg.engine.switches import decide
from fastlg.run.checkpoint import save_checkpoint
from fastlg.run.metrics import Meter
from fastlg.run.plan import say_plan
from fastlg.run.position import Position, restore, saved_state
from fastlg.run.trained import as_tested

CPU = torch.device("cpu")
ALONE = ("teacher=null", "engine.device=cpu")
COMMON = {"kind": "plain", "world_size": 1, "accumulation": 1, "norm_stats": None}
NATIVE, NOT = {"avx512_bf16": True, "avx2": True}, {"avx512_bf16": False, "amx_bf16": False, "avx2": True}
PROCESSORS = {  # what torch says of a processor -> what auto takes there
    "AVX512-BF16": (NATIVE, torch.bfloat16),
    "AMX": ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
    "AVX512 alone": ({**NOT, "avx512_f": True, "avx512_vnni": True}, torch.float32),
    "AVX2": (NOT, torch.float32),
    "no x86": ({"architecture": "aarch64"}, torch.float32),
}


@pytest.fixture
def processor(monkeypatch):
    """processor(what torch says of it) for the rest of a test."""
    return lambda has: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)


@pytest.mark.parametrize("name", PROCESSORS)
def test_auto_takes_bf16_where_the_processor_multiplies_it(processor, name):
    has, wanted = PROCESSORS[name]
    processor(has)
    assert pick_dtype(EngineConfig(), CPU) == wanted
    for told, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert pick_dtype(EngineConfig(precision=told), CPU) == dtype, "what is told is done"


def test_auto_stays_float32_without_the_library_that_multiplies(processor, monkeypatch):
    processor(NATIVE)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert pick_dtype(EngineConfig(), CPU) == torch.float32


@pytest.mark.parametrize(
    ("told", "device", "dtype", "is_fused"),
    [
        ("auto", "cpu", torch.float32, True),
        ("auto", "cpu", torch.bfloat16, False),
        ("auto", "cuda", torch.bfloat16, True),
        (True, "cpu", torch.bfloat16, True),
        (False, "cuda", torch.float32, False),
    ],
)
def test_attention_goes_step_by_step_in_bf16_on_a_cpu(told, device, dtype, is_fused):
    switches = decide(EngineConfig(fused_attention=told), torch.device(device), dtype, **COMMON)
    assert switches.fused_attention is is_fused
    assert ("fused_attention (its steps are faster in bf16 on a CPU)" in switches.off()) is (
        told == "auto" and not is_fused
    )


def test_a_run_in_bf16_trains_and_is_tested_in_the_same_arithmetic(project, processor, capsys):
    processor(NATIVE)
    parts = parts_of(*ALONE, "engine.precision=auto", "optim.warmup_epochs=0")
    say_plan(parts)
    said = capsys.readouterr().out
    assert "on cpu in bfloat16" in said and "fused_attention (its steps" in said
    batch = next(iter(parts.train_loader.epoch(0)))
    views = parts.views(batch, 0)
    assert views.student.dtype == torch.bfloat16
    assert parts.engine.step(views, batch, 16).loss.isfinite()
    assert {own.dtype for own in parts.unit.parameters()} == {torch.float32}
    parts.unit.eval()
    with torch.inference_mode():
        logits = parts.engine.predict(views.student)
    model = parts.unit.student
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # as a model has it that was read from its checkpoint
    config = config_of(*ALONE, "engine.precision=auto")
    predictor = of_network(model, list("abc"), config)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predictor.logits(views.student), logits), "to the bit, so that no image changes its class"
    as_tested(model, config, CPU, torch.float32)
    assert all(own.fused_attn for own in model.modules() if hasattr(own, "fused_attn"))


def test_a_run_that_goes_on_in_another_precision_says_so(project, processor, tmp_path):
    said = {}
    for began, then in ((NATIVE, NOT), (NOT, NATIVE), (NATIVE, NATIVE)):
        processor(began)
        parts = parts_of(*ALONE, "engine.precision=auto")
        state = saved_state(parts, Position(epoch=1), Meter(CPU))
        path = save_checkpoint(tmp_path / "checkpoints", state)
        processor(then)
        parts, position = parts_of(*ALONE, "engine.precision=auto"), Position()
        said[parts.engine.dtype, began is then] = restore(path, parts, position, Meter(CPU))
        assert position.epoch == 1
    assert said[torch.bfloat16, True] == ""
    assert "in float32 from here on and bfloat16 before" in said[torch.float32, False]
    assert "in bfloat16 from here on and float32 before" in said[torch.bfloat16, False]
    state.pop("dtype")
    processor(NOT)
    path = save_checkpoint(tmp_path / "checkpoints", state)
    assert restore(path, parts_of(*ALONE, "engine.precision=auto"), Position(), Meter(CPU)) == "", "an older one"
