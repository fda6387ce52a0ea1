"""A short training of the tiny project by any engine, and its outcome as numbers, in one rank of many, too."""

from __future__ import annotations

from pathlib import Path

import torch
from patience import HANG_S
from torch.utils._python_dispatch import TorchDispatchMode

from fastlg import ranks
from fastlg.assemble import assemble
from fastlg.config import Config, load_config
from fastlg.data.stores import open_stores
from fastlg.models.resnet_cifar import resnet20
from fastlg.run.metrics import Meter
from fastlg.train import batches, begin_epoch

STEPS = 14
PLAIN = ("model.drop_path=0", "augment.rand_augment=null", "engine.device=cpu", "optim.warmup_epochs=0")
DRLOC = ("drloc.weight=0.5", "drloc.warmup_epochs=1", "drloc.hidden=32", "drloc.total_epochs=9")
TWO_RANKS = {
    "plain": (),
    "accumulation": ("engine.micro_batch_size=4",),
    "clipped": ("optim.clip_norm=0.5",),
    **{f"zero{stage}": ("engine.kind=deepspeed", f"engine.zero_stage={stage}") for stage in range(4)},
    "zero1 accumulation": ("engine.zero_stage=1", "engine.micro_batch_size=4"),
    "muon, accumulation": ("optim.name=muon", "engine.micro_batch_size=4"),
    "drloc, accumulation": (*DRLOC, "engine.micro_batch_size=4"),
    "drloc, zero3": (*DRLOC, "engine.zero_stage=3"),
    "muon, zero0": ("optim.name=muon", "engine.kind=deepspeed"),
    "timm's adan, layer decay, zero0": ("optim.name=timm:adan", "optim.layer_decay=0.7", "engine.kind=deepspeed"),
    "layer decay, zero2": ("optim.layer_decay=0.7", "engine.zero_stage=2"),
    "partial last step": ("optim.drop_last=false",),
    "partial last step, zero2, many passes": (
        "optim.drop_last=false",
        "engine.zero_stage=2",
        "engine.micro_batch_size=1",
        "optim.global_batch_size=20",
    ),
}
RISES = ("optim.epochs=5", "model.resolution=[[0, 16], [0.4, 32]]")
TWO_RANKS["rising resolution"] = RISES
FADES = ("optim.epochs=6", "guidance.schedule=linear", "guidance.until=0.5")  # in 14 steps of 4 an epoch it also ends
TWO_RANKS["guidance that ends, averaged weights"] = (*FADES, "optim.ema=0.9")
TWO_RANKS["sharpness, accumulation, clipped"] = (
    "optim.sam_rho=0.5",
    "optim.clip_norm=0.5",
    "engine.micro_batch_size=4",
)
TWO_RANKS["guidance that ends, zero2"] = ("engine.zero_stage=2", *FADES)
BF16 = ("engine.precision=bf16",)
ONE_RANK = {  # DeepSpeed keeps hold of the process group it first saw, so its cases share a process of their own
    "bf16": BF16,
    **{f"zero{stage}": ("engine.kind=deepspeed", f"engine.zero_stage={stage}") for stage in range(4)},
    **{f"zero{stage} bf16": ("engine.kind=deepspeed", f"engine.zero_stage={stage}", *BF16) for stage in range(4)},
    **{
        f"zero{stage} own bf16": ("engine.deepspeed_config=bf16.json", f"engine.zero_stage={stage}", *BF16)
        for stage in (1, 2, 3)
    },
}


def trained(*overrides: str, steps: int = STEPS) -> dict:
    """{"losses": per step, "unit": weights, "optimizer": moments} after ``steps`` updates beside a fixed teacher.

    On a CPU Muon orthogonalises in float32: in bfloat16 a rounding, which every switch may change, is enlarged up to
    500 times in directions without a gradient, and only the losses could be compared.
    """
    config = load_config("student.yaml", [*PLAIN, *overrides])
    torch.manual_seed(9)
    parts = assemble(config, open_stores(config.data), resnet20(3), 16)
    parts.unit.train()
    if config.engine.device == "cpu" and config.optim.name == "muon":
        (getattr(parts.engine, "optimizer", None) or parts.engine.basic).dtype = torch.float32
    return {"losses": losses(parts, config, steps), **parts.engine.state_dict()}


def losses(parts, config: Config, steps: int) -> list[float]:
    """Of each update, over all ranks."""
    parts.engine.set_learning_rate(config.optim.lr)
    seen, epoch, meter = [], 0, Meter(parts.device)
    while True:
        begin_epoch(parts, epoch)
        for step, (views, batch) in enumerate(batches(parts, epoch)):
            meter.update(parts.engine.step(views, batch, parts.step_total(step)), step)
            seen.append(meter.read()[0].loss)
            if len(seen) == steps:
                return seen
        epoch += 1


SYNCING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero"}


class Watch(TorchDispatchMode):
    """``seen``: operations that ask a device for a value."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name in SYNCING:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def train_cases(path: Path) -> None:
    """As the rank that the environment says: the cases for so many ranks, whose first writes outcomes to ``path``."""
    Path("bf16.json").write_text('{"bf16": {"enabled": true}, "train_batch_size": "auto"}')
    with ranks.joined(cuda=False, timeout_s=HANG_S):
        cases = TWO_RANKS if ranks.world_size() == 2 else ONE_RANK
        outcomes = {name: trained(*overrides) for name, overrides in cases.items()}
        if ranks.is_first():
            torch.save(outcomes, path)
