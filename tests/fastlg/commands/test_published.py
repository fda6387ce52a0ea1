"""Every published number that is known is the row of one config, and no config claims another."""

from __future__ import annotations

import re
from pathlib import Path

from fastlg.commands.reproduce import TITLES, rows_of
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
    rows = {(number, row.label): row.paper for number in TITLES for row in rows_of(number, [])}
    assert len(wanted) == 89
    assert {key: top1 for key, top1 in rows.items() if top1 is not None} == wanted
    unknown = sorted(label for (_, label), top1 in rows.items() if top1 is None)
    assert unknown == ["hard logits, distillation token", "soft logits, distillation token"]


def test_a_config_says_what_of_its_row_is_inferred():
    for name, path in shipped_configs().items():
        tables = {row.table for row in load_config(name).paper_rows}
        says = "# Inferred: " in Path(path).read_text()
        assert says or not tables & {1, 2, 3, 8, 9}, f"{name}: the paper's text was at hand for tables 4 to 7 alone"
