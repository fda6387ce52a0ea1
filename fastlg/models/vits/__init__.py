"""Transformers that timm lacks, in its manner; importing this package registers them with it."""

from fastlg.models.vits import cvt, pvt, t2t

__all__ = ["cvt", "pvt", "t2t"]
