"""The timm task trains offline: the loss falls, projections move, the student stays a plain timm model."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from integration_cases import BLOCKS, one_process, small_batch, small_vit
from torch import nn

from fastlg.models.resnet_cifar import resnet20


def timm_task(student=None, teacher=None, blocks=BLOCKS, **options):
    from fastlg.integrations.timm_task import LocalityGuidanceTask

    torch.manual_seed(0)
    return LocalityGuidanceTask(student or small_vit(), teacher or resnet20(5), blocks, **options)


def plain_guidance(task, tokens, maps) -> torch.Tensor:
    """Reference formulation of the paper's loss with the task's projections; tokens [N, H*W, C] on square grids."""
    total = 0.0
    for layer, token, target in zip(task.trainable_module.guidance.projections, tokens, maps, strict=True):
        side = round(token.shape[1] ** 0.5)
        projected = F.conv2d(token.mT.unflatten(2, (side, side)), layer.weight[..., None, None], layer.bias)
        size = max(side, target.shape[2])
        projected, target = (F.interpolate(m, (size, size), mode="bilinear") for m in (projected, target))
        total = total + F.mse_loss(projected, target)
    return total


def teacher_maps(task, images) -> list[torch.Tensor]:
    return task.teacher(F.interpolate(images, 32, mode="bilinear", align_corners=False))[1]


def block_outputs(student: nn.Module, images: torch.Tensor) -> dict[int, torch.Tensor]:
    """What every block hands out, by hooks, without the class token."""
    found, handles = {}, []
    for index, block in enumerate(student.blocks):
        handles.append(block.register_forward_hook(lambda _, __, out, index=index: found.update({index: out[:, 1:]})))
    student(images)
    for handle in handles:
        handle.remove()
    return found


def train(task, steps: int = 6, lr: float = 1e-2, size: int = 48) -> list[float]:
    images, targets = small_batch(size)
    optimizer = torch.optim.AdamW(task.get_trainable_module().parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        result = task(images, targets)
        result["loss"].backward()
        optimizer.step()
        losses.append(result["guidance_loss"].item())
    return losses


def test_timm_task_trains_student_and_projections():
    task = timm_task()
    before = {name: value.clone() for name, value in task.named_parameters()}
    losses = train(task)
    assert losses[-1] < 0.9 * losses[0]
    moved = {name for name, value in task.named_parameters() if not torch.equal(value, before[name])}
    assert {name for name in moved if "guidance" in name} == {
        f"trainable_module.guidance.projections.{k}.{kind}" for k in range(3) for kind in ("weight", "bias")
    }
    assert not any(name.startswith("teacher") for name in moved)
    assert any(name.startswith("trainable_module.student.blocks.0") for name in moved)


def test_timm_task_computes_the_loss_it_says():
    task = timm_task(weight=3.0).eval()
    images, targets = small_batch()
    result = task(images, targets)
    student = task.trainable_module.student
    tokens = block_outputs(student, images)
    expected = plain_guidance(task, [tokens[block] for block in BLOCKS], teacher_maps(task, images))
    torch.testing.assert_close(result["guidance_loss"], expected)
    torch.testing.assert_close(result["output"], student(images))
    torch.testing.assert_close(result["loss"], F.cross_entropy(student(images), targets) + 3 * expected)


def test_timm_task_checkpoints_a_plain_student_and_its_projections():
    task = timm_task()
    train(task, 2)
    state = task.get_checkpoint_state()
    small_vit().load_state_dict(state["state_dict"])  # plain timm
    other = timm_task()
    other.load_checkpoint_state(state["state_dict"], state["task_state"])
    for ours, theirs in zip(task.eval().parameters(), other.eval().parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert train(task, 1) == train(other, 1)


def test_timm_task_guides_pyramid_students_with_a_timm_teacher():
    teacher = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2), pretrained=False)
    student = timm.create_model("pvt_v2_b0", num_classes=5, embed_dims=(8, 16, 16, 16), num_heads=(1, 2, 2, 2))
    task = timm_task(student, teacher, blocks=[0, 1], input_size=(3, 64, 64), teacher_size=None)
    losses = train(task, 4, size=64)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "arguments", "dims"),
    [
        ("t2t_vit_7", {"img_size": 48, "embed_dim": 24, "depth": 3, "num_heads": 2}, [24, 24, 24]),
        ("pvt_tiny", {"img_size": 48, "embed_dims": (8, 16, 20, 32), "depths": (1, 1, 1, 1)}, [8, 16, 20]),
        ("cvt_13", {"embed_dims": (8, 12, 24), "depths": (1, 1, 1)}, [8, 12, 24]),
        ("dhvt_tiny_cifar_patch4", {"embed_dim": 24, "depth": 3, "num_heads": 3}, [24, 24, 24]),
    ],
)
def test_timm_task_guides_the_students_that_timm_lacks(name, arguments, dims):
    student = timm.create_model(name, num_classes=5, **arguments)
    task = timm_task(student, blocks=[0, 1, 2])
    assert [layer.in_features for layer in task.trainable_module.guidance.projections] == dims
    assert task.trainable_module.group_matcher()("guidance.projections.0.weight") > 0
    losses = train(task, 4)
    assert losses[-1] < losses[0]


def test_timm_task_keeps_an_average_and_names_what_is_wrong():
    task = timm_task()
    task.setup_ema(decay=0.5)
    train(task, 1)
    task.update_ema()
    assert isinstance(task.get_eval_model(ema=True), type(task.get_eval_model()))
    assert set(task.get_checkpoint_state(ema=True)) == {"state_dict_ema", "task_state_ema"}
    assert "student.pos_embed" in task.trainable_module.no_weight_decay()
    assert task.trainable_module.group_matcher()("guidance.projections.0.weight") > 0
    with pytest.raises(ValueError, match="2 guided blocks, but the teacher gives 3 maps"):
        timm_task(blocks=[0, 1])


def test_timm_task_compiles():
    task = timm_task()
    task.compile(backend="aot_eager")
    losses = train(task, 3)
    assert losses[-1] < losses[0]
    assert set(task.get_task_state()["guidance"]) == set(timm_task().get_task_state()["guidance"])


@pytest.mark.parametrize("size", [64, 40])
def test_timm_task_takes_the_grid_of_the_images_it_is_given(size):
    task = timm_task(small_vit(dynamic_img_size=True)).eval()  # built for 48 px
    images, targets = small_batch(size)
    tokens = block_outputs(task.trainable_module.student, images)
    assert tokens[0].shape[1] == (size // 8) ** 2
    expected = plain_guidance(task, [tokens[block] for block in BLOCKS], teacher_maps(task, images))
    torch.testing.assert_close(task(images, targets)["guidance_loss"], expected)


@pytest.mark.parametrize(
    "given, meant", [([3, 0, 1], [3, 0, 1]), ([-1, 0, -3], [3, 0, 1]), ([2, 0, 2], [2, 0, 2])], ids=str
)
def test_timm_task_pairs_blocks_with_maps_in_the_order_given(given, meant):
    task = timm_task(blocks=given).eval()
    images, targets = small_batch()
    tokens = block_outputs(task.trainable_module.student, images)
    expected = plain_guidance(task, [tokens[block] for block in meant], teacher_maps(task, images))
    loss = task(images, targets)["guidance_loss"]
    torch.testing.assert_close(loss, expected)
    ours, plain = (
        torch.autograd.grad(value, task.trainable_module.student.patch_embed.proj.weight) for value in (loss, expected)
    )
    torch.testing.assert_close(ours, plain)


def test_timm_task_pairs_stages_of_a_pyramid_in_the_order_given():
    student = timm.create_model("pvt_v2_b0", num_classes=5, embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4))
    task = timm_task(student, blocks=[3, 0, -2], input_size=(3, 64, 64))
    assert [layer.in_features for layer in task.trainable_module.guidance.projections] == [32, 8, 24]
    images, targets = small_batch(64)
    task(images, targets)["loss"].backward()


def test_timm_task_lives_where_the_student_does():
    task = timm_task(small_vit().double(), resnet20(5))
    assert {parameter.dtype for parameter in task.parameters()} == {torch.float64} and task.dtype == torch.float64
    images, targets = small_batch()
    task(images.double(), targets)["loss"].backward()
    with torch.device("meta"):
        assert timm_task().device.type == "meta"
    assert timm_task(dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"in_chans": 1}])
def test_timm_task_asks_the_student_for_its_size_of_images(options):
    teacher = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3), pretrained=False, **options)
    task = timm_task(small_vit(**options), teacher)
    images, targets = small_batch()
    channels = options.get("in_chans", 3)
    task(images[:, :channels], targets)["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in task.trainable_module.guidance.parameters())


class NoMaps(nn.Module):
    def __init__(self, *out):
        super().__init__()
        self.out = out

    def forward(self, images):
        return self.out[0] if len(self.out) == 1 else self.out


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"teacher": NoMaps(torch.ones(1, 5))}, ValueError, r"teacher gives a tensor \(1, 5\), not stage maps"),
        ({"teacher": NoMaps({"a": 1})}, ValueError, "teacher gives a dict without them.*features_only=True"),
        ({"teacher": NoMaps(torch.ones(1, 2), torch.ones(1, 2))}, ValueError, "a tuple without them, not stage maps"),
        ({"student": nn.Sequential(nn.Conv2d(3, 4, 3))}, TypeError, "Sequential has no forward_intermediates; use a"),
        ({"blocks": 3}, ValueError, r"blocks is 3; give a list of block numbers"),
        ({"blocks": []}, ValueError, r"blocks is \[\]; give a list of block numbers"),
        ({"blocks": [0, 1, 4]}, ValueError, "blocks holds 4, but the student has 4; use 0 to 3"),
        ({"blocks": [0, 1, -5]}, ValueError, "blocks holds -5, but the student has 4"),
    ],
)
def test_timm_task_names_value_and_fix_of_what_does_not_fit(options, error, message):
    with pytest.raises(error, match=message) as raised:
        timm_task(**options)
    assert "\n" not in str(raised.value)


def test_timm_task_asks_for_the_size_where_the_student_does_not_say():
    student = small_vit()
    del student.pretrained_cfg
    with pytest.raises(ValueError, match=r"VisionTransformer does not say.*pass input_size=\(3, H, W\)"):
        timm_task(student)
    assert timm_task(student, input_size=(3, 48, 48)) is not None


def test_timm_task_guides_one_block_by_one_map():
    teacher = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.ReLU())  # a single map, in no sequence
    task = timm_task(teacher=teacher, blocks=[2])
    losses = train(task, 3)
    assert losses[-1] < losses[0]


def test_timm_task_trains_under_ddp(tmp_path):
    with one_process(tmp_path):
        plain, task = timm_task(), timm_task()
        before = [parameter.clone() for parameter in task.trainable_module.guidance.parameters()]
        assert task.prepare_distributed() is task
        assert isinstance(task.get_trainable_module(), nn.parallel.DistributedDataParallel)
        assert train(task, 3) == pytest.approx(train(plain, 3), rel=1e-5)
        after = task.trainable_module.module.guidance.parameters()
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        state = task.get_checkpoint_state()
        small_vit().load_state_dict(state["state_dict"])
        timm_task().load_checkpoint_state(state["state_dict"], state["task_state"])
        assert task.compile(backend="aot_eager")(small_batch()[0]).shape == (8, 5)
