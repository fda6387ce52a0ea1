"""Engines, ranks, accumulation and switches change the speed of a run, not its numbers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from engine_cases import DRLOC, TWO_RANKS, train_cases, trained
from rank_processes import Ranks

from fastlg.assemble import assemble
from fastlg.config import load_config
from fastlg.data.stores import open_stores
from fastlg.engine.deepspeed_config import merged_config
from fastlg.errors import UserError

deepspeed = pytest.importorskip("deepspeed", reason="pip install 'fastlg[deepspeed]'")


def assert_same(one: dict, other: dict, tolerance: float) -> None:
    torch.testing.assert_close(one["losses"], other["losses"], rtol=tolerance, atol=tolerance)
    assert one["unit"].keys() == other["unit"].keys()
    for name, value in one["unit"].items():
        if not name.endswith(
            "qkv.bias"
        ):  # softmax cancels the keys' bias: its gradient is rounding, which Adam scales up
            torch.testing.assert_close(
                other["unit"][name], value, rtol=tolerance, atol=tolerance, msg=f"{name}: {{}}".format
            )
    for name, value in one.get("average", {"weights": {}})["weights"].items():
        torch.testing.assert_close(other["average"]["weights"][name], value, rtol=tolerance, atol=tolerance)
    assert one["optimizer"].keys() == other["optimizer"].keys()
    for name, moments in one["optimizer"].items():
        for key, value in moments.items():
            found = other["optimizer"][name][key].reshape(value.shape)
            torch.testing.assert_close(found, value, rtol=100 * tolerance, atol=tolerance)


@pytest.fixture
def here(shared_project, monkeypatch):
    monkeypatch.chdir(shared_project)
    monkeypatch.setenv("FASTLG_CACHE", str(shared_project / "cache"))


@pytest.fixture(scope="module")
def baselines():
    return {}


@pytest.fixture
def baseline(here, baselines):
    """Outcome of the plain engine in one process, per extra overrides, computed once."""

    def of(*overrides):
        if overrides not in baselines:
            baselines[overrides] = trained(*overrides)
        return baselines[overrides]

    return of


RUNNING = "teacher.norm_stats=running"
SWITCHED = {  # name -> (overrides, overrides of the run it must equal, tolerance)
    "channels_last off": (("engine.channels_last=false",), (), 1e-4),
    "fused attention off": (("engine.fused_attention=false",), (), 1e-4),
    "norms not folded": (("engine.fold_norms=false", RUNNING), (RUNNING,), 1e-4),
    "two passes": (("engine.micro_batch_size=8",), (), 1e-4),
    "two passes, muon, clipped": (
        ("engine.micro_batch_size=8", "optim.name=muon", "optim.clip_norm=0.5"),
        ("optim.name=muon", "optim.clip_norm=0.5"),
        1e-4,
    ),
    "drloc in two passes": (("engine.micro_batch_size=8", *DRLOC), DRLOC, 1e-4),
    "passes of unequal size": (
        ("engine.micro_batch_size=8", "optim.drop_last=false"),
        ("optim.drop_last=false",),
        1e-4,
    ),
}


@pytest.mark.parametrize("name", SWITCHED)
def test_a_switch_changes_no_result(name, baseline):
    overrides, reference, tolerance = SWITCHED[name]
    assert_same(baseline(*reference), trained(*overrides), tolerance)


def test_a_compiled_run_learns_as_the_eager_one(baseline, monkeypatch):
    """By a backend that runs the captured graphs as they are: generating code for them takes a minute."""
    reference = baseline(*DRLOC)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    assert_same(reference, trained("engine.compile=true", *DRLOC), 1e-4)


@pytest.fixture(scope="module")
def outcomes(shared_project, tmp_path_factory):
    """What engine_cases.py trained in so many gloo processes."""
    with Ranks(shared_project, tmp_path_factory.mktemp("prints")) as start:

        def of(world_size: int) -> dict:
            path = tmp_path_factory.mktemp("outcomes") / "outcomes.pt"
            processes = start.call_in_all(partial(train_cases, path), world_size)
            ends = [process.finish() for process in processes]
            assert path.is_file(), "\n".join(out + err for _, out, err in ends)[-4000:]
            return torch.load(path, weights_only=True)

        yield of


@pytest.fixture(scope="module")
def of_one_rank(outcomes):
    return outcomes(1)


@pytest.fixture(scope="module")
def of_two_ranks(outcomes):
    return outcomes(2)


@pytest.mark.parametrize("stage", range(4))
def test_deepspeed_learns_as_plain_torch(stage, baseline, of_one_rank):
    assert_same(baseline(), of_one_rank[f"zero{stage}"], 1e-4)


@pytest.mark.parametrize("stage", range(4))
def test_bf16_stays_near_float32_with_float32_weights(stage, baseline, of_one_rank):
    half = of_one_rank[f"zero{stage} bf16"]
    torch.testing.assert_close(half["losses"], baseline()["losses"], rtol=3e-2, atol=0)
    torch.testing.assert_close(half["losses"], of_one_rank["bf16"]["losses"], rtol=1e-2, atol=0)
    assert all(value.dtype == torch.float32 for value in half["unit"].values() if value.is_floating_point())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_own_bf16_keeps_float32_masters(stage, baseline, of_one_rank):
    half = of_one_rank[f"zero{stage} own bf16"]
    torch.testing.assert_close(half["losses"], baseline()["losses"], rtol=3e-2, atol=0)
    weights = half["unit"]["student.bare.blocks.0.mlp.fc1.weight"]
    assert weights.dtype == torch.float32 and not torch.equal(weights, weights.bfloat16().float())


@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_learn_as_one(name, baseline, of_two_ranks):
    alone = [o for o in TWO_RANKS[name] if not o.startswith("engine.")]
    assert_same(baseline(*alone), of_two_ranks[name], 1e-4)


def merged(tmp_path, text: str, *overrides: str) -> dict:
    (tmp_path / "ds.json").write_text(text)
    config = load_config(
        "student.yaml", ["engine.kind=deepspeed", f"engine.deepspeed_config={tmp_path / 'ds.json'}", *overrides]
    )
    return merged_config(config.engine, dtype=torch.float32, per_rank=16, accumulation=2, clip_norm=0.0)


def test_a_users_deepspeed_json_is_laid_over_ours(here, tmp_path):
    config = merged(
        tmp_path,
        '{"zero_optimization": {"stage": 2, "overlap_comm": false}, '
        '"train_micro_batch_size_per_gpu": "auto", "prescale_gradients": true, "bf16": {"enabled": "auto"}}',
        "engine.zero_stage=2",
    )
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": False} and config["prescale_gradients"]
    assert config["bf16"] == {}, "DeepSpeed does not know auto"
    assert config["train_micro_batch_size_per_gpu"] == 8 and config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 0.0, "DeepSpeed clips at 1.0 unless told otherwise"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"train_batch_size": 99}', "train_batch_size is 99, but the run has 16; set optim.global_batch_size"),
        (
            '{"zero_optimization": {"stage": 3}}',
            "zero_optimization.stage is 3, but the run has 0; set engine.zero_stage",
        ),
        ('{"gradient_clipping": 1.0}', "set optim.clip_norm"),
        ('{"optimizer": {"type": "Adam"}}', "optimizer is set there"),
        ('{"bf16": {"enabled": true}}', "set engine.precision=bf16"),
        ('{"torch_autocast": {"enabled": true, "dtype": "bfloat16"}}', "set engine.precision"),
        ("{", "is not valid JSON"),
        ("[]", "holds a list"),
    ],
)
def test_a_conflicting_deepspeed_json_is_one_line_with_the_key_to_set(here, tmp_path, text, expected):
    with pytest.raises(UserError, match=expected.replace(".", r"\.")) as caught:
        merged(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_fp16_that_zero_would_not_scale_is_refused(here):
    config = load_config("student.yaml", ["engine.precision=fp16", "engine.zero_stage=2"])
    with pytest.raises(UserError, match="fp16 does not work with engine.zero_stage=2"):
        merged_config(config.engine, dtype=torch.float16, per_rank=16, accumulation=1, clip_norm=0.0)


def test_a_students_engine_is_not_its_teachers(here, fastlg):
    """A switch that only a guided run has, batch shares that the recipe's batch of 20 does not have; and a resume."""
    overrides = ["run.name=own", "engine.channels_last=true", "engine.micro_batch_size=8", "teacher.norm_stats=running"]
    overrides += ["optim.epochs=2", "log.checkpoint_steps=1"]
    assert fastlg("train", "student.yaml", *overrides, "engine.fold_norms=false")[0] == 0
    (Path("runs") / "own" / "summary.json").unlink()  # as if it had been stopped just before its end
    status, out, err = fastlg("train", "student.yaml", *overrides, "engine.fold_norms=true")
    assert status == 0 and "resumed" in out, err


def test_a_switch_that_cannot_be_is_refused_with_the_reason(here):
    for override, reason in [
        ("engine.graph=true", "needs CUDA"),
        ("engine.prefetch=true", "needs CUDA"),
        ("engine.fold_norms=true", "norm_stats=batch"),
    ]:
        with pytest.raises(UserError, match=reason):
            trained(override, steps=1)
    with pytest.raises(UserError, match="zero_stage is set, but engine.kind is plain"):
        trained("engine.kind=plain", "engine.zero_stage=1", steps=1)


@pytest.mark.parametrize("switch", ["auto", "false"])
def test_a_cnn_in_training_is_channels_last_unless_switched_off(project, switch):
    source = load_config("student.yaml").data.source
    config = load_config("teacher.yaml", [f"data.source={source}", f"engine.channels_last={switch}"])
    parts = assemble(config.replace({"engine.device": "cpu", "data.workers": 0}), open_stores(config.data), None, None)
    convolutions = [weight for weight in parts.unit.parameters() if weight.ndim == 4 and weight.shape[2] > 1]
    is_last = {weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions}
    assert is_last == {switch == "auto"}
