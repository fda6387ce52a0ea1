"""Single faults on purpose, one at a time, in a copy of the tree: which of them does the suite let pass?

    python tests/mutate.py [WORD ...]

runs the faults whose name holds one of the words (all without any) and prints killed or SURVIVED for each; the exit
status is the number that survived. A fault whose old text is not found exactly once is refused before anything runs:
the code has moved on, and so must the row. Run by hand: a fault takes 10 to 30 seconds.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 600


class Fault(NamedTuple):
    """In ``file``, ``old`` becomes ``new``; ``tests`` (paths below tests/, with pytest options) should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


REACHES = "fastlg/config/test_config_reaches.py"
RECORD, EVALUATION = "fastlg/run/test_run_record.py", "fastlg/run/test_evaluation.py"
SUMS, DURABLE = "fastlg/ranks/test_rank_sums.py", "fastlg/files/test_durable.py"
LOADERS = "fastlg/data/loaders/of_run.py"
PLAIN_ENGINE, RUN = "fastlg/engine/plain.py", "fastlg/run/run.py"
ASSEMBLE, NETWORKS = "fastlg/assemble.py", "fastlg/networks.py"
RESUME, AVERAGE = "fastlg/run/test_resume.py -k lever", "fastlg/engine/test_average.py -k evaluated"
POSITION = "fastlg/run/position.py"
FAULTS = [
    Fault(
        "adamw betas",
        "fastlg/engine/precision.py",
        "lr=lr, betas=config.betas, fused=True",
        "lr=lr, fused=True",
        f"{REACHES} -k adamw",
    ),
    Fault(
        "sgd nesterov",
        "fastlg/engine/precision.py",
        "nesterov=config.momentum > 0",
        "nesterov=False",
        f"{REACHES} -k sgd",
    ),
    Fault(
        "muon momentum",
        "fastlg/engine/precision.py",
        "momentum=config.muon_momentum",
        "momentum=config.momentum",
        f"{REACHES} -k muon",
    ),
    Fault(
        "decay lost",
        "fastlg/models/param_groups.py",
        "param_groups(unit, optim.weight_decay,",
        "param_groups(unit, 0.05,",
        f"{REACHES} -k 'adamw or sgd'",
    ),
    Fault(
        "decay of biases",
        "fastlg/models/param_groups.py",
        '{"params": spared, "weight_decay": 0.0}',
        '{"params": spared, "weight_decay": weight_decay}',
        f"{REACHES} -k adamw",
    ),
    Fault(
        "clip by half",
        PLAIN_ENGINE,
        "clip_grad_norm_(self.unit.parameters(), self.clip_norm)",
        "clip_grad_norm_(self.unit.parameters(), 0.5 * self.clip_norm)",
        f"{REACHES} -k sgd",
    ),
    Fault(
        "clip student alone",
        PLAIN_ENGINE,
        "clip_grad_norm_(self.unit.parameters(), self.clip_norm)",
        "clip_grad_norm_(self.unit.student.parameters(), self.clip_norm)",
        f"{REACHES} -k sgd",
    ),
    Fault(
        "clip not in deepspeed",
        "fastlg/engine/deepspeed_config.py",
        '"gradient_clipping": clip_norm',
        '"gradient_clipping": 0.0',
        f"{REACHES} -k deepspeed",
    ),
    Fault(
        "rate never set",
        "fastlg/train.py",
        "parts.engine.set_learning_rate(learning_rate(epoch))",
        "learning_rate(epoch)",
        f"{REACHES} -k record",
    ),
    Fault(
        "rate of the next epoch",
        "fastlg/train.py",
        "set_learning_rate(learning_rate(epoch))",
        "set_learning_rate(learning_rate(epoch + 1))",
        f"{REACHES} -k record",
    ),
    Fault(
        "warm-up factor lost",
        "fastlg/engine/schedule.py",
        "first = warmup_factor * lr",
        "first = 1e-3 * lr",
        f"{REACHES} -k record",
    ),
    Fault(
        "smoothing lost",
        NETWORKS,
        ", config.drloc, config.optim.label_smoothing",
        ", config.drloc",
        f"{REACHES} -k smoothing",
    ),
    Fault("flips alternate never", "fastlg/data/loaders/plan.py", "bool(epoch % 2)", "False", f"{REACHES} -k alternat"),
    Fault(
        "teacher never rests",
        "fastlg/train.py",
        "ask_teacher(share > 0)",
        "ask_teacher(True)",
        f"{REACHES} -k ance_sch",
    ),
    Fault("share never set", "fastlg/train.py", "        parts.unit.set_share(share)\n", "", f"{REACHES} -k ance_sch"),
    Fault(
        "grids of the full size",
        "fastlg/objective.py",
        "= self.student.grids",
        "= self.guidance.grids",
        f"{REACHES} -k resol",
    ),
    Fault("mean not loaded", PLAIN_ENGINE, "self.average.load_state_dict(state", "str(state", RESUME),
    Fault(
        "mean not evaluated",
        PLAIN_ENGINE,
        "if latest or self.average is None:\n            ",
        "if True:\n            ",
        AVERAGE,
    ),
    Fault("drop_last lost", LOADERS, "        drop_last=optim.drop_last,\n", "", f"{REACHES} -k batch_sizes"),
    Fault(
        "mixup and cutmix swapped",
        ASSEMBLE,
        "mixup=augment.mixup,\n            cutmix=augment.cutmix,",
        "mixup=augment.cutmix,\n            cutmix=augment.mixup,",
        f"{REACHES} -k mixup",
    ),
    Fault(
        "mix probability lost",
        ASSEMBLE,
        "probability=augment.mix_probability",
        "probability=1.0",
        f"{REACHES} -k mix_probability",
    ),
    Fault("crop ratio lost", LOADERS, "        ratio=augment.crop_ratio,\n", "", f"{REACHES} -k crops"),
    Fault(
        "evaluation bicubic",
        "fastlg/data/loaders/plan.py",
        'return self.interpolation if self.train else "bilinear"',
        "return self.interpolation",
        EVALUATION,
    ),
    Fault("std of the default", ASSEMBLE, "            std=augment.std,\n", "", f"{REACHES} -k mean_and_std"),
    Fault("erase lost", ASSEMBLE, "            erase=augment.erase,\n", "", f"{REACHES} -k erase"),
    Fault(
        "stages in order of depth",
        "fastlg/teacher/online.py",
        "self.stages, self.dims = tuple(stages),",
        "self.stages, self.dims = tuple(sorted(stages)),",
        f"{REACHES} -k losses",
    ),
    Fault(
        "reduction lost",
        "fastlg/objective.py",
        "                reduction=config.reduction,\n",
        "",
        f"{REACHES} -k losses",
    ),
    Fault(
        "temperature lost",
        "fastlg/objective.py",
        "self.config.logits, self.config.temperature)",
        "self.config.logits)",
        f"{REACHES} -k losses",
    ),
    Fault(
        "fraction lost",
        "fastlg/models/build.py",
        "guided_blocks(student.depth, len(places), config.fraction)",
        "guided_blocks(student.depth, len(places))",
        f"{REACHES} -k fraction",
    ),
    Fault(
        "timeout lost",
        "fastlg/train.py",
        "timeout_s=config.engine.timeout_s",
        "timeout_s=600.0",
        f"{REACHES} -k timeout",
    ),
    Fault("replay lost", ASSEMBLE, "        replay=config.teacher.cache_replay,\n", "", f"{REACHES} -k cache_settings"),
    Fault("evaluation in training mode", "fastlg/run/evaluate.py", "    parts.unit.eval()\n", "", EVALUATION),
    Fault(
        "evaluation augments",
        "fastlg/run/evaluate.py",
        "views(batch, 0, train=False).student\n        meter",
        "views(batch, 0).student\n        meter",
        EVALUATION,
    ),
    Fault("evaluation stays in eval", "fastlg/run/evaluate.py", "    parts.unit.train()\n", "", EVALUATION),
    Fault("top-5 is top-1", "fastlg/run/metrics.py", "ranked.any(1).sum()", "ranked[:, 0].sum()", EVALUATION),
    Fault(
        "best on equal",
        RUN,
        "best = found.top1 > position.top1_best",
        "best = found.top1 >= position.top1_best",
        RECORD,
    ),
    Fault(
        "best forgotten",
        POSITION,
        'self.last = Accuracy(*state["last"])',
        'self.top1_best, self.last = -1.0, Accuracy(*state["last"])',
        RECORD,
    ),
    Fault(
        "last forgotten",
        RUN,
        "found, max(position.top1_best, found.top1)",
        "found, found.top1",
        RECORD,
    ),
    Fault("other images resumed", "fastlg/run/folder.py", 'if state.get("data") != fingerprints:', "if False:", RECORD),
    Fault("seed without step", RUN, 'f"{seed} {step} {rank}"', 'f"{seed} {rank}"', RECORD),
    Fault("seed without rank", RUN, "self.step, ranks.rank()))", "self.step, 0))", RECORD),
    Fault("meter not resumed", POSITION, '    meter.load_state_dict(state["meter"])\n', "", RECORD),
    Fault(
        "teacher by train split alone",
        "fastlg/data/stores.py",
        "return [store.fingerprint for store in self.splits]",
        "return [self.train.fingerprint]",
        RECORD,
    ),
    Fault(
        "teacher without seed",
        "fastlg/teacher/recipe.py",
        "[shaping, recipe.run.seed, fingerprints]",
        "[shaping, fingerprints]",
        RECORD,
    ),
    Fault(
        "no fsync",
        "fastlg/files/atomic.py",
        "        sync(partial)\n",
        "",
        DURABLE,
    ),
    Fault(
        "arrays not synced", "fastlg/data/store/make_split.py", '        sync(folder / f"{name}.npy")\n', "", DURABLE
    ),
    Fault(
        "cache chunks not synced",
        "fastlg/teacher/cache/write.py",
        "                os.fsync(file.fileno())\n",
        "",
        DURABLE,
    ),
    Fault(
        "student norms per rank",
        NETWORKS,
        "unit = with_synced_norms(unit).to(device) if ranks.world_size() > 1 else unit.to(device)",
        "unit = unit.to(device)",
        SUMS,
    ),
    Fault(
        "accuracy of one rank",
        "fastlg/run/metrics.py",
        "top1, top5, loss, count = ranks.total(self.sums).tolist()",
        "top1, top5, loss, count = self.sums.tolist()",
        SUMS,
    ),
    Fault(
        "share of the global batch",
        PLAIN_ENGINE,
        "share = len(part[0]) * ranks.world_size() / total",
        "share = 1",
        SUMS,
    ),
    Fault(
        "no momentum of momentum",
        "fastlg/engine/update/muon.py",
        "torch._foreach_lerp(grads, buffers, self.momentum)",
        "buffers",
        "fastlg/engine/test_muon.py",
    ),
    Fault(
        "cosine by hand",
        "fastlg/engine/schedule.py",
        "math.cos(math.pi * passed / length)",
        "math.cos(math.pi * passed / (length - 1))",
        "fastlg/engine/test_schedule.py",
    ),
    Fault(
        "the test split chooses",
        "fastlg/run/evaluate.py",
        "parts.test_loader if parts.val_loader is None else parts.val_loader",
        "parts.test_loader",
        "fastlg/run/test_validation_split.py",
    ),
    Fault(
        "validation images are trained on",
        "fastlg/data/sources/choose.py",
        'for split, own in zip(("train", VAL), rows, strict=True):',
        "for split, own in zip((VAL,), rows[1:], strict=True):",
        "fastlg/run/test_validation_split.py",
    ),
    Fault(
        "verdict without seeds",
        "fastlg/commands/many/evidence.py",
        "return self.p_images < LEVEL and (self.p_seeds is None or self.p_seeds < LEVEL)",
        "return self.p_images < LEVEL",
        "fastlg/commands/test_evidence.py",
    ),
    Fault(
        "teacher sees the student's colours",
        "fastlg/models/general/teaching.py",
        "return teacher if same else Renormalised(teacher, own, views)",
        "return teacher",
        "fastlg/models/general/test_teaching.py",
    ),
    Fault(
        "prefix tokens in a teacher's map",
        "fastlg/models/general/teaching.py",
        "feature[:, feature.shape[1] - grid[0] * grid[1] :]",
        "feature[:, : grid[0] * grid[1]]",
        "fastlg/models/general/test_teaching.py",
    ),
    Fault(
        "SIGHUP below nohup",
        "fastlg/errors.py",
        "if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN",
        "",
        "fastlg/run/test_resume.py -k terminal",
    ),
    Fault(
        "exports of another normalisation",
        "fastlg/run/trained/exports.py",
        'augment = {"mean": about["mean"], "std": about["std"]}',
        "augment = {}",
        "fastlg/commands/test_hand_on.py -k snippet",
    ),
    Fault(
        "LIFE's scales side by side",
        "fastlg/models/systems/life.py",
        "third = self.scale3(second, grid, self.prefix)",
        "third = self.scale3(first, grid, self.prefix)",
        "fastlg/models/systems/test_life.py -k vit_with_life",
    ),
    Fault(
        "a table of positions that trains",
        "fastlg/models/systems/poorvit.py",
        "requires_grad=not sin_pos",
        "requires_grad=True",
        "fastlg/models/systems/test_poorvit.py -k sin_cos",
    ),
    Fault(
        "whitening of single channels",
        "fastlg/models/systems/whitening.py",
        "permute(0, 2, 3, 1, 4, 5).flatten(3)",
        "permute(0, 2, 3, 4, 5, 1).flatten(3)",
        "fastlg/models/systems/test_poorvit.py -k whitening_rows",
    ),
    Fault(
        "a mimetic start as ported",
        "fastlg/models/systems/structured.py",
        "*, transposed: bool = True",
        "*, transposed: bool = False",
        "fastlg/models/systems/test_structured.py -k mimetic_weights",
    ),
    Fault(
        "a start beside a checkpoint",
        ASSEMBLE,
        "    if begins:\n        begin(",
        "    if True:\n        begin(",
        "fastlg/models/systems/test_structured.py -k function_of",
    ),
    Fault(
        "dense rollout, last block first",
        "fastlg/analysis/dense.py",
        "matrix.double() @ product + product",
        "product @ matrix.double() + product",
        "fastlg/analysis/test_dense.py -k definition",
    ),
]


def refusals(faults: list[Fault]) -> list[str]:
    """One line for every fault that does not fit the tree."""
    counts = {fault.name: (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) for fault in faults}
    lines = [
        f"{fault.name}: its old text is {counts[fault.name]} times in {fault.file}"
        for fault in faults
        if counts[fault.name] != 1
    ]
    return lines + [
        f"{fault.name}: no {fault.tests.split()[0]}"
        for fault in faults
        if not (ROOT / "tests" / fault.tests.split()[0]).is_file()
    ]


def survives(fault: Fault, tree: Path) -> bool:
    """Whether the fault's tests pass with it in ``tree``, which is left as it was."""
    path = tree / fault.file
    right = path.read_text(encoding="utf-8")
    path.write_text(right.replace(fault.old, fault.new), encoding="utf-8")
    first, *options = shlex.split(fault.tests)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{first}", *options]
    paths = os.pathsep.join([str(tree), str(tree / "kernels" / "torch-ext")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(right, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise SystemExit(
            f"{fault.name}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.returncode == 0


def main(words: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    if refused := refusals(FAULTS):
        raise SystemExit("\n".join(refused))
    survived = []
    with tempfile.TemporaryDirectory(prefix="fastlg-mutants-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "build"))
        for fault in chosen:
            survived += [fault.name] if survives(fault, tree) else []
            print(f"{'SURVIVED' if fault.name in survived else 'killed  '}  {fault.name}  ({fault.file})", flush=True)
    print(f"{len(chosen) - len(survived)} killed, {len(survived)} survived")
    return len(survived)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
