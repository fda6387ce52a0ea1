"""The benchmarks: rows carry what made them, counts are right, rivals do one job, README repeats a results file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from patience import HANG_S
from torch import nn

import fastlg.commands.bench
import fastlg.ranks.say
import fastlg_kernels
from benchmarks import run, speedrun
from benchmarks.cases.training import cpu_ladder, step_parts, students, systems
from benchmarks.harness import bench as harness
from benchmarks.harness import counting, ours, reference_style, report
from fastlg.cli import main
from fastlg.config import save_config, shipped_configs
from fastlg.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
BENCHMARKS = ROOT / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))
HARD = ("guidance.logits=hard",)
TINY = [
    "model.name=vit_tiny_patch16_224",
    "model.image_size=56",
    "model.args={patch_size: 8, embed_dim: 24, depth: 3, num_heads: 2}",
    "model.blocks=[0,1,2]",
    "model.drop_path=0",
    "augment.crop_scale=[0.5,1]",
    "engine.precision=fp32",
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    ceilings = counting.Ceilings(1e10, {"float32": 1e11, "bfloat16": 2e11})
    made = harness.Bench(
        CPU, quick=True, folder=folder, ceilings=ceilings, stamp=harness.Stamp.of(CPU, "a test"), profile=None
    )
    ours.make_store(folder, 256, 100)
    return made


@pytest.fixture
def config(bench, monkeypatch):
    monkeypatch.setenv("FASTLG_CACHE", str(bench.folder / "cache"))
    return ours.config_of(bench, "deit_tiny", 3, *TINY)


def row(**changes):
    made = {
        "bench": "step",
        "case": "a",
        "provider": "b",
        "batch": 8,
        "device": "cpu",
        "median_ms": 10.0,
        "spread": 0.1,
    }
    return {**made, **changes}


def test_a_run_leaves_rows_with_every_field(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLG_CACHE", str(tmp_path / "cache"))  # main sets both, here they are put back
    monkeypatch.setattr(fastlg.ranks.say.console, "quiet", False)
    monkeypatch.setitem(run.SECONDS, "optimizer", (HANG_S,) * 4)  # nothing is left out, however busy the machine
    monkeypatch.setattr("sys.argv", ["run.py", "optimizer", "--quick", f"--out={tmp_path}"])
    threads = torch.get_num_threads()
    try:
        assert run.main() == 0
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.glob("*.json")
    results = report.load(path)
    assert Counter(made["case"] for made in results["rows"]) == {"AdamW, DeiT-Ti": 3, "Muon, DeiT-Ti": 3}
    for made in results["rows"]:
        assert set(made) == set(harness.ROW_FIELDS)
        assert made["commit"] or not (ROOT / ".git").exists()
        assert made["device"].startswith("cpu") and made["driver"] == "none" and made["versions"]["torch"]
        assert made["command"].startswith("fastlg bench optimizer --quick") and made["date"][:2] == "20"
        assert made["median_ms"] > 0
        assert made["bound_ms"] > 0
        assert made["bound_share"] == pytest.approx(made["bound_ms"] / made["median_ms"], rel=1e-3)
    text = path.with_suffix(".md").read_text()
    assert "fused" in text and "Ceilings measured in this run" in text
    assert run.free(path) == path.with_name(f"{path.stem}-2.json")  # nothing measured is overwritten
    monkeypatch.setattr("sys.argv", ["run.py", "no-such-benchmark"])
    with pytest.raises(ValueError, match="no benchmark no-such-benchmark; choose from training, step"):
        run.main()


def test_students_take_steps_that_help_or_the_benchmark_fails(bench, monkeypatch):
    monkeypatch.setenv("FASTLG_CACHE", str(bench.folder / "cache"))
    monkeypatch.setattr(students, "STEPS", 2)
    monkeypatch.setattr(students, "CASES", [("tiny", "pit_tiny", ()), ("tiny, hard", "deit_tiny", HARD)])
    monkeypatch.setattr(bench, "rows", [])
    monkeypatch.setattr(bench, "overrides", tuple(TINY))
    students.rows(bench)
    for made in bench.rows:
        assert made.extra["losses"][1] < made.extra["losses"][0] and made.repeats == 1
        assert 0 < made.extra["guidance"][0] < made.extra["losses"][0] and made.extra["pictures"] == "made"
    assert [made.case for made in bench.rows] == ["tiny", "tiny, hard"]
    assert "loss, step by step" in report.table([made.as_json() for made in bench.rows])
    monkeypatch.setattr(bench, "overrides", (*TINY, "optim.lr=1e-30", "optim.min_lr=0"))
    monkeypatch.setattr(students, "CASES", students.CASES[:1])
    with pytest.raises(ArithmeticError, match="did not fall: tiny"):
        students.rows(bench)


def test_every_guided_system_takes_steps_at_its_published_size(bench):
    shipped = {name for name in shipped_configs() if name.startswith(systems.GUIDED)}
    assert shipped <= {name for _, name, _ in systems.CASES}
    for label, name, overrides in systems.CASES:
        config = ours.config_of(bench, name, 4, *overrides)
        assert config.teacher is not None and config.optim.global_batch_size == 4, label
        assert (config.model.image_size == 224) == ("DeiT" in label or "224" in label), label


def test_the_command_hands_its_arguments_over_and_passes_the_status_on(tmp_path, monkeypatch):
    script = tmp_path / "benchmarks" / "run.py"
    script.parent.mkdir()
    script.write_text("import sys; open(sys.argv[0] + '.seen', 'w').write(repr(sys.argv[1:])); sys.exit(7)\n")
    (tmp_path / "kernels" / "torch-ext").mkdir(parents=True)
    monkeypatch.setattr(fastlg.commands.bench, "__file__", str(tmp_path / "fastlg" / "commands" / "bench.py"))
    monkeypatch.chdir(tmp_path)
    for name in ("old.json", "new.json"):
        (tmp_path / name).touch()
    flags = ["--quick", "--profile", "--compare", "old.json", "--readme", "new.json", "--set", "data.source=x"]
    monkeypatch.setattr("sys.argv", ["fastlg", "bench", "step", "views", *flags])
    with pytest.raises(SystemExit) as leave:
        main()
    assert leave.value.code == 7
    seen = ["step", "views", "--quick", "--profile", "--compare=old.json", "--readme=new.json", "--set=data.source=x"]
    assert script.with_name("run.py.seen").read_text() == repr(seen)


def test_an_installed_wheel_says_where_the_benchmarks_are(tmp_path, monkeypatch, capsys):
    packages = tmp_path / "site-packages"
    stranger = packages / "benchmarks" / "run.py"  # another package's folder of that name
    stranger.parent.mkdir(parents=True)
    stranger.write_text("raise SystemExit('ran a stranger')\n")
    monkeypatch.setattr(fastlg.commands.bench, "__file__", str(packages / "fastlg" / "commands" / "bench.py"))
    with pytest.raises(UserError, match="clone fastlg's repository"):
        fastlg.commands.bench.run_benchmarks([])
    monkeypatch.setattr("sys.argv", ["fastlg", "bench"])
    with pytest.raises(SystemExit) as leave:
        main()
    assert leave.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


BY_PATH = """
import json, pathlib, runpy, sys
from fastlg.errors import UserError
root, rest = pathlib.Path(sys.argv[1]), sys.path[1:]
left = {}
for name in sys.argv[2:]:
    for module in [module for module in sys.modules if module.partition(".")[0] == "benchmarks"]:
        del sys.modules[module]
    sys.path[:] = [str((root / name).parent), *rest]
    sys.argv = [name, "--help"]
    try:
        runpy.run_path(str(root / name), run_name="__main__")
    except (SystemExit, UserError) as leave:
        left[name] = [str(leave), [path for path in sys.path if "benchmarks" in path], sys.path[0] == str(root)]
pathlib.Path("left.json").write_text(json.dumps(left))
"""


def test_every_file_that_is_run_by_its_path_finds_its_own_and_hides_nobody_elses(tmp_path):
    """From any folder, beside somebody else's package of the same name, and with no folder of ours on the path."""
    scripts = [path for path in BENCHMARKS.rglob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")]
    scripts.remove(BENCHMARKS / "scaling" / "ranks.py")  # a rank of a job, which test_scaling.py starts
    names = sorted(str(path.relative_to(ROOT)) for path in scripts)
    (tmp_path / "others" / "benchmarks").mkdir(parents=True)
    (tmp_path / "others" / "benchmarks" / "__init__.py").write_text("raise ImportError('a stranger')\n")
    for name, package in (("fastlg", fastlg), ("fastlg_kernels", fastlg_kernels)):  # wherever they are installed
        (tmp_path / "others" / name).symlink_to(Path(package.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "others")}
    command = [sys.executable, "-c", BY_PATH, str(ROOT), *names]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    left = json.loads((tmp_path / "left.json").read_text())
    assert list(left) == names and len(names) >= 8
    for name, (status, of_ours, root_first) in left.items():
        assert of_ours == [] or name == "benchmarks/gpu_stages.py", name  # which imports nothing of ours
        assert root_first or name == "benchmarks/gpu_stages.py", name
        assert status == "0" or name == "benchmarks/cases/coldstart.py", (name, status)  # its argument is a config


def test_comparison_marks_what_moved_beyond_both_spreads():
    old = [row(case="still"), row(case="slower"), row(case="faster"), row(case="noisy", spread=0.9), row(case="gone")]
    new = [
        row(case="still", median_ms=10.9),
        row(case="slower", median_ms=12.0),
        row(case="faster", median_ms=8.0),
        row(case="noisy", median_ms=14.0, spread=0.5),
        row(case="new"),
        row(case="still", device="NVIDIA H200", median_ms=1.0),
        row(case="still", extra={"kind": "ladder"}, median_ms=1.0),
    ]
    lines = {line["case"]: line for line in report.compare(old, new)}
    assert {name: line["moved"] for name, line in lines.items()} == {
        "still": "",
        "slower": "slower",
        "faster": "faster",
        "noisy": "",
    }
    assert lines["faster"]["ratio"] == pytest.approx(1.25)
    assert "2 of 4 moved" in report.comparison_text(list(lines.values()))


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_convolutions_in_groups_are_counted_as_by_hand(groups):
    layer = torch.nn.Conv2d(8, 16, 3, padding=1, groups=groups)
    images = torch.randn(2, 8, 10, 12, requires_grad=True)
    forward = 2 * 2 * 16 * 10 * 12 * (8 // groups) * 3 * 3
    assert counting.count(lambda: layer(images)).flops == forward
    assert counting.count(lambda: layer(images).sum().backward()).flops == 3 * forward


def test_work_is_counted_as_by_hand():
    layer, images = nn.Linear(20, 30, bias=False), torch.randn(8, 7, 20)

    def forward(count: int) -> None:
        layer(images[:count])

    work = counting.count_per_batch(forward, 64)
    rows = 64 * 7
    assert work.flops == 2 * rows * 20 * 30
    assert work.bytes == 4 * (rows * 20 + 20 * 30 + rows * 30)
    ceilings = counting.Ceilings(1e9, {"float32": 1e9})
    assert work.bound_s(ceilings) == pytest.approx(max(work.bytes, work.flops) / 1e9)


def test_spread_is_the_quartile_distance_over_the_median():
    assert harness.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((4 - 2) / 3)
    assert harness.spread([3.0]) == 0.0


def test_rivals_take_turns_until_their_time_is_over():
    order = []
    runs = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = harness.take_turns(runs, CPU, turns=5, seconds=0.0)
    assert order == ["a", "b"] * 3 and all(len(taken) == 2 for taken in times.values())


def test_every_style_of_the_reference_computes_the_same_losses(config, monkeypatch):
    stores = ours.open_stores(config.data)
    fixed = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(3)), torch.tensor([1, 0, 2])
    monkeypatch.setattr(reference_style.ReferenceStyle, "next_batch", lambda self: fixed)
    styles = {"reference": {}, "no copies": {"copies": False}, "kernel": {"copies": False, "kernel": True}}
    losses = {}
    for name, changes in styles.items():
        teacher = ours.made_teacher(len(stores.class_names))
        style = reference_style.Style(**changes)
        made = reference_style.ReferenceStyle(config, stores.train, teacher, style, device=CPU, workers=0)
        layers = made.unit.guidance.projections if style.kernel else made.projections
        for number, layer in enumerate(layers):
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.1)
                layer.bias.fill_(0.1)
        losses[name] = [made.step() for _ in range(3)]  # the third follows two updates
    for name in ("no copies", "kernel"):
        for mine, truth in zip(losses[name], losses["reference"], strict=True):
            assert mine == pytest.approx(truth, rel=2e-4), name
    assert losses["reference"][0]["loss_guidance"] > 0


def test_the_step_taken_apart_is_the_engines_step_and_its_parts_add_up(config, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(step_parts.Clock, "now", lambda self: float(next(ticks)))
    whole, split = ours.Ours(config), ours.Ours(config)
    apart, clock = step_parts.TakenApart(split), step_parts.Clock(CPU)
    apart.batches = split.parts.train_loader.epoch(0)
    apart.epoch = 0
    whole.open()
    for _ in range(2):
        whole.step()
        clock.start()
        apart.step(clock)
        assert apart.out.loss.grad_fn is None, "no graph of one step lies beside the next one's"
    parts = clock.read()
    begin, end = clock.marks[0][1], clock.marks[-1][1]
    assert sum(parts.values()) == pytest.approx(1e3 * (end - begin))
    assert all(parts[name] > 0 for name in step_parts.PARTS)
    theirs = dict(split.parts.unit.named_parameters())
    for name, parameter in whole.parts.unit.named_parameters():
        torch.testing.assert_close(theirs[name], parameter, msg=name)


def test_the_cpus_ladder_measures_every_rung_against_its_foot(bench, monkeypatch):
    taken = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def step(self):
            taken.append(self.name)

        open = close = lambda self: None

    monkeypatch.setattr(cpu_ladder, "reference", lambda _, batch, **style: Fake(tuple(style.values())))
    monkeypatch.setattr(cpu_ladder, "made", lambda _, batch, overrides: lambda: Fake(overrides))
    before, ticks = len(bench.rows), iter(range(10_000))
    bench.begin("cpu", HANG_S)
    cpu_ladder.ladder(bench, lambda: float(next(ticks)), {"clock": "ticks"})
    rows = bench.rows[before:]
    assert [made.provider for made in rows] == [*cpu_ladder.STYLES, *cpu_ladder.FORMS]
    assert all(made.ratio == 1 and made.batch == 32 and made.extra["clock"] == "ticks" for made in rows)
    assert taken == 4 * list(dict.fromkeys(taken)) and len(set(taken)) == len(rows), "in turns, no rung twice"
    for overrides in cpu_ladder.FORMS.values():
        assert ours.config_of(bench, "deit_tiny", 3, *overrides).engine.precision != "auto"
    del bench.rows[before:]


def test_a_speed_run_goes_on_after_its_slice(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "toy.yaml"
    speedrun_config = config.replace({"run.root": str(tmp_path / "runs"), "run.name": "toy"})
    save_config(speedrun_config, path)
    arguments = [str(path), f"--out={tmp_path / 'out'}", "data.holdout=0", "optim.global_batch_size=128"]
    arguments += ["optim.epochs=1", "teacher.overrides.optim.epochs=1", "log.tensorboard=false"]
    arguments += ["teacher.recipe=quickstart_teacher", "teacher.overrides.optim.global_batch_size=256"]
    before = signal.getsignal(signal.SIGTERM)
    try:
        monkeypatch.setattr("sys.argv", ["speedrun.py", *arguments, "--slice-s=0.001"])
        with pytest.raises(speedrun.Stopped):
            speedrun.main()
        monkeypatch.setattr("sys.argv", ["speedrun.py", *arguments])
        assert speedrun.main() == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    result = json.loads((tmp_path / "out" / "speedrun-toy-batch-seed1.json").read_text())
    seconds = result["seconds"]
    assert result["reached"] is False and result["target"] == 77.29 and result["seed"] == 1
    assert seconds["student, all"] == pytest.approx(
        seconds["student, training steps"] + seconds["student, evaluations and saves"], abs=0.02
    )
    log = [json.loads(line) for line in (tmp_path / "out" / "speedrun-toy-batch-seed1.jsonl").read_text().splitlines()]
    assert {line["run"] for line in log} == {"student", "teacher"}


def test_readme_repeats_the_results_file_that_it_names():
    text = report.README.read_text(encoding="utf-8")
    name = report.named_file(text, "benchmarks")
    section = report.readme_section(report.load(ROOT / name), name)
    assert report.fill(text, "benchmarks", name, section) == text, f"fastlg bench --readme {name} would change README"
    name = report.named_file(text, "gpu")
    section = report.gpu_section(report.load(ROOT / name), name)
    assert report.fill(text, "gpu", name, section) == text, f"fastlg bench --readme {name} would change README"
    name = report.named_file(text, "quickstart")
    section = report.quickstart_section(json.loads((ROOT / name).read_text()), name)
    assert report.fill(text, "quickstart", name, section) == text, f"fastlg bench --readme {name} would change README"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_results_in_the_repository_name_their_commit_and_their_steps_add_up(path):
    content = json.loads(path.read_text())
    rows = content["rows"] if isinstance(content, dict) and "rows" in content else content
    rows = list(rows.values()) if isinstance(rows, dict) and "target" not in rows else rows
    for made in rows if isinstance(rows, list) else [rows]:
        assert made["commit"] and made["device"] and made["versions"]["torch"]
        if parts := made.get("extra", {}).get("breakdown_ms"):
            assert sum(parts.values()) == pytest.approx(made["median_ms"], rel=0.05), made["provider"]
