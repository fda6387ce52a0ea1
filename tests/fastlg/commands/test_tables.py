"""The table of many runs against figures worked out by hand; the runs themselves are only told of, not trained."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from refusals import refused

from fastlg.commands.many.pool import slots_for
from fastlg.commands.many.rows import folder_name, group_name, seeds_of
from fastlg.commands.reproduce import SYSTEMS, TITLES, natural, overrides_for, rows_of
from fastlg.commands.sweep import split_values
from fastlg.config import load_config, save_config
from fastlg.errors import UserError

# 70, 71, 73: mean 71 1/3, squared deviations 16/9 + 1/9 + 25/9 = 42/9, over n - 1: 7/3, root 1.52753
LAST, MEAN, STD = (70.0, 71.0, 73.0), 71 + 1 / 3, 1.5275252316519468


def pretend(folder, source: str, *overrides: str, last: float, best: float) -> None:
    """A run that is complete, as far as its folder says."""
    config = load_config(source, [*overrides, f"run.name={folder}"])
    config.run_dir.mkdir(parents=True)
    save_config(config.absolute(), config.run_dir / "config.yaml")
    summary = {"top1_last": last, "top1_best": best, "images_per_s": 1.0, "wall_s": 2.0, "epochs": 2, "commit": "abc"}
    summary |= {"device": "a & b", "versions": {"torch": "2.0"}}
    (config.run_dir / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def swept(project):
    """All six runs of a sweep, complete."""
    for weight, bests in (("0", (70.0, 71.0, 74.0)), ("2.5", (80.0, 80.0, 80.0))):
        for seed, (last, best) in enumerate(zip(LAST, bests, strict=True)):
            values = (f"guidance.weight={weight}", f"run.seed={seed}")
            pretend(f"student-sweep/guidance.weight={weight}/seed{seed}", "student.yaml", *values, last=last, best=best)
    return project / "runs" / "student-sweep"


SWEEP = ("sweep", "student.yaml", "guidance.weight=0,2.5", "run.seed=0,1,2")


def test_mean_and_spread_are_those_worked_out_by_hand_in_every_form(swept, fastlg):
    status, out, err = fastlg(*SWEEP)
    assert status == 0, err
    content = json.loads((swept / "guidance.weight.json").read_text())
    first, second = content["rows"]
    assert first["guidance.weight"] == "0" and first["top1_last"]["values"] == list(LAST)
    assert first["top1_last"]["mean"] == pytest.approx(MEAN) and first["top1_last"]["std"] == pytest.approx(STD)
    assert (first["top1_last"]["low"], first["top1_last"]["high"]) == (70, 73)
    assert second["top1_best"] == {"mean": 80, "std": 0, "low": 80, "high": 80, "values": [80, 80, 80]}
    assert [run["seed"] for run in first["runs"]] == content["seeds"] == [0, 1, 2]

    lines = [line for line in (swept / "guidance.weight.csv").read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    assert float(rows[0]["top1_last_mean"]) == pytest.approx(MEAN) and float(rows[1]["top1_best_std"]) == 0
    assert (rows[0]["guidance.weight"], rows[0]["seeds_done"], rows[0]["seeds"], rows[0]["paper"]) == (
        "0",
        "3",
        "3",
        "",
    )

    assert "| 0 | 71.33 ± 1.53 | 71.67 ± 2.08 | 3 of 3 |" in (swept / "guidance.weight.md").read_text()
    latex = (swept / "guidance.weight.tex").read_text()
    assert r"0 & 71.33 $\pm$ 1.53 & 71.67 $\pm$ 2.08 & 3 of 3 \\" in latex and "last epoch \\%" in latex
    body = [line for line in latex.splitlines() if not line.startswith("%")]
    assert body[0] == r"\begin{tabular}{lrrr}" and body[-1] == r"\end{tabular}"
    for text in (
        "71.33 ± 1.53",
        "80.00 ± 0.00",
        "seeds 0, 1, 2",
        "overrides: none",
        "of the test split, as in the paper",
    ):
        assert text in out


def test_a_single_seed_has_no_spread(swept, fastlg):
    status, out, err = fastlg("sweep", "student.yaml", "guidance.weight=0,2.5", "run.seed=1")
    assert status == 0 and "±" not in out and "71.00" in out, err
    assert json.loads((swept / "guidance.weight.json").read_text())["rows"][0]["top1_last"]["std"] is None


def test_a_dry_run_says_what_is_done_and_what_is_left_to_train(swept, project, fastlg):
    status, out, err = fastlg("sweep", "student.yaml", "guidance.weight=0,1", "run.seed=0,1", "--dry-run")
    assert status == 0, err
    lines = [line.strip() for line in out.splitlines()]
    assert sum(line.startswith("guidance.weight=0, seed") and "done" in line for line in lines) == 2
    assert sum(line.startswith("guidance.weight=1, seed") and "2 epochs, to train" in line for line in lines) == 2
    assert sum("teacher resnet20" in line and "1 epochs" in line for line in lines) == 2  # one per seed, for both rows
    assert "4 runs, 4 epochs left; 2 teachers, 2 epochs" in out
    assert not (swept / "guidance.weight=1").exists() and not list(swept.glob("*.json"))


def test_paper_and_measured_stand_side_by_side_and_overrides_in_the_header(project, fastlg):
    name = "tables/table8/attention"
    pretend(f"mine/{name}/seed1", name, "optim.epochs=2", "paper=null", last=40.0, best=41.5)
    arguments = ("reproduce", "Table 8", "optim.epochs=2", "run.name=mine", "--rows", "attention")
    status, out, err = fastlg(*arguments)
    assert status == 0, err
    markdown = (project / "runs" / "mine" / "table8-attention.md").read_text()
    assert "| attention | 73.51 | 40.00 | 41.50 | 1 of 1 |" in markdown
    assert "overrides: optim.epochs=2 (what the paper trained is without them)" in out
    assert "a & b, torch 2.0, commit abc" in out
    (row,) = json.loads((project / "runs" / "mine" / "table8-attention.json").read_text())["rows"]
    assert (row["row"], row["paper"], row["config"]) == ("attention", 73.51, name)


def test_rows_that_overrides_make_alike_are_one_run_and_the_table_says_so(project, fastlg):
    pretend("mine/tables/table7/beta_1/seed1", "tables/table7/beta_1", "guidance.weight=9", last=50.0, best=50.0)
    status, out, err = fastlg("reproduce", "table7", "guidance.weight=9", "run.name=mine", "--rows", "beta 1")
    assert status == 0, err
    assert "same     beta 1.5: with these overrides the same run as beta 1" in out
    assert not (project / "runs" / "mine" / "tables" / "table7" / "beta_1.5").exists()


PUBLISHED = {  # a few of the paper's numbers, by row
    1: {"DeiT-Ti": 65.08, "DeiT-Ti, guided": 78.15, "PVT-Ti, guided, 100 epochs": 76.20},
    2: {"Flowers-102: PVT-Ti, guided": 70.61, "Chaoyang: PVT-Ti": 73.68, "Flowers-102: ResNet-56 at 32 px": 59.83},
    3: {"T2T-ViT-14, Flowers-102": 31.73, "CvT-13, CIFAR-100, guided": 76.55},
    4: {"soft logits, class token": 66.92, "hard logits, class token": 73.25, "hard logits, distillation token": None},
    6: {"R 0.25": 70.56, "R 0.5": 75.26, "R 0.75": 76.43, "R 1": 77.29},
    7: {"beta 0": 65.08, "beta 0.5": 70.88, "beta 1": 74.91, "beta 1.5": 76.37, "beta 2": 77.0, "beta 3": 77.18},
    8: {"attention": 73.51, "similarity": 67.36, "linear": 77.29},
    9: {"ResNet-20": 72.91, "ResNet-56": 77.29, "ResNet-110": 76.62},
    SYSTEMS: {"SL-ViT: its authors' recipe, CIFAR-100": 76.92, "PoorViT: our recipe, CIFAR-100, guided": None},
}


@pytest.mark.parametrize("number", TITLES)
def test_a_table_holds_the_published_rows_in_the_order_of_their_numbers(number):
    rows = rows_of(number, [])
    found = {row.label: row.paper for row in rows}
    assert len(found) == len(rows) and PUBLISHED[number].items() <= found.items()
    if number in (6, 7, 9):
        numbers = [float(label.replace("-", " ").split()[-1]) for label in found]
        assert numbers == sorted(numbers)


def test_a_row_trains_what_its_name_says():
    by_name = {(number, row.label): row.config for number in TITLES if number != SYSTEMS for row in rows_of(number, [])}
    for beta in (0.5, 1, 1.5, 2, 2.5, 3):
        assert by_name[7, f"beta {beta:g}"].guidance.weight == beta
    assert by_name[7, "beta 0"].teacher is None
    for share in (0.25, 0.5, 0.75, 1):
        own = by_name[6, f"R {share:g}"].model
        assert (own.blocks, own.fraction) == ("auto", share)
    assert by_name[9, "ResNet-110"].teacher.overrides == {"model.name": "resnet110"}
    assert by_name[8, "similarity"].guidance.transform == "similarity"
    for kind in ("soft", "hard"):
        for token in ("class", "distillation"):
            config = by_name[4, f"{kind} logits, {token} token"]
            told = config.guidance
            assert (told.logits, told.logits_token, told.logits_weight, told.weight) == (kind, token, 0.5, 0)
            assert ("distilled" in config.model.name) == (token == "distillation")
    for (number, label), config in by_name.items():
        is_guided = "guided" in label or number in (6, 8, 9) or label.startswith(("beta", "soft", "hard", "locality"))
        assert (config.teacher is not None) == (is_guided and label != "beta 0"), label
        images = "Flowers" if "Flowers" in label else "chaoyang" if "Chaoyang" in label else "CIFAR100"
        assert images in config.data.source
        epochs = 300 if number == 2 or (number == 1 and "100" not in label) else 100
        assert config.optim.epochs == epochs and config.optim.global_batch_size == 128 and config.run.seed == 1


def test_overrides_reach_the_rows_that_they_are_for():
    given = ["optim.epochs=2", "model.image_size=64", "teacher.overrides.optim.epochs=5", "data.source=x"]
    guided, unguided, cnn = (load_config(f"cifar100/{own}") for own in ("deit_tiny", "unguided/deit_tiny", "resnet56"))
    assert overrides_for(guided, given) == given
    assert overrides_for(unguided, given) == [given[0], given[1], given[3]]
    assert overrides_for(cnn, given) == ["optim.epochs=5", "data.source=x"]
    assert overrides_for(cnn, ["teacher.overrides={optim: {epochs: 5}, model.name: resnet20}"]) == [
        "optim.epochs=5",
        'model.name="resnet20"',
    ]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0,1,2.5", ["0", "1", "2.5"]),
        ("[1,2]", ["[1,2]"]),
        ("[1,2],[3,4]", ["[1,2]", "[3,4]"]),
        ("[[1,2],3],auto", ["[[1,2],3]", "auto"]),
        ("{depth: 3, num_heads: 3},{depth: 4}", ["{depth: 3, num_heads: 3}", "{depth: 4}"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("['a,b',c],d", ["['a,b',c]", "d"]),
        ("it's,that's", ["it's", "that's"]),
        ("rand-m9-mstd0.5-inc1,null", ["rand-m9-mstd0.5-inc1", "null"]),
        ("one", ["one"]),
        ("", [""]),
    ],
)
def test_commas_part_values_but_not_in_brackets_or_quotes(text, values):
    assert split_values(text) == values


def test_seeds_are_a_number_or_a_list():
    assert seeds_of(None, 7) == [7] and seeds_of("3", 7) == [7, 8, 9] and seeds_of("0,5,7", 1) == [0, 5, 7]
    assert seeds_of("4,", 1) == [4]
    for text in ("0", "", ",", "one", "1,1", "-1", "1.5", "99999999"):
        with pytest.raises(UserError, match="--seeds"):
            seeds_of(text, 0)


def test_folders_tell_apart_what_differs_and_only_that():
    assert group_name("paper", {"run.root": "x", "log.tensorboard": False, "data.workers": 0}) == "paper"
    assert group_name("paper", {"engine.device": "cpu", "run.seed": 3}) == "paper"
    names = [group_name("paper", own) for own in ({"optim.lr": 1.0}, {"optim.lr": 2.0}, {"data.source": "a"})]
    names.append(group_name("paper", {"engine.precision": "fp32"}))
    assert len({*names, "paper"}) == 5 and names[0] == group_name("paper", {"optim": {"lr": 1.0}})
    assert folder_name("optim.lr=1e-3") == "optim.lr=1e-3"
    strange = [folder_name(text) for text in ("a=[1, 2]", "a=[1,,2]", "a=x/y", "a=" + "9" * 300)]
    assert len(set(strange)) == 4 and all("/" not in name and len(name) < 120 for name in strange)
    assert sorted(["beta 10", "beta 2.5", "beta 2"], key=natural) == ["beta 2", "beta 2.5", "beta 10"]


@pytest.mark.parametrize(
    ("visible", "seen", "jobs", "names"),
    [
        (None, 3, 2, ["0", "1"]),
        (None, 3, 4, "torch sees 3 GPUs"),
        (None, 1, 2, "torch sees 1 GPU, one per run"),
        ("5, GPU-abc,7", 3, 3, ["5", "GPU-abc", "7"]),
        ("3", 1, 2, "torch sees 1 GPU, one per run"),
        ("1,0,99,2", 2, 2, ["1", "0"]),  # CUDA stops at the first name that it does not know
        ("1,0,99,2", 2, 3, "torch sees 2 GPUs"),
        ("0,1,", 2, 2, ["0", "1"]),
        # A process sees one part of a GPU that is cut, the first that is named.
        ("MIG-a/1/0,MIG-b", 1, 2, ["MIG-a/1/0", "MIG-b"]),
        ("MIG-a, MIG-b, MIG-a", 1, 3, "torch sees 2 GPUs"),
        ("MIG-a", 1, 2, "name all parts of the GPU in CUDA_VISIBLE_DEVICES"),
    ],
)  # fmt: skip
def test_each_run_at_once_gets_a_gpu_of_its_own_among_those_that_may_be_seen(monkeypatch, visible, seen, jobs, names):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if isinstance(names, str):
        with pytest.raises(UserError, match=f"--jobs is {jobs}, but .*{names}"):
            slots_for(jobs, "auto")
    else:
        threads = str(8 // jobs)
        assert slots_for(jobs, "cuda") == [{"CUDA_VISIBLE_DEVICES": own, "OMP_NUM_THREADS": threads} for own in names]
    assert slots_for(1, "cuda") == [{}]
    assert slots_for(4, "cpu") == [{"OMP_NUM_THREADS": "2"}] * 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reproduce", "table10"], ["there is no table table10", "table1 (", "table9 ("]),
        (["reproduce", "table5"], ["attention distances", "table7 ("]),
        (["reproduce", "../table1"], ["there is no table"]),
        (["reproduce", "table7", "--rows", "gamma"], ["gamma", "beta 0.5"]),
        (["reproduce", "table7", "--rows", " "], ["--rows is empty", "leave it out"]),
        (["sweep", "student.yaml", "run.seed=0-3"], ["run.seed=0-3", "no seed"]),
        (["reproduce", "table7", "--seeds", "0"], ["--seeds", "no seed"]),
        (["reproduce", "table7", "--seeds", ","], ["--seeds", "no seed"]),
        (["reproduce", "table7", "optim.epoch=3"], ["optim.epoch=3", "optim.epochs"]),
        (["reproduce", "table7", "--jobs", "0"], ["--jobs is 0"]),
        (["reproduce", "table7", "--jobs", "999", "engine.device=cpu"], ["--jobs is 999", "at most"]),
        (["sweep", "student.yaml"], ["nothing to sweep", "guidance.weight=0,1,2.5"]),
        (["sweep", "student.yaml", "optim.lr=0.1", "run.seed=3"], ["nothing to sweep"]),
        (["sweep", "student.yaml", "model.blocks=[0,1,2]"], ["nothing to sweep"]),
        (["sweep", "student.yaml", "run.seed="], ["run.seed=", "no seed"]),
        (["sweep", "student.yaml", "run.seed=,"], ["run.seed=,", "no seed"]),
        (["sweep", "student.yaml", "run.seed=1,1"], ["run.seed=1,1 names seed 1 twice"]),
        (["sweep", "student.yaml", "run.seed=1,x"], ["run.seed=1,x is no list of seeds"]),
        (["reproduce", "table7", "paper.row=x"], ["paper", "leave it out"]),
        (["sweep", "student.yaml", "guidance.wieght=0,1"], ["guidance.wieght=0", "guidance.weight"]),
        (["sweep", "student.yaml", "guidance.weight=0,1", "optim.epoch=3"], ["optim.epoch=3", "optim.epochs"]),
        (["sweep", "student.yaml", "guidance.weight=0,-1"], ["guidance.weight=-1", "at least 0"]),
        (["sweep", "student.yaml", "guidance.weight=1,1.0"], ["weight=1 and", "weight=1.0", "same run"]),
        (["sweep", "student.yaml", "guidance.weight=1,1"], ["same run"]),
        (["sweep", "student.yaml", "guidance.weight=0,,1"], ["empty value"]),
        (["sweep", "student.yaml", "guidance.weight=0,1", "guidance.weight=2"], ["guidance.weight is given twice"]),
        (["sweep", "student.yaml", "run.name=a,b"], ["run.name cannot be swept"]),
        (["sweep", "student.yaml", "log.every_steps=1,2"], ["same run"]),
        (["sweep", "student.yaml", "guidance.weight"], ["section.key=a,b,c"]),
        (["sweep", "nothing.yaml", "guidance.weight=0,1"], ["nothing.yaml"]),
        (["compare", "student.yaml", "--seeds", "0"], ["--seeds", "no seed"]),
        (["compare", "student.yaml", "--seeds", "2", "--gpus", "2"], ["--gpus", "--jobs"]),
        (["compare", "student.yaml", "teacher=null", "--seeds", "2"], ["no teacher"]),
    ],
    ids=lambda value: " ".join(value) if value[0] in ("reproduce", "sweep", "compare") else "",
)
def test_a_mistake_is_one_line_before_anything_is_trained(project, fastlg, arguments, words):
    refused(fastlg(*arguments), *words)
    assert not (project / "runs").exists()


def test_a_list_of_runs_says_which_of_them_cannot_be_built(project, fastlg):
    status, out, err = fastlg("sweep", "student.yaml", "model.image_size=32,30", "engine.device=cuda", "--dry-run")
    assert status == 0, err
    fits, unfit = (next(line for line in out.splitlines() if f"image_size={size}, " in line) for size in (32, 30))
    assert "to train" in fits and "will fail: model.image_size 30 px does not fit" in unfit
    assert "warning  1 of the runs cannot be built" in out


def test_runs_for_a_gpu_are_refused_where_there_is_none(project, fastlg, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    table = ("sweep", "student.yaml", "guidance.weight=0,1", "engine.device=cuda")
    refused(fastlg(*table, "--jobs", "2"), "engine.device is cuda", "no CUDA device")
    assert not (project / "runs").exists() and fastlg(*table, "--dry-run")[0] == 0


@pytest.mark.parametrize("root", ["student.yaml", "/proc/nothing", "/dev/null"])
def test_a_folder_that_cannot_hold_the_table_is_refused_before_anything_is_trained(project, fastlg, root):
    refused(
        fastlg("sweep", "student.yaml", "guidance.weight=0,1", f"run.root={root}"), "cannot write", root, "run.root"
    )


def test_overrides_that_no_number_depends_on_leave_the_comparison_with_the_paper(project, fastlg):
    pretend("paper/tables/table8/attention/seed1", "tables/table8/attention", last=40.0, best=41.5)
    status, out, err = fastlg("reproduce", "table8", "engine.device=cpu", "--rows", "attention")
    assert status == 0 and "overrides: engine.device=cpu\n" in out, (out, err)


def test_a_table_is_made_by_one_process(project, fastlg, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(fastlg("sweep", "student.yaml", "guidance.weight=0,1"), "--jobs")


@pytest.mark.parametrize(
    ("vals", "words"),
    [
        ("0.1", "chosen on the validation split"),
        ("0,0.1", "that of the test split, as in the paper, but where data.val"),
    ],
)
def test_a_table_says_which_split_chose_the_best_epochs(project, fastlg, vals, words):
    status, out, err = fastlg("sweep", "student.yaml", f"data.val={vals}", "optim.lr=1e-3,2e-3", "--dry-run")
    assert status == 0 and f"best epoch: {words}" in out, err
