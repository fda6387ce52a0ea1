"""Students of neighbouring systems, in timm's manner; importing this package registers them with it."""

from fastlg.models.systems import dhvt, fcvit, life, poorvit, spt_lsa

__all__ = ["dhvt", "fcvit", "life", "poorvit", "spt_lsa"]
