"""What evaluation measures is what a plain loop over the store measures: no drop path, no augmentation, every image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from reach import parts_of

from fastlg.run.evaluate import evaluate

RANDOM = (
    "teacher=null",
    "engine.device=cpu",
    "engine.precision=fp32",
    "model.init=timm",
    "model.drop_path=0.5",
    "augment.erase=1",
    "augment.flip=1",
    "augment.mixup=1",
    "augment.mean=[0.3,0.4,0.5]",
    "log.eval_batch_size=7",
)


def by_hand(parts) -> tuple[float, float, float, int]:
    """Top-1, top-5, loss and count, image by image: whole, resized by Pillow, normalised, through the timm model."""
    config, store, model = parts.config, parts.stores.test, parts.unit.student.bare.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.augment.mean, config.augment.std))
    hits, near, loss = 0, 0, 0.0
    for i in range(len(store)):
        image = Image.fromarray(store.images(i)).resize((config.model.image_size,) * 2, Image.Resampling.BILINEAR)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*image.size, 3)
        with torch.no_grad():
            logits = model((((pixels.permute(2, 0, 1) / 255) - mean) / std)[None])[0].double()
        label = int(store.labels[i])
        hits += int(logits.argmax()) == label
        near += label in logits.topk(min(5, len(logits))).indices.tolist()
        loss += F.cross_entropy(logits, torch.tensor(label)).item()
    return 100 * hits / len(store), 100 * near / len(store), loss / len(store), len(store)


@pytest.mark.parametrize("loader", ["torch", "resident"])
def test_evaluation_is_a_plain_loop_over_the_store(project, loader):
    parts = parts_of(*RANDOM, f"data.loader={loader}")
    found = evaluate(parts)
    assert all(module.training for module in parts.unit.modules()), "training goes on as it was"
    top1, top5, loss, count = by_hand(parts)
    assert 0 < top1 < 100, "some of both, or a wrong count shows nothing"
    assert found.loss == pytest.approx(loss, rel=2e-4 if loader == "torch" else 1e-2)
    assert (found.top1, found.top5, found.count) == (pytest.approx(top1), pytest.approx(top5), count)
    assert evaluate(parts) == found


def test_running_statistics_are_what_a_cnn_is_measured_with(project):
    options = ("model.name=resnet20", "model.args={}", "model.blocks=auto", "model.drop_path=0", "optim.lr=0.01")
    parts = parts_of(*RANDOM, *options)
    for epoch in range(3):
        for batch in parts.train_loader.epoch(epoch):
            parts.engine.step(parts.views(batch, epoch), batch, len(batch.labels))
    before = {name: value.clone() for name, value in parts.unit.named_buffers()}
    found = evaluate(parts)
    assert all(torch.equal(value, before[name]) for name, value in parts.unit.named_buffers())
    model, store = parts.unit.student.eval(), parts.stores.test
    losses = []
    for batch in parts.test_loader.epoch(0):
        for one in range(len(batch.labels)):  # alone: batch statistics would show
            alone = parts.views(batch._replace(images=batch.images[one : one + 1]), 0, train=False).student
            with torch.no_grad():
                losses.append(F.cross_entropy(model(alone)[0], batch.labels[one : one + 1]).item())
    assert len(losses) == len(store) and found.loss == pytest.approx(sum(losses) / len(store), rel=1e-4)
