"""The model card of an export: what it is, how good, on what, by which recipe and code; how to classify an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fastlg import __version__
from fastlg.commands.hand_on import backbone
from fastlg.config import Config
from fastlg.config.sections import scheme_of
from fastlg.errors import printable
from fastlg.models import Student
from fastlg.models.general.own import is_own
from fastlg.run.folder import read_summary
from fastlg.run.report import read_metrics

CARD = "README.md"
MOST_NAMES = 20
OURS = ("fastlg.models.vits.", "fastlg.models.systems.")
_HEAD = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- fastlg
---
"""
_SNIPPET = """```python
{imports}import timm
import torch
from PIL import Image

{model}
image = Image.open("image.jpg").convert("RGB")
with torch.inference_mode():
    probabilities = {logits}.softmax(1)[0]
for probability, label in zip(*probabilities.topk({top})):
    print(f"{{names[label]}}: {{100 * probability:.1f}} %")
```
"""
_OF_TIMM = """model = timm.create_model("local-dir:.", pretrained=True).eval()  # this folder
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
names = model.pretrained_cfg["label_names"]
"""
_OF_OWN = """with open("config.json") as file:  # of this folder
    known = json.load(file)
model = {built}.eval()
model.load_state_dict(load_file("model.safetensors"))
transform = timm.data.create_transform(**timm.data.resolve_data_config({{}}, pretrained_cfg=known["pretrained_cfg"]))
names = known["label_names"]
"""


def measured_of(folder: Path, which: str) -> dict[str, Any]:
    """What a run's record says of one of its checkpoints: top1 in percent, count of test images, epoch, provenance; {}
    of a run that is not complete."""
    summary = read_summary(folder)
    if summary is None:
        return {}
    rows = [row for row in read_metrics(folder) if row.get("kind") == "eval"]
    best = max(rows, key=lambda row: row["top1"], default={})
    row = best if which == "best" else (rows or [{}])[-1]
    known = ("commit", "device", "versions", "images_per_s", "wall_s")
    top1 = summary["top1_best" if which == "best" else "top1_last"]
    found = {key: summary[key] for key in known if key in summary}
    if summary.get("best_chosen_on") == "validation":  # whose numbers the rows are; the test split's lie in the summary
        row = {"epoch": row.get("epoch"), "top5": summary.get("top5_last") if which == "last" else None}
    return {**found, "top1": top1, **{key: row[key] for key in ("top5", "count", "epoch") if row.get(key) is not None}}


def model_card(
    student: Student,
    architecture: str,
    class_names: Sequence[str],
    config: Config,
    measured: Mapping[str, Any],
    *,
    maps: backbone.Maps | None = None,
) -> str:
    """The text of README.md; no path of the machine that trained is in it. ``maps``: of a backbone."""
    guided = f", guided by {Path(config.teacher.recipe).stem}" if config.teacher is not None else ""
    facts = {
        "accuracy": _accuracy(config, measured),
        "data": _data(config, class_names),
        "input": f"{student.image_size} x {student.image_size} px, the whole image squashed to the square, bilinear; "
        f"mean {_numbers(config.augment.mean)}, std {_numbers(config.augment.std)}",
        "parameters": f"{sum(weight.numel() for weight in student.bare.parameters()):,}",
        "recipe": _recipe(config),
        "guidance": _guidance(student, config),
        "code": _code(measured),
        "run": f"{config.run.name}, seed {config.run.seed}",
    }
    rows = "".join(f"| {name} | {_cell(text)} |\n" for name, text in facts.items() if text)
    what = "A backbone for detectors and segmenters, as a classifier" if maps is not None else "An image classifier"
    use = f"## Classify an image\n\n{_snippet(student, min(5, len(class_names)))}"
    if maps is not None:
        use = backbone.snippet(
            maps, student.image_size, "import fastlg.models  # tells timm of the model\n" * _is_ours(student.bare)
        )
    made = "`config.json` and `model.safetensors` are timm's" + "." * (not is_own(student.name))
    made += f" in form; the network is `{student.name}`." * is_own(student.name)
    return (
        f"{_HEAD}# {architecture}, {len(class_names)} classes\n\n{what} trained by "
        f"[fastlg](https://arxiv.org/abs/2207.10026){guided}. {made}\n\n"
        f"| | |\n|---|---|\n{rows}\n{use}"
    )


def how_to_load(student: Student, out_dir: Path) -> str:
    """The Python that reads an export back; timm knows the models of fastlg's own once fastlg.models is imported."""
    if is_own(student.name):
        first, built = _own(student)
        read = f"load_file('{out_dir}/model.safetensors')"
        return f"{'; '.join(first)}; model = {built}; model.load_state_dict({read})"
    first = "import fastlg.models; " if _is_ours(student.bare) else ""
    return f"{first}timm.create_model('local-dir:{out_dir}', pretrained=True)"


def _is_ours(bare: nn.Module) -> bool:
    """Whether it is timm's only once fastlg.models is imported: a model that timm lacks, or parts of one."""
    return any(type(module).__module__.startswith(OURS) for module in bare.modules())


def _own(student: Student) -> tuple[list[str], str]:
    """(imports, call) that build a user's own network anew."""
    module, _, function = student.name.partition(":")
    given = "".join(f", {key}={value!r}" for key, value in student.model_args.items())
    imports = [f"from {module} import {function}", "from safetensors.torch import load_file"]
    return imports, f"{function}(num_classes={student.num_classes}{given})"


def _snippet(student: Student, top: int) -> str:
    logits = "model(transform(image).unsqueeze(0))"
    if not is_own(student.name):
        first = "import fastlg.models  # tells timm of the model\n" if _is_ours(student.bare) else ""
        return _SNIPPET.format(imports=first, model=_OF_TIMM, logits=logits, top=top)
    imports, built = _own(student)
    if not hasattr(student.bare, "forward_intermediates"):  # it gives its features too
        logits += "[0]"
    first = "".join(f"{line}\n" for line in ("import json", "", *imports))
    return _SNIPPET.format(imports=first, model=_OF_OWN.format(built=built), logits=logits, top=top)


def _accuracy(config: Config, measured: Mapping[str, Any]) -> str:
    if not measured:
        return "not measured: the run is not complete"
    on = f" on {measured['count']:,} test images" if "count" in measured else " on the test split"
    top5 = f", top-5 {measured['top5']:.2f} %" if "top5" in measured else ""
    after = f", after {measured['epoch']} of {_epochs(config.optim.epochs)}" if "epoch" in measured else ""
    return f"top-1 {measured['top1']:.2f} %{top5}{on}{after}"


def _data(config: Config, class_names: Sequence[str]) -> str:
    named = ", ".join(class_names[:MOST_NAMES]) + (", ..." if len(class_names) > MOST_NAMES else "")
    where = config.data.source if scheme_of(config.data.source) else "images of its owner"
    held = f", {config.data.holdout:g} of them held out for testing" if config.data.holdout else ""
    held += ", the best epoch chosen on a validation split" if config.data.val else ""
    return f"{where}{held}; {len(class_names)} classes: {named}"


def _recipe(config: Config) -> str:
    optim, augment = config.optim, config.augment
    parts = [
        f"{_epochs(optim.epochs)} of batch {optim.global_batch_size}",
        f"{optim.name}, learning rate {optim.lr:g}, weight decay {optim.weight_decay:g}",
        f"{_epochs(optim.warmup_epochs)} of warm-up" if optim.warmup_epochs else "",
        f"RandAugment {augment.rand_augment}" if augment.rand_augment else "",
        f"erasing {augment.erase:g}" if augment.erase else "",
        f"mixup {augment.mixup:g}" if augment.mixup else "",
        f"CutMix {augment.cutmix:g}" if augment.cutmix else "",
        f"label smoothing {optim.label_smoothing:g}" if optim.label_smoothing else "",
        "from earlier weights" if config.model.weights is not None else "from scratch",
    ]
    return "; ".join(part for part in parts if part)


def _guidance(student: Student, config: Config) -> str:
    if config.teacher is None:
        return "none"
    pairs = zip(student.blocks, config.teacher.stages, strict=False)
    blocks = ", ".join(f"block {block} by stage {stage}" for block, stage in pairs)
    return f"{blocks or 'locality guidance'}; weight {config.guidance.weight:g} (arXiv 2207.10026)"


def _code(measured: Mapping[str, Any]) -> str:
    versions = measured.get("versions") if isinstance(measured.get("versions"), dict) else {}
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "timm") if name in versions)
    commit = f" at commit {measured['commit']}" if measured.get("commit") else ""
    device = f", on {measured['device']}" if measured.get("device") else ""
    return f"fastlg {versions.get('fastlg', __version__)}{commit}{f'; {libraries}' if libraries else ''}{device}"


def _epochs(count: int) -> str:
    return f"{count:,} epoch{'s' * (count != 1)}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")
