"""Every command on every page is run on tiny images, or, where it wants GPUs, hosts, a network or hours, read by its
program's own parser. A command of which neither can be done fails."""

from __future__ import annotations

import re
import shutil

import pytest
import timm
from made_images import write_images
from page_commands import PAGES, ROOT, commands, read
from safetensors.torch import save_file

from fastlg.config import load_config, shipped_configs

OF_PAGES = [(page, words) for page in PAGES for words in commands(page)]
SEEN = {tuple(words): words for _, words in OF_PAGES}
TRAINED = {"run.name=mine", "run.name=mine2", "model.name=mynets:tiny"}  # whole; other trainings are tried by one step
READ_ONLY = {  # words of fastlg's commands that are read alone -> why
    "--gpus": "wants GPUs, or starts processes: tests/fastlg/ranks",
    "bench": "minutes: tests/test_bench.py",
    "--install-completion": "writes into the home folder",
    "runs/own": "is said to be refused: tests/fastlg/api/test_python_page.py runs that page",
    "models": "builds ten models: test_models_command.py",
    "--corruptions": "tests every image up to 75 times: tests/fastlg/commands/testing",
}
WIDTHS = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
STUDENT = {
    "model.image_size": "32",
    "model.blocks": "[0,1,2]",
    **{f"model.args.{key}": str(value) for key, value in WIDTHS.items()},
}
TEACHER = {
    "teacher.overrides.model.name": "resnet20",
    "teacher.overrides.optim.epochs": "1",
    "teacher.overrides.optim.warmup_epochs": "0",
    "teacher.overrides.optim.global_batch_size": "6",
}
SHORT = {"optim.epochs": "1", "optim.warmup_epochs": "0", "optim.global_batch_size": "6"}
HERE = {"data.source": "path/to/images", "data.workers": "0", "engine.device": "cpu", "log.tensorboard": "false"}


def is_run(words: list[str]) -> bool:
    """Whether a command is run here; one that only names a command of fastlg's, without what it needs, is not."""
    return words[0] == "fastlg" and not set(words) & set(READ_ONLY) and (len(words) > 2 or words[1] in ALONE)


ALONE = ("configs", "doctor")  # commands that need no arguments


def shortened(words: list[str]) -> list[str]:
    """The command on tiny images: what it says itself stays, but for how long it trains."""
    if words[1] not in ("train", "pretrain", "compare", "cache", "sweep", "reproduce") or words[2].startswith("runs/"):
        return words
    given = dict(word.split("=", 1) for word in words if re.match(r"[a-z_.]+=", word))
    is_whole = words[1] == "cache" or TRAINED & set(words)
    more = {**HERE, **SHORT, "run.name": "own" if is_whole else "tried"}
    if "model.name" not in given:
        more |= STUDENT
    if words[2] not in shipped_configs() or load_config(words[2]).teacher is not None:
        more |= TEACHER
    kept = [word for word in words if word.partition("=")[0] not in SHORT]
    kept += [f"{key}={value}" for key, value in more.items() if key not in given or key in SHORT]
    return kept if is_whole or "--dry-run" in kept else [*kept, "--dry-run"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A working folder with what the pages speak of."""
    folder = tmp_path_factory.mktemp("desk")
    for split, seed in (("train", 0), ("test", 1)):
        write_images(folder / "path" / "to" / "images" / split, per_class=4, seed=seed)
    for place in (folder / "other" / "images", folder / "new" / "place"):
        place.parent.mkdir()
        place.symlink_to(folder / "path" / "to" / "images")
    (folder / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "reduced.yaml", folder / "benchmarks")
    shutil.copytree(folder / "path" / "to" / "images" / "test" / "red", folder / "photos")
    page = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")
    (folder / "mynets.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    save_file(timm.create_model("resnet18", num_classes=7).state_dict(), folder / "resnet18.safetensors")
    return folder


def test_every_page_is_looked_at_and_commands_are_found_on_it():
    assert {"README.md", "troubleshooting.md", "teachers.md"} <= {page.name for page in PAGES}
    assert len(OF_PAGES) > 100 and sum(map(is_run, SEEN.values())) > 25
    given = {word for _, words in OF_PAGES for word in words}
    assert set(READ_ONLY) | TRAINED <= given, "what is said of commands that no page shows any more"


@pytest.mark.parametrize("words", [own for own in SEEN.values() if not is_run(own)], ids=" ".join)
def test_a_command_is_read_by_its_programs_own_parser(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read(words)


def test_commands_run_in_the_order_of_the_pages(desk, fastlg, monkeypatch):
    monkeypatch.chdir(desk)
    monkeypatch.setenv("FASTLG_CACHE", str(desk / "cache"))
    to_run = [words for words in SEEN.values() if is_run(words)]
    for words in sorted(to_run, key=lambda words: not TRAINED & set(words)):  # what the others speak of comes first
        read(words)
        status, out, err = fastlg(*shortened(words)[1:])
        assert status == 0 and (out or err), f"{' '.join(words)}: {err}"
        if "run.name=mine2" in words:
            for part in ("unguided", "guided"):
                for place in (part, f"seeds/{part}/seed0"):
                    shutil.copytree(desk / "runs" / "mine2" / part, desk / "runs" / place)
    assert (desk / "exported" / "model.safetensors").is_file() and (desk / "views.png").is_file()


def test_what_no_program_reads_fails(tmp_path):
    for wrong in (
        "fastlg trian quickstart",
        "fastlg train quickstart optim.epoch=3",
        "fastlg eval runs/mine --wich best",
        "make trane",
        "pip install fastlg[onxx]",
        "python benchmarks/recipe.py mini all --image FOLDERS --nosuch",
        "python scripts/nosuch.py",
        "torchrun --nproc-per-node 8 -m fastlg train nosuch",
        "docker run --nosuch fastlg",
        "grep -r fastlg",
    ):
        with pytest.raises((Exception, SystemExit)):
            read(wrong.split())
