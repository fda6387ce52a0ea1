"""Transformers that timm lacks, in its manner; importing this package registers them with it."""
