"""A vision transformer at several image sizes: its positions are learned at the largest and resized for the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fastlg.models.systems.spt_lsa import LocalityAttention, MergedPatches, SmallSetViT

Grid = tuple[int, int]


class ManySizes(VisionTransformer):
    """timm's model, whose position embedding [1, P + H * W, C] also serves smaller grids.

    They see it resized as timm's own ``dynamic_img_size`` does (bicubic, antialiased; the P prefix tokens keep theirs),
    but by one matrix product with a constant: the gradient of torch's bicubic resize is summed in any order on CUDA.
    At the full size it computes what VisionTransformer does. ``matrices`` holds the constants by number of tokens.
    """

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patch tokens [N, h * w, C] -> tokens [N, P + h * w, C], as in VisionTransformer."""
        matrix = self.matrices.get(x.shape[1])
        if matrix is None:
            return super()._pos_embed(x)
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        count = self.pos_embed.shape[1] - matrix.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            positions = torch.cat([self.pos_embed[:, :count], (matrix @ self.pos_embed[0, count:])[None]], dim=1)
        if self.no_embed_class:
            return self.pos_drop(torch.cat([*prefix, x + positions], dim=1))
        return self.pos_drop(torch.cat([*prefix, x], dim=1) + positions)


def takes_sizes(model: nn.Module) -> bool:
    """Whether ``model`` can become a ManySizes: a plain ViT or DeiT, or an SL-ViT, with one patch embedding and
    absolute positions."""
    embed = getattr(model, "patch_embed", None)
    kinds = type(model) in (VisionTransformer, ManySizes, SmallSetViT) and type(embed) in (PatchEmbed, MergedPatches)
    return kinds and model.pos_embed is not None and not model.dynamic_img_size


def grid_at(model: VisionTransformer, size: int) -> Grid:
    """(H, W) of the patch tokens of square images of ``size`` px."""
    return tuple(size // side for side in model.patch_embed.patch_size)


def is_blind(model: VisionTransformer, size: int) -> bool:
    """Whether images of ``size`` px make a lone token, in an attention in which no token sees itself."""
    high, wide = grid_at(model, size)
    return high * wide + model.num_prefix_tokens < 2 and any(
        isinstance(module, LocalityAttention) for module in model.modules()
    )


def prepare(model: VisionTransformer, size: int) -> None:
    """Makes ``model`` ready for images of ``size`` px, on the device where it is; its weights and names stay."""
    if type(model) is not ManySizes:
        model.__class__, model.matrices = ManySizes, {}
        model.patch_embed.strict_img_size = False
    full, grid = tuple(model.patch_embed.grid_size), grid_at(model, size)
    if grid != full:
        count = grid[0] * grid[1]
        known = model.matrices.get(count)
        model.matrices[count] = (resize_matrix(full, grid) if known is None else known).to(model.pos_embed.device)


def resize_matrix(old: Grid, new: Grid) -> Tensor:
    """float32 [h * w, H * W]: the bicubic, antialiased resize of an H x W map, which is linear."""
    count = old[0] * old[1]
    each = torch.eye(count).view(count, 1, *old)
    return F.interpolate(each, size=new, mode="bicubic", antialias=True).flatten(1).T.contiguous()
