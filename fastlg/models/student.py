"""Students: timm transformers that also hand out the tokens of their guided blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from torch import Tensor, nn

from fastlg.config.keys import is_object
from fastlg.errors import UserError
from fastlg.models.convolutions import is_convolutional, use_own_convolutions
from fastlg.models.create import create
from fastlg.models.families import Family, Place, family_of, fill_relative_positions, place_of
from fastlg.models.general.own import is_own
from fastlg.models.general.paths import Draws
from fastlg.models.general.walk import general_family, told_by_timm
from fastlg.models.init import as_reference
from fastlg.models.resolution import grid_at, is_blind, prepare, takes_sizes

SMALLEST_IMAGE, LARGEST_IMAGE = 8, 4096  # px, as ModelConfig has them


class Student(nn.Module):
    """A network and the blocks whose tokens a teacher guides.

    ``forward(images [N, 3, S, S]) -> (logits [N, K], tokens)``: per entry of ``blocks`` one tensor [N, L, C], the
    block's output before any later norm, as the model holds it (no copy). L exceeds H * W of the block's grid by the
    prefix tokens, which lead. Without blocks it is the plain model and ``tokens`` is empty. Models without a walk of
    their own (families.py) give what timm's ``forward_intermediates`` lists, mostly stages: tokens, or maps
    [N, C, H, W], whose ``grids`` are their sizes.

    name         a timm name; one of ours that timm is told of: pvt_tiny, t2t_vit_7, t2t_vit_14, cvt_13, those of
                 docs/systems.md; or a user's ``module:function`` (docs/own_model.md)
    blocks       guided blocks, 0-based over all blocks of all stages (over what is listed, for models without a walk),
                 one per teacher stage in the teacher's order
    drop_path    stochastic depth rate, rising over the blocks as the reference code does (``init="timm"``: as timm)
    init         "reference": initial weights, LayerNorm eps and drop path rule of the reference code; "timm": timm's
    model_args   further arguments of the timm model: patch_size, embed_dim, depth, num_heads, ...

    ``bare`` is the plain timm model, whose state dict is timm's; ``model_args`` with the name rebuild it. Of a model
    without a walk: ``is_cnn``, whether most of its weights are those of convolutions; ``undecayed``, ``of_stem``
    and ``of_head``, the weights that its author spares from decay and those of its first and last layers, by their
    names in ``bare``.
    Raises UserError for unknown names, arguments, blocks that do not exist, and image sizes the model cannot take.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        image_size: int,
        blocks: Sequence[int] = (),
        drop_path: float = 0.1,
        init: Literal["reference", "timm"] = "reference",
        model_args: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.name, self.image_size, self.num_classes = name, image_size, num_classes
        own = {"num_classes": num_classes, "image_size": image_size, "drop_path": drop_path}
        self.bare, self.model_args = create(name, **own, model_args=model_args or {})
        if init == "reference" and not is_own(name) and not is_object(name):
            as_reference(self.bare, drop_path)
        fill_relative_positions(self.bare)
        use_own_convolutions(self.bare)
        family = family_of(self.bare)
        self.undecayed = self.of_stem = self.of_head = frozenset()
        is_general = family is None
        self.is_cnn = is_general and is_convolutional(self.bare)
        if is_general:
            family = general_family(self.bare, name, image_size, num_classes)
            self.undecayed, self.of_stem, self.of_head = told_by_timm(self.bare)
        self._walk, self._shapes, self._family = family.walk, family.shapes(self.bare, image_size), family
        if not is_general:  # which is tried on an image
            _expect_classes_of_blocks(self.bare, name, len(self._shapes))
        if any(min(shape.grid) < 1 for shape in self._shapes):
            raise UserError(f"model.image_size {image_size} px is too small for {name}; its last grids would be empty")
        if not family.fits(self.bare, image_size):
            raise UserError(_cut_off(family, self.bare, name, image_size, self.model_args))
        self._place: Place | None = None
        self.draws: Draws | None = None  # of stochastic depth, where all of a step's are made at once
        self.guide(blocks)

    def take_size(self, size: int) -> None:
        """From now on images of ``size`` px are taken too, and ``grids`` are those of that size.

        Raises UserError for models that take one size, and for sizes that leave a border unseen.
        """
        if getattr(self.bare, "takes_any_size", False):
            if not self._family.fits(self.bare, size):
                raise UserError(f"model.resolution: {self.name} leaves out a border of {size} px; use another size")
            self._shapes = self._family.shapes(self.bare, size)
            return
        if not takes_sizes(self.bare):
            raise UserError(
                f"model.resolution: {self.name} takes images of one size; use a vit_*, deit_*, sl_vit_* or dhvt_*"
            )
        if size % math.lcm(*self.bare.patch_embed.patch_size):
            patch = " x ".join(map(str, self.bare.patch_embed.patch_size))
            raise UserError(f"model.resolution: patches of {patch} px leave out a border of {size} px; use a multiple")
        if is_blind(self.bare, size):
            raise UserError(
                f"model.resolution: {self.name} has one token at {size} px, which would see nothing in "
                "locality self-attention; leave that size out"
            )
        prepare(self.bare, size)
        self._shapes = [shape._replace(grid=grid_at(self.bare, size)) for shape in self._shapes]

    def guide(self, blocks: Sequence[int]) -> None:
        """Chooses anew the blocks whose tokens are handed out. Raises UserError for blocks that do not exist."""
        for block in blocks:
            if not 0 <= block < self.depth:
                known = f"its blocks are 0 to {self.depth - 1}"
                raise UserError(f"model.blocks {list(blocks)}: {self.name} has no block {block}; {known}")
        self.blocks = list(blocks)
        self._handed = [*blocks, *([self._place.block] if self._place else [])]
        self._wanted = frozenset(self._handed)

    def localise(self) -> Place:
        """From now on the tokens of a localisation loss are handed out too, behind those of the guided blocks."""
        self._place = place_of(self.bare, self._shapes)
        self.guide(self.blocks)
        return self._place

    def distil(self) -> None:
        """From now on ``forward`` gives a pair of logits in training mode: the class token's, and the distillation
        token's; in evaluation mode their mean. Raises UserError for a student without that token."""
        if getattr(self.bare, "head_dist", None) is None:
            raise UserError(
                f"guidance.logits_token is distillation, but {self.name} has no distillation token; use "
                "guidance.logits_token=class, or one of deit_*_distilled_*, pit_*_distilled_* and levit_*"
            )
        self.bare.set_distilled_training(True)

    @property
    def depth(self) -> int:
        """Number of blocks over all stages."""
        return len(self._shapes)

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(H, W) of each guided block's patch tokens."""
        return [self._shapes[block].grid for block in self.blocks]

    @property
    def dims(self) -> list[int]:
        """Channels of each guided block's tokens."""
        return [self._shapes[block].dim for block in self.blocks]

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        is_drawn = self.training and self.draws is not None
        if is_drawn:
            self.draws.begin(len(images))
        logits, kept = self._walk(self.bare, images, self._wanted)
        if is_drawn:
            self.draws.end()
        return logits, [kept[block] for block in self._handed]


def use_fused_attention(model: nn.Module, is_fused: bool) -> None:
    """Attention by torch's scaled_dot_product_attention where timm's layer offers it, or step by step everywhere."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = is_fused


def guided_blocks(depth: int, stages: int, fraction: float = 1.0) -> list[int]:
    """Blocks by Eq. 8 of the paper, 0-based: stage k of N_C guides block floor((k - 1)(R N_T - 1) / (N_C - 1)).

    depth is N_T, stages N_C, fraction R in (0, 1]. One stage alone guides the first block. Raises UserError where the
    first R * N_T blocks are fewer than the stages.
    """
    reach = Fraction(fraction).limit_denominator(10_000) * depth
    if not 0 < fraction <= 1 or stages < 1 or math.floor(reach) < stages:
        if stages > depth:
            raise UserError(
                f"{stages} stages guide, but the student has {depth} blocks; name {depth} of the teacher's in "
                "teacher.stages, or take a deeper student"
            )
        raise UserError(
            f"model.fraction {fraction} of {depth} blocks leaves no {stages} different blocks to guide; "
            f"use a fraction from {stages}/{depth} to 1, or name model.blocks"
        )
    return [math.floor(stage * (reach - 1) / max(stages - 1, 1)) for stage in range(stages)]


def _expect_classes_of_blocks(model: nn.Module, name: str, depth: int) -> None:
    """Raises UserError for a model without blocks, and for one that tells classes of tokens instead of images."""
    if not depth:
        raise UserError(f"model.args leave {name} without blocks; give it model.args.depth=1 or more")
    if not getattr(model, "global_pool", True):
        raise UserError(
            f"model.args.global_pool is {model.global_pool!r}, so that {name} tells every token's class instead of "
            "the image's; remove it, or use token or avg"
        )


def _cut_off(family: Family, model: nn.Module, name: str, image_size: int, model_args: dict[str, Any]) -> str:
    """Why a size leaves a border of the images unseen, with the nearest sizes that do not."""
    smaller = next((size for size in range(image_size - 1, SMALLEST_IMAGE - 1, -1) if family.fits(model, size)), None)
    larger = next((size for size in range(image_size + 1, LARGEST_IMAGE + 1) if family.fits(model, size)), None)
    near = " or ".join(str(size) for size in (smaller, larger) if size)
    patches = ", or another model.args.patch_size" if "patch_size" in model_args else ""
    return (
        f"model.image_size {image_size} px does not fit {name}, which would leave out the right and lower border of "
        f"every image; set model.image_size={near}{patches}"
    )
