"""A small cached run: stores, an untrained ResNet-20 as teacher, and the job that fills a cache."""

from __future__ import annotations

import torch

from fastlg.assemble import assemble
from fastlg.config import load_config
from fastlg.data.stores import open_stores
from fastlg.features import build_cache, plan_cache
from fastlg.models.resnet_cifar import resnet20
from fastlg.teacher.cache.read import open_cache

PLAIN = ["augment.rand_augment=null", "augment.erase=0", "teacher.mode=auto", "teacher.cache_dtype=fp32"]
FIXED = [*PLAIN, "augment.crop_scale=[1,1]", "augment.crop_ratio=[1,1]"]
RUNNING = ["teacher.norm_stats=running"]


def teacher(seed: int = 0):
    """Running statistics as if it had been trained: those of noise, not 0 and 1."""
    torch.manual_seed(seed)
    model = resnet20(3)
    model.train()(torch.randn(32, 3, 16, 16))
    return model.eval()


def job_of(*overrides: str, model=None):
    """(config, stores, job) of student.yaml in the working folder."""
    config = load_config("student.yaml", list(overrides))
    stores = open_stores(config.data)
    return config, stores, plan_cache(config, stores, model or teacher(), 16)


def built(*overrides: str, model=None):
    """(config, stores, opened cache)."""
    config, stores, job = job_of(*overrides, model=model)
    build_cache(job, config, stores)
    return config, stores, open_cache(job.path, job.fingerprint)


def parts_of(config, stores, features=None, model=None):
    parts = assemble(config, stores, model or teacher(), 16, features)
    parts.unit.train()
    return parts
