"""The findings of one or two students as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastlg.analysis.measure import Findings
from fastlg.errors import printable
from fastlg.run.curves import COLOURS

GREY = "#777777"
HEAT = "inferno"
OVER = "turbo"  # over a grey image
Named = dict[str, Findings]


def draw_distances(found: Named, new_figure):
    """Attention distance against depth: a dot per head, a line through the means of the blocks."""
    found = {name: own for name, own in found.items() if own.blocks}
    deepest = max(len(own.blocks) for own in found.values())
    figure = new_figure(figsize=(max(5.0, 2.5 + 0.45 * deepest), 4), layout="constrained")
    axes = figure.subplots()
    drawn = set()
    for number, ((name, own), colour) in enumerate(zip(found.items(), COLOURS, strict=False)):
        shift = 0.16 * (number - (len(found) - 1) / 2)
        places = [block["block"] + shift for block in own.blocks]
        for place, block in zip(places, own.blocks, strict=True):
            heads = block["heads_px"]
            axes.scatter([place] * len(heads), heads, s=12, color=colour, alpha=0.5, linewidths=0)
        means = [block["distance_px"] for block in own.blocks]
        axes.plot(places, means, color=colour, marker="_", ms=9, gid=_labelled(name, own))
        uniform = tuple(round(block["uniform_px"], 6) for block in own.blocks)
        if uniform not in drawn:
            drawn.add(uniform)
            axes.plot(
                range(len(uniform)), uniform, color=GREY, ls=":", lw=1, gid="attention that is the same everywhere"
            )
    lines = [line for line in axes.lines if not line.get_gid().startswith("attention that")]
    _legend(axes, [*lines, *[line for line in axes.lines if line not in lines][:1]])
    axes.set(xlabel="block", ylabel="attention distance (px)", title="How far each head looks")
    axes.set_xticks(range(deepest))
    axes.set_ylim(bottom=0, top=1.28 * axes.get_ylim()[1])
    _plain(axes)
    return figure


def _labelled(name: str, own: Findings) -> str:
    mean = sum(block["distance"] for block in own.blocks) / len(own.blocks)
    return f"{printable(name)}: {mean:.4f} on Table 5's scale"


def _legend(axes, lines: Sequence) -> None:
    """As run/curves.py does: a legend leaves out labels that begin with "_"."""
    legend = axes.legend(lines, [str(number) for number in range(len(lines))], frameon=False, loc="upper left")
    for text, line in zip(legend.get_texts(), lines, strict=True):
        text.set_text(line.get_gid())


def _plain(axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_similarity(found: Named, guided: dict[str, list[tuple[int, int]]], new_figure):
    """CKA of blocks (across) and the teacher's stages (up), a panel per student; ``guided`` (block, stage) framed."""
    found = {name: own for name, own in found.items() if own.cka is not None}
    deepest = max(len(own.cka) for own in found.values())
    size = (max(5.0, 2.2 + 0.55 * deepest), 0.6 + 1.9 * len(found))
    figure = new_figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axes, (name, own) in zip(panels, found.items(), strict=True):
        values = np.array([[np.nan if value is None else value for value in row] for row in own.cka]).T
        image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower")
        for stage, row in enumerate(values):
            for block, value in enumerate(row):
                shade = "white" if not value > 0.6 else "black"
                axes.text(block, stage, f"{value:.2f}", ha="center", va="center", color=shade, fontsize=8)
        for block, stage in guided.get(name, []):
            axes.plot(*_frame(block, stage), color="white", lw=2)
        frames = ", guided pairs framed" if guided.get(name) else ""
        axes.set_title(f"{printable(name)}: similarity to the teacher{frames}", fontsize=10)
        axes.set(ylabel="stage", xticks=range(values.shape[1]), yticks=range(values.shape[0]))
    panels[-1].set_xlabel("block")
    figure.colorbar(image, ax=list(panels), label="linear CKA", shrink=0.9)
    return figure


def _frame(block: int, stage: int, half: float = 0.45) -> tuple[list[float], list[float]]:
    corners = ((-half, -half), (half, -half), (half, half), (-half, half), (-half, -half))
    return [block + across for across, _ in corners], [stage + up for _, up in corners]


def draw_attention(found: Named, images: np.ndarray, blocks: Sequence[int], new_figure):
    """What the token in the middle of the image attends to in the given blocks; a row per image, students in turn.

    images  uint8 [N, S, S, 3]. Each map has a scale of its own, from nothing to its largest value.
    """
    found = {name: own for name, own in found.items() if own.middle}
    columns = [(name, own, block) for name, own in found.items() for block in blocks if block < len(own.middle)]
    figure, panels = _sheet(new_figure, len(images), 1 + len(columns))
    side = images.shape[1]
    for row, image in enumerate(images):
        panels[row, 0].imshow(image)
        for column, (_, own, block) in enumerate(columns, start=1):
            values = own.middle[block][row].numpy()
            panels[row, column].imshow(values, cmap=HEAT, vmin=0, extent=(0, side, side, 0), interpolation="nearest")
            _cross(panels[row, column], own.blocks[block], side)
    colours = dict(zip(found, COLOURS, strict=False))
    for column, (name, _, block) in enumerate(columns, start=1):
        title, own_colour = f"block {block}", {}
        if len(found) > 1:
            title, own_colour = f"{_short(name)}\nblock {block}", {"color": colours[name]}
        panels[0, column].set_title(title, fontsize=8, **own_colour)
    figure.suptitle("Attention of the token at the cross, mean over heads", fontsize=10)
    return figure


def _cross(axes, block: dict, side: int) -> None:
    place = [(length // 2 + 0.5) * side / length for length in block["grid"]]
    axes.plot(place[1], place[0], marker="+", ms=7, mew=1.2, color="#56B4E9")


def draw_rollouts(found: Named, images: np.ndarray, new_figure):
    """Attention rollout of each student over the grey image, dense rollout beside it; a row per image."""
    columns = []
    for name, own in found.items():
        columns += [(_short(name), own.rollouts, None)] if own.rollouts is not None else []
        columns += [(f"{_short(name)}\ndense", own.dense.soft, own.dense.labels)] if own.dense is not None else []
    figure, panels = _sheet(new_figure, len(images), 1 + len(columns))
    side = images.shape[1]
    for row, image in enumerate(images):
        panels[row, 0].imshow(image)
        for column, (_, maps, labels) in enumerate(columns, start=1):
            panels[row, column].imshow(image.mean(-1), cmap="gray", vmin=0, vmax=255)
            heat = upsampled(maps[row], side)
            heat = (heat - heat.min()) / max(float(np.ptp(heat)), 1e-12)
            panels[row, column].imshow(heat, cmap=OVER, alpha=0.15 + 0.65 * heat, vmin=0, vmax=1)
            if labels is not None:
                panels[row, column].text(0, 0, _short(labels[row]), fontsize=6, va="bottom")
    for column, (title, _, _) in enumerate(columns, start=1):
        panels[0, column].set_title(title, fontsize=8)
    figure.suptitle("Attention rollout, red: most; dense: of all tokens, for a class", fontsize=9)
    return figure


def upsampled(values: Tensor, side: int) -> np.ndarray:
    """[H, W] -> [side, side], bilinear, for the eye."""
    full = F.interpolate(values[None, None].to(torch.float32), (side, side), mode="bilinear", align_corners=False)
    return full[0, 0].numpy()


def _sheet(new_figure, rows: int, columns: int):
    figure = new_figure(figsize=(1.35 * columns, 1.35 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    panels[0, 0].set_title("image", fontsize=8)
    return figure, panels


def _short(name: str, most: int = 18) -> str:
    text = printable(name)
    return text if len(text) <= most else f"...{text[-most:]}"
