"""The scaling benchmark: its model has the right limits, its bytes are those really sent, its page says what it saw."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scaling.model import GPUS, SCENARIOS, Assumptions, all_reduce_s, all_rows, exposed_s, step_of

ROOT = Path(__file__).resolve().parents[1]

A = Assumptions()
FREE = replace(A, call_us=0.0, node_hop_us=0.0, net_hop_us=0.0)  # bandwidth alone
RESULTS = ROOT / "benchmarks" / "results" / "scaling-cpu.json"


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("algorithm", ["ring", "tree", "auto"])
def test_one_gpu_exchanges_nothing(algorithm):
    assert all_reduce_s(22e6, 1, A, algorithm) == 0
    step = step_of(128, 1, A)
    assert (step.norms_ms, step.gradients_ms, step.flag_ms) == (0, 0, 0)
    assert step.step_ms == step.compute_ms


def test_two_gpus_of_a_ring_send_the_tensor_once():
    assert all_reduce_s(22e6, 2, FREE, "ring") == pytest.approx(22e6 / (1e9 * A.node_gb_per_s))


def test_a_ring_tends_to_twice_the_bytes_over_the_bandwidth():
    bound = 2 * 22e6 / (1e9 * A.net_gb_per_s)
    assert all_reduce_s(22e6, 16, FREE, "ring") < bound
    assert all_reduce_s(22e6, 10**6, FREE, "ring") == pytest.approx(bound, rel=1e-5)


def test_small_all_reduces_cost_latency_that_grows_with_the_tree():
    eight, thousand = (all_reduce_s(4, gpus, A, "tree") * 1e6 for gpus in (8, 1024))
    assert eight == pytest.approx(A.call_us + 2 * 3 * A.node_hop_us, rel=1e-3)
    assert thousand == pytest.approx(A.call_us + 2 * (3 * A.node_hop_us + 7 * A.net_hop_us), rel=1e-3)
    assert all_reduce_s(4, 1024, A) <= all_reduce_s(4, 1024, A, "ring")


@pytest.mark.parametrize("algorithm", ["ring", "tree", "auto"])
def test_all_reduce_never_gets_cheaper_with_gpus_or_bytes(algorithm):
    costs = [all_reduce_s(22e6, gpus, A, algorithm) for gpus in GPUS]
    assert all(low < high for low, high in itertools.pairwise(costs[:1] + costs[1:2])) and costs == sorted(costs)
    costs = [all_reduce_s(size, 64, A, algorithm) for size in (0, 1, 10**3, 10**6, 10**9)]
    assert costs == sorted(costs)


def test_overlap_hides_at_most_all_but_the_last_bucket():
    whole = replace(A, first_bucket_mb=100.0, bucket_mb=100.0)
    assert exposed_s(1.0, 64, whole) == pytest.approx(all_reduce_s(A.gradient_bytes, 64, A))
    small = replace(A, first_bucket_mb=1.0, bucket_mb=1.0)
    last = A.gradient_bytes % 1e6
    assert exposed_s(10.0, 64, small) == pytest.approx(all_reduce_s(last, 64, A), rel=1e-6)
    no_backward = exposed_s(0.0, 64, small)
    assert no_backward == pytest.approx(22 * all_reduce_s(1e6, 64, A) + all_reduce_s(last, 64, A))


def test_efficiency_falls_with_gpus_and_never_exceeds_one():
    cases = itertools.groupby(all_rows(A), lambda row: (row["network"], row["scenario"], row["mode"]))
    for name, rows in cases:
        values = [row["efficiency"] for row in rows]
        assert values[0] == 1 and all(low >= high > 0 for low, high in itertools.pairwise(values)), name


def test_the_bytes_on_paper_are_the_bytes_that_two_processes_send(tmp_path, monkeypatch):
    from benchmarks.harness.images import make_store
    from benchmarks.scaling.ranks import WHAT, Job, counted, on_paper, sent

    monkeypatch.setenv("FASTLG_CACHE", str(tmp_path / "cache"))
    common = [f"data.source={make_store(tmp_path, 100)}", f"run.root={tmp_path}", "engine.device=cpu", "data.workers=0"]
    common += ["optim.global_batch_size=4", "model.image_size=32"]  # the parameters' number is about the same
    name = "plain, batch statistics"
    with Job({name: {"overrides": [*common, *WHAT[name][0]], "alone": False}}, 2, threads=1) as job:
        job.order(case=name, steps=2)  # DistributedDataParallel settles on its buckets
        answers = job.order(case=name, steps=1, counted=True)
    for answer in answers:
        found = counted(answer["step"])
        assert found == on_paper(answer, *WHAT[name][1:], 2)
        assert sent(found, 2) == found["allreduce"]  # two ranks send a tensor once each
        assert answer["report"] == [["allgather", "float64", 2 * 11 * 8]]
        small = [size for _, dtype, size in answer["step"] if dtype == "float32" and size < 1000]
        assert (len(small), sum(small)) == (A.norm_all_reduces, A.norm_bytes)


def test_measured_rows_say_what_was_expected(results):
    exchanging = [row["extra"] for row in results["rows"] if row["extra"].get("paper_bytes")]
    assert len(exchanging) >= 5
    for extra in exchanging:
        assert extra["counted_bytes"] == extra["paper_bytes"]
        assert extra["parameters"] == A.gradient_values
        if extra["loopback_bytes"]:  # with headers, and other traffic of the namespace
            assert extra["sent_bytes"] <= extra["loopback_bytes"] <= 1.05 * extra["sent_bytes"]


def test_the_model_sends_gradients_in_the_buckets_that_were_counted(results):
    counts = {row["case"].split(": ", 1)[1]: row["extra"].get("buckets") for row in results["rows"]}
    for statistics in ("batch", "running"):
        first, *middle, last = counts[f"plain, {statistics} statistics"]
        assert first / 1e6 == pytest.approx(A.first_bucket_mb, rel=0.01)
        assert [size / 1e6 for size in middle] == pytest.approx([A.bucket_mb] * 3, rel=0.01)
        assert last <= middle[-1]
    half = counts["DeepSpeed stage 0, running statistics, bf16 gradients"]
    changed = replace(A, **SCENARIOS["running statistics, bf16 gradients"])
    assert half == [changed.gradient_bytes] and changed.first_bucket_mb * 1e6 / 2 > changed.gradient_bytes


def test_modelled_rows_follow_from_their_assumptions_and_are_marked(results):
    modelled = results["modelled"]
    assert modelled["rows"] == all_rows(Assumptions(**modelled["assumptions"]))
    assert {row["kind"] for row in modelled["rows"]} == {"modelled, not measured"}


def test_the_page_agrees_with_the_results_file(results):
    pytest.importorskip("matplotlib", reason="pip install 'fastlg[plots]'")
    from benchmarks.scaling.page import page

    assert (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8") == page(results)
