"""Every published number that is known is the row of one config, and no config claims another."""

from __future__ import annotations

import re
from pathlib import Path

from fastlg.commands.reproduce import SYSTEMS, TITLES, rows_of
from fastlg.config import load_config, shipped_configs

IMAGES = ("CIFAR-100", "Flowers-102", "Chaoyang")
LONG = {"T2T-7": "T2T-ViT-7", "PiT": "PiT-Ti", "PVT": "PVT-Ti", "T2T-14": "T2T-ViT-14"}
NUMBER = r"[0-9]+\.[0-9]+"
SERIES = {6: (r"\bR ([0-9./]+) -> ([0-9. ]+)", "R {}"), 7: (r"beta ([0-9./]+) -> ([0-9. ]+)", "beta {}")}
SERIES[9] = (r"teacher ResNet-([0-9/]+) -> ([0-9. ]+)", "ResNet-{}")


def published(text: str) -> dict[tuple[int, str], float]:
    """(table, row) -> top-1, read from the list of facts, which has one table and prose."""
    lines = text[text.index("## 4. Published results") : text.index("Attention distance")].splitlines()
    prose = " ".join(line for line in lines if not line.startswith("|"))
    found: dict[tuple[int, str], str] = {}
    teacher, resnet18 = (re.findall(NUMBER, part) for part in lines[1].split("ResNet-18"))
    for place, images in enumerate(IMAGES):
        found[2, f"{images}: ResNet-56 at 32 px"] = teacher[place]
        found[2, f"{images}: ResNet-18 at 224 px"] = resnet18[place]
    for line in lines:
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("|") and re.search(NUMBER, line):
            for images, cell in zip(IMAGES, cells[1:], strict=True):
                base, guided = re.findall(NUMBER, cell)
                found |= {(2, f"{images}: {cells[0]}"): base, (2, f"{images}: {cells[0]}, guided"): guided}
            found |= dict(zip([(1, cells[0]), (1, f"{cells[0]}, guided")], re.findall(NUMBER, cells[1]), strict=True))
    short = prose[prose.index("100 epochs, CIFAR-100") :]
    for name in ("DeiT-Ti", "T2T-7", "PiT", "PVT"):
        found[1, f"{LONG.get(name, name)}, guided, 100 epochs"] = first(rf"{name} ({NUMBER})", short)
    for name in ("T2T-14", "CvT-13"):
        four = re.search(rf"{name} ({NUMBER}) -> ({NUMBER}) \((?:Flowers )?({NUMBER}) -> ({NUMBER})\)", short).groups()
        rows = [f"{images}{end}" for images in ("CIFAR-100", "Flowers-102") for end in ("", ", guided")]
        found |= {(3, f"{LONG.get(name, name)}, {row}"): top1 for row, top1 in zip(rows, four, strict=True)}
        found[3, f"{LONG.get(name, name)}, CIFAR-100, L_drloc"] = first(rf"L_drloc.*?{name} ({NUMBER})", short)
    for kind in ("soft", "hard"):
        found[4, f"{kind} logits, class token"] = first(rf"{kind} ({NUMBER})", short)
    for number, (pattern, row) in SERIES.items():
        names, values = re.search(pattern, short).groups()
        pairs = zip(names.split("/"), re.findall(NUMBER, values), strict=True)
        found |= {(number, row.format(name)): top1 for name, top1 in pairs}
    found |= {(8, name): first(rf"{name} ({NUMBER})", short) for name in ("attention", "similarity", "linear")}
    found |= {(4, "no distillation"): found[7, "beta 0"], (4, "locality guidance"): found[7, "beta 2.5"]}
    return {key: float(value) for key, value in found.items()}


def first(pattern: str, text: str) -> str:
    return re.search(pattern, text)[1]


def test_configs_hold_every_published_number_that_is_known_and_no_other(shared):
    wanted = published((shared / "method.md").read_text())
    rows = {(number, row.label): row.paper for number in TITLES if number != SYSTEMS for row in rows_of(number, [])}
    assert len(wanted) == 89
    assert {key: top1 for key, top1 in rows.items() if top1 is not None} == wanted
    unknown = sorted(label for (_, label), top1 in rows.items() if top1 is None)
    assert unknown == ["hard logits, distillation token", "soft logits, distillation token"]


def test_a_config_says_what_of_its_row_is_inferred():
    for name, path in shipped_configs().items():
        tables = {row.table for row in load_config(name).paper_rows}
        says = "# Inferred: " in Path(path).read_text()
        if tables == {SYSTEMS}:  # where nothing is inferred, what is not the authors' is told
            says = says or "Not theirs: " in Path(path).read_text() or "published" not in name
            assert says, f"{name} does not say what of it is not its authors'"
        assert says or not tables & {1, 2, 3, 8, 9}, f"{name}: the paper's text was at hand for tables 4 to 7 alone"


def systems_published(folder: Path) -> dict[str, float]:
    """Row -> top-1 of the systems' own recipes, read from the lists of facts about them."""
    dhvt, life, poorvit, small = (
        " ".join((folder / f"{name}.md").read_text().split()) for name in ("dhvt", "life", "poorvit", "spt_lsa")
    )
    tiny, little = re.search(rf"T p4 ({NUMBER}), S p4 ({NUMBER})", dhvt).groups()
    ten, hundred = re.search(rf"DeiT-T-LIFE \([0-9., ]+\) ({NUMBER})/({NUMBER})", life).groups()
    plain = re.search(rf"\| ?ViT|ViT +189.8 +({NUMBER}) +({NUMBER})", small[small.index("model FLOPs") :]).groups()
    both = re.search(rf"SL-ViT +199.2 +({NUMBER}) +({NUMBER})", small).groups()
    of_poorvit = poorvit[poorvit.index("Published CIFAR-10 accuracy") :]
    found = {
        "DHVT-T, CIFAR-100": tiny,
        "DHVT-S, CIFAR-100": little,
        "LIFE, DeiT-Ti, CIFAR-10": ten,
        "LIFE, DeiT-Ti, CIFAR-100": hundred,
        "ViT of SL-ViT, CIFAR-10": plain[0],
        "ViT of SL-ViT, CIFAR-100": plain[1],
        "SL-ViT, CIFAR-10": both[0],
        "SL-ViT, CIFAR-100": both[1],
        "PoorViT, CIFAR-10": first(rf"baseline ({NUMBER})", of_poorvit),
        "PoorViT, low-rank queries, CIFAR-10": first(rf" q ({NUMBER})", of_poorvit),
    }
    return {row: float(top1) for row, top1 in found.items()}


def test_neighbouring_systems_stand_beside_their_published_numbers_alone_and_guided(shared):
    rows = rows_of(SYSTEMS, [])
    theirs = {row.label.replace(": its authors' recipe", ""): row.paper for row in rows if row.paper is not None}
    assert theirs == systems_published(shared / "systems")
    for row in rows:
        name, _, rest = row.label.partition(": ")
        assert (row.config.teacher is not None) == rest.endswith(", guided"), row.label
        images = "CIFAR10" if "CIFAR-10" in rest.split(", ") else "CIFAR100"
        assert row.config.data.source == f"torchvision:{images}", row.label
        if rest.startswith("our recipe"):
            pair = {own.label: own.config for own in rows if own.label.startswith(f"{name}: our recipe")}
            unguided, guided = (pair[f"{name}: our recipe, CIFAR-100, {side}"] for side in ("unguided", "guided"))
            differ = guided.model_dump(exclude={"run", "paper", "teacher"})
            assert differ == unguided.model_dump(exclude={"run", "paper", "teacher"}), name
            base = load_config("cifar100/deit_tiny")
            assert (guided.optim, guided.augment, guided.teacher) == (base.optim, base.augment, base.teacher)
