"""Every neighbouring system at its published size: a few guided steps on one batch, as students.py takes them.

    fastlg bench systems --set data.source=FOLDER

``extra.losses`` holds the loss before each step; one that is not finite, or does not fall, fails the benchmark.
"""

from __future__ import annotations

from benchmarks.cases.training.students import take_steps
from benchmarks.harness.bench import Bench

GUIDED = "systems/guided"
CASES = [  # (label, config, overrides)
    ("DHVT-T, patches of 4 px", f"{GUIDED}/dhvt_tiny", ()),
    ("DHVT-T, patches of 2 px", f"{GUIDED}/dhvt_tiny", ("model.name=dhvt_tiny_cifar_patch2",)),
    ("DHVT-S, patches of 4 px", f"{GUIDED}/dhvt_tiny", ("model.name=dhvt_small_cifar_patch4",)),
    ("SL-ViT", f"{GUIDED}/sl_vit", ()),
    ("ViT with SPT", f"{GUIDED}/sl_vit", ("model.args.lsa=false",)),
    ("ViT with LSA", f"{GUIDED}/sl_vit", ("model.args.spt=false",)),
    ("PoorViT", f"{GUIDED}/poorvit", ()),
    (
        "PoorViT, low-rank queries, 2 class tokens",
        f"{GUIDED}/poorvit",
        ("model.args={latent_mode: q, num_cls_token: 2}",),
    ),
    ("FCViT-tiny", f"{GUIDED}/fcvit_tiny", ()),
    ("DeiT-Ti with LIFE", f"{GUIDED}/life_tiny", ()),
    ("DeiT-Ti, mimetic start", "cifar100/deit_tiny", ("model.init=mimetic",)),
    ("DHVT-T, 224 px", f"{GUIDED}/dhvt_tiny", ("model.name=dhvt_tiny_domain_patch16", "model.image_size=224")),
]


def rows(bench: Bench) -> None:
    take_steps(bench, CASES)
