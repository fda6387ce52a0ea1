"""The Muon optimizer equals torch's own and the float64 iteration, matrices batched, padded or not."""

from __future__ import annotations

import copy

import pytest
import torch
from engine_cases import trained
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastlg.engine.update import muon
from fastlg.engine.update.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonal_steps, orthogonalised, stacked

# Square, tall, wide, equal ones, one row, one column, convolutions of two kernel sizes.
SHAPES = [
    (48, 48),
    (144, 48),
    (192, 48),
    (48, 192),
    (48, 48),
    (5, 7),
    (7, 5),
    (1, 9),
    (9, 1),
    (32, 16, 3, 3),
    (8, 6, 1, 1),
]
LR, DECAY = 1e-2, 0.1
NO_PADDING, ALL_PADDED = 0.0, 1e15


@pytest.fixture(params=[NO_PADDING, ALL_PADDED], ids=["exact", "padded"])
def padding(request, monkeypatch):
    monkeypatch.setattr(muon, "FREE_FLOPS", {"cpu": request.param})


def weights(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def with_gradients(*sets: list[nn.Parameter], seed: int) -> None:
    """The same fresh gradients for each set of weights, in its shapes."""
    generator = torch.Generator().manual_seed(seed)
    for equal in zip(*sets, strict=True):
        grad = torch.randn(equal[0].shape, generator=generator)
        for parameter in equal:
            parameter.grad = grad.reshape(parameter.shape).clone()


def group(parameters, is_muon: bool = True, decay: float = DECAY) -> dict:
    return {"params": list(parameters), "weight_decay": decay, "muon": is_muon}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_twenty_steps_are_torchs_muon(padding, dtype):
    """Distance from torch's weights over the way they went. Torch rounds to bfloat16: this far is float32 from it, and
    bfloat16 itself where a CPU adds up in another order; where it does not, 1e-6."""
    start, ours = weights(), weights()
    theirs = [nn.Parameter(parameter.detach().clone().flatten(1)) for parameter in start]
    optimizer = Muon([group(ours)], LR, dtype=dtype)
    truth = torch.optim.Muon(theirs, lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for step in range(20):
        with_gradients(ours, theirs, seed=step)
        optimizer.step()
        truth.step()
    for first, own, other in zip(start, ours, theirs, strict=True):
        way = (other - first.flatten(1)).norm()
        assert (own.flatten(1) - other).norm() < 2e-2 * way, tuple(first.shape)


@pytest.mark.parametrize("size", [(5, 5), (3, 11), (1, 4)])
def test_singular_values_go_through_the_quintic_and_vectors_stay(size):
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn((4, *size), generator=generator, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    values = values / values.norm(dim=1, keepdim=True)
    for _ in range(ITERATIONS):
        a, b, c = COEFFICIENTS
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonalised(matrices), left @ torch.diag_embed(values) @ right, rtol=0, atol=1e-10)


def test_padding_changes_no_step(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    lr, steps = torch.tensor(0.3, dtype=torch.float64), []
    for free in (NO_PADDING, ALL_PADDED):
        monkeypatch.setattr(muon, "FREE_FLOPS", {"cpu": free})
        steps.append(orthogonal_steps(directions, lr, torch.float64))
    for exact, padded, direction in zip(*steps, directions, strict=True):
        assert exact.shape == padded.shape == direction.shape
        torch.testing.assert_close(padded, exact, rtol=0, atol=1e-11)


def test_a_gradient_of_zeros_moves_nothing():
    assert torch.equal(orthogonalised(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_stacks_hold_every_matrix_once_and_padding_is_worth_its_price():
    deit = ((576, 192), (192, 192), (768, 192), (192, 768)) * 12
    for free, sizes in [
        (0, [(192, 768), (192, 576), (192, 192)]),
        (2e9, [(192, 768), (192, 192)]),
        (1e12, [(192, 768)]),
    ]:
        stacks = stacked(deit, free)
        assert [stack.size for stack in stacks] == sizes
        assert sorted(i for stack in stacks for members in stack.members for i in members.indices) == list(range(48))


class Calls(TorchDispatchMode):
    """Counts the operator calls that do something: views launch nothing."""

    VIEWS = {"view", "split", "split_with_sizes", "slice", "transpose", "unbind", "detach", "_unsafe_view", "expand"}

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._opname not in self.VIEWS
        return function(*args, **(kwargs or {}))


def test_an_update_costs_calls_by_shape_not_by_matrix():
    """DeiT-Ti's 48 matrices, an eighth as wide: per matrix it would be 21 calls and more, about a thousand."""
    calls = []
    for depth in (1, 12):
        parameters = [nn.Parameter(torch.randn(s)) for s in [(72, 24), (24, 24), (96, 24), (24, 96)] * depth]
        optimizer = Muon([group(parameters)], LR)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        with Calls() as seen:
            optimizer.step()
        calls.append(seen.count)
    assert calls[0] == calls[1] < 100


def both_parts(lr) -> tuple[list[nn.Parameter], Muon]:
    """Half of the weights by AdamW, one of them without decay."""
    own = weights()
    return own, Muon([group(own[:1], False, 0.0), group(own[1:5], False), group(own[5:])], lr)


def test_the_rest_is_torchs_adamw_to_the_bit():
    own, optimizer = both_parts(LR)
    others = weights()
    truth = torch.optim.AdamW(
        [{"params": others[:1], "weight_decay": 0.0}, {"params": others[1:5]}], LR, weight_decay=DECAY, fused=True
    )
    for step in range(5):
        with_gradients(own, others, seed=step)
        optimizer.step()
        truth.step()
    assert all(torch.equal(a, b) for a, b in zip(own[:5], others[:5], strict=True))


def test_a_learning_rate_in_a_tensor_is_read_at_every_step():
    lr = torch.tensor(LR)
    (by_float, one), (by_tensor, two) = both_parts(LR), both_parts(lr)
    for step in range(4):
        for groups in one.param_groups:
            groups["lr"] = LR / (step + 1)
        lr.fill_(LR / (step + 1))
        with_gradients(by_float, by_tensor, seed=step)
        one.step()
        two.step()
    for a, b in zip(by_float, by_tensor, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_loaded_state_goes_on_to_the_same_bits():
    own, optimizer = both_parts(LR)
    for step in range(3):
        with_gradients(own, seed=step)
        optimizer.step()
    others, resumed = both_parts(LR)
    for a, b in zip(own, others, strict=True):
        b.data.copy_(a.data)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        with_gradients(own, others, seed=step)
        optimizer.step()
        resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True))


def test_gradients_scaled_for_fp16_step_alike_and_an_overflow_steps_nothing():
    (own, optimizer), (others, plain) = both_parts(LR), both_parts(LR)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with_gradients(own, others, seed=0)
    for parameter in own:
        parameter.grad.mul_(float(scaler.scale(torch.ones(()))))
    scaler.step(optimizer)
    scaler.update()
    plain.step()
    assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True))
    own[-1].grad.fill_(torch.inf)
    scaler.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True))


def test_weights_without_a_gradient_stay():
    own, optimizer = both_parts(LR)
    with_gradients(own, seed=0)
    before, own[0].grad, own[-1].grad = [parameter.detach().clone() for parameter in own], None, None
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, own, strict=True)]
    assert moved == [False, *[True] * (len(own) - 2), False]


def test_a_vector_has_no_place_among_matrices():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Muon([group([nn.Parameter(torch.ones(3))])], LR)


def test_a_runs_momentum_reaches_its_matrices_and_betas_the_rest(project):
    """The first buffer is (1 - momentum) g, the first moment (1 - beta) g, of one and the same g."""
    muon_of = {m: trained("optim.name=muon", f"optim.muon_momentum={m}", steps=1)["optimizer"] for m in (0.0, 0.75)}
    names = [name for name, own in muon_of[0.0].items() if "momentum_buffer" in own]
    assert "student.bare.blocks.1.attn.qkv.weight" in names and "guidance.projections.0.weight" in names
    for name in names:
        whole, quarter = (muon_of[m][name]["momentum_buffer"] for m in (0.0, 0.75))
        torch.testing.assert_close(quarter, whole / 4)
    beta = trained("optim.name=muon", "optim.betas=[0.5, 0.999]", steps=1)["optimizer"]["student.bare.head.bias"]
    torch.testing.assert_close(beta["exp_avg"], 5 * muon_of[0.0]["student.bare.head.bias"]["exp_avg"])
