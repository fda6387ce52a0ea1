"""L_drloc equals the authors' code in every variant, and a loop over its pairs written by hand."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastlg.config import DrlocConfig
from fastlg.data.views.pairs import PairSampler
from fastlg.drloc import DenseRelativeLoc, loss_weight
from fastlg.errors import UserError

GOLDEN_VARIANTS = {
    f"{mode}_{'abs' if use_abs else 'signed'}_{'norm' if normalize else 'raw'}": (mode, use_abs, normalize)
    for mode in ("l1", "ce", "cbr")
    for use_abs in (True, False)
    for normalize in ((False, True) if mode == "l1" else (False,))
}
KINDS = list(GOLDEN_VARIANTS.values())


def config_for(mode: str, use_abs: bool, normalize: bool, **others) -> DrlocConfig:
    return DrlocConfig(weight=1.0, mode=mode, use_abs=use_abs, normalize=normalize, **others)


def our_name(theirs: str, mode: str) -> str:
    """The authors' layers 0, 2 (and 4) are hidden, what follows is a head of both axes, or one of each."""
    if mode == "l1":
        theirs = theirs.replace("layers.4.", "heads.0.")
    return theirs.replace("unshared.", "heads.").replace("layers.", "hidden.")


@pytest.mark.parametrize("variant", GOLDEN_VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_variant_repeats_the_authors_loss_and_gradients(shared, variant, dtype):
    arrays = np.load(shared / "systems" / "golden" / "drloc.npz")
    facts = json.loads(str(arrays["config"]))[variant]
    mode, use_abs, normalize = GOLDEN_VARIANTS[variant]
    own = {key.removeprefix(f"{variant}/"): arrays[key] for key in arrays.files if key.startswith(f"{variant}/")}
    config = config_for(mode, use_abs, normalize, hidden=facts["hidden"], sample_size=facts["sample_size"])
    head = DenseRelativeLoc((facts["H"], facts["H"]), facts["C"], config).to(dtype)
    weights = {key.removeprefix("sd/"): value for key, value in own.items() if key.startswith("sd/")}
    renamed = {our_name(key, mode): torch.from_numpy(v) for key, v in weights.items()}
    head.load_state_dict({key: value.to(dtype) for key, value in renamed.items()})
    maps = torch.from_numpy(own["features"]).to(dtype).requires_grad_()
    pairs = torch.from_numpy(np.stack([own["pairs_a"], own["pairs_b"]], axis=1)).long()
    prefix = torch.randn(len(maps), 1, facts["C"], dtype=dtype)
    tokens = torch.cat([prefix, maps.flatten(2).transpose(1, 2)], dim=1)

    near = 1e-6 if dtype == torch.float64 else 2e-5
    wanted = head.distances(pairs).flatten(0, 1).double()
    np.testing.assert_allclose(wanted.numpy(), own["target"], atol=1e-7)
    answers = head.answers(tokens, pairs).flatten(0, 1)
    np.testing.assert_allclose(answers.detach().numpy(), own["pred"], atol=near, rtol=near)
    loss = head(tokens, pairs).mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(own["loss"]), rel=near)
    scale = np.abs(own["grad_features"]).max()
    np.testing.assert_allclose(maps.grad.numpy(), own["grad_features"], atol=near * scale, rtol=0)
    for name in weights:
        gradient = head.get_parameter(our_name(name, mode)).grad
        assert gradient.norm().item() == pytest.approx(float(own[f"gradw_norm/{name}"]), rel=near), name


def test_heads_have_as_many_weights_as_the_authors(shared):
    listed = json.loads((shared / "systems" / "golden" / "drloc_params.json").read_text())
    for name, count in listed.items():
        channels, mode, classes, *use = name.split("_")
        side = int(classes.removeprefix("outarg")) if mode == "ce" else 7
        config = config_for(mode, use[0] == "abs", False)
        head = DenseRelativeLoc((side, side), int(channels[1:]), config)
        assert sum(p.numel() for p in head.parameters()) == count, name


def by_hand(head: DenseRelativeLoc, tokens: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """One pair after the other, float64."""
    config, losses = head.config, []
    high, wide = head.grid
    for image, ends in zip(tokens, pairs.tolist(), strict=True):
        maps = image[len(image) - high * wide :].T.unflatten(1, (high, wide))
        if head.is_pooled:
            windows = [
                maps[:, max(0, 2 * row - 1) : 2 * row + 2, max(0, 2 * column - 1) : 2 * column + 2].mean(dim=(1, 2))
                for row in range(head.side)
                for column in range(head.side)
            ]
            maps = torch.stack(windows, dim=1).unflatten(1, (head.side, head.side))
        total = 0.0
        for first, second in zip(*ends, strict=True):
            hidden = head.hidden(torch.cat([maps[:, first[0], first[1]], maps[:, second[0], second[1]]]))
            for axis in range(2):
                apart, most = first[axis] - second[axis], head.side - 1
                wanted = abs(apart) if config.use_abs else apart + most
                if config.normalize:
                    wanted = wanted / (most if config.use_abs else 2 * most)
                if config.mode == "l1":
                    total += (head.heads[0](hidden)[axis] - wanted).abs() / 2
                    continue
                scores = head.heads[axis](hidden)
                if config.mode == "ce":
                    total += F.cross_entropy(scores[None], torch.tensor([wanted]))
                    continue
                shares = scores.softmax(0)
                mean = sum(share * value for value, share in enumerate(shares))
                spread = sum(share * (value - mean) ** 2 for value, share in enumerate(shares)) + 1e-8
                total += (mean - wanted) ** 2 / spread + 0.001 * spread.log()
        losses.append(total / len(ends[0]))
    return torch.stack(losses)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]} abs={kind[1]} norm={kind[2]}")
@pytest.mark.parametrize(("side", "prefix", "is_pooled"), [(4, 1, False), (3, 0, False), (6, 2, True), (5, 0, True)])
def test_the_loss_is_that_of_a_loop_over_pairs(kind, side, prefix, is_pooled):
    torch.manual_seed(3)
    head = DenseRelativeLoc((side, side), 5, config_for(*kind, hidden=7), is_pooled=is_pooled).double()
    tokens = torch.randn(3, prefix + side * side, 5, dtype=torch.float64, requires_grad=True)
    pairs = torch.randint(head.side, (3, 2, 6, 2))
    pairs[0, 1, 0] = pairs[0, 0, 0]  # a place and itself
    truth = by_hand(head, tokens, pairs)
    torch.testing.assert_close(head(tokens, pairs), truth, rtol=1e-6, atol=1e-7)
    (wanted,) = torch.autograd.grad(truth.sum(), tokens)
    (found,) = torch.autograd.grad(head(tokens, pairs).sum(), tokens)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_device_draws_the_same_pairs_and_learns_the_same_of_them_as_float64(kind, device):
    """Twice: what is added up in another order each time would differ by bits."""
    torch.manual_seed(4)
    truth = DenseRelativeLoc((7, 7), 24, config_for(*kind, hidden=33), is_pooled=True).double()
    head = copy.deepcopy(truth).float().to(device)
    tokens, ids = torch.randn(37, 50, 24), torch.arange(37)
    sampler = PairSampler(side=truth.side, count=19, seed=3, weight_at=lambda epoch: 0.5)
    (pairs, _), (there, _) = sampler(ids, 2), sampler(ids.to(device), 2)
    assert there.device.type == device and torch.equal(there.cpu(), pairs)

    def learned(head, tokens, pairs) -> list[torch.Tensor]:
        tokens = tokens.requires_grad_()
        loss = head(tokens, pairs).mean()
        return [loss, *torch.autograd.grad(1.7 * loss, [tokens, *head.parameters()])]

    wanted = learned(truth, tokens.double(), pairs)
    one, two = (learned(head, tokens.to(device, copy=True), there) for _ in range(2))
    for name, (first, second, true) in enumerate(zip(one, two, wanted, strict=True)):
        assert torch.equal(first, second), name
        torch.testing.assert_close(first.cpu().double(), true, rtol=1e-4, atol=1e-5 * true.abs().max().item())


@pytest.mark.parametrize(("grid", "is_pooled"), [((1, 1), False), ((2, 2), True), ((2, 3), False)])
def test_a_grid_without_distances_is_one_line(grid, is_pooled):
    with pytest.raises(UserError, match=r"drloc.weight is 1, but .* no distances; set a larger model.image_size"):
        DenseRelativeLoc(grid, 8, DrlocConfig(weight=1.0), is_pooled=is_pooled)


def test_the_weight_rises_and_falls_as_the_authors_log_shows():
    config = DrlocConfig(weight=0.5, warmup_epochs=20, total_epochs=300)
    weights = [loss_weight(config, epoch, 101) for epoch in range(101)]
    assert weights[0] == 0 and weights[10] == 0.25 and weights[20] == 0.5
    assert weights[100] == pytest.approx(0.5 * (1 - 80 / 280)) == pytest.approx(0.357, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "epochs", "wanted"),
    [
        ({"warmup_epochs": 2}, 6, [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ({"warmup_epochs": 0}, 4, [1, 0.75, 0.5, 0.25]),
        ({"warmup_epochs": 0, "decay": "none"}, 3, [1, 1, 1]),
        ({"warmup_epochs": 2, "decay": "none"}, 4, [0, 0.5, 1, 1]),
        ({"warmup_epochs": 4}, 3, [0, 0.25, 0.5]),
        ({"warmup_epochs": 1, "total_epochs": 3}, 5, [0, 1, 0.5, 0, 0]),
    ],
)
def test_warm_up_and_decay_are_options(settings, epochs, wanted):
    config = DrlocConfig(weight=1.0, **settings)
    assert [loss_weight(config, epoch, epochs) for epoch in range(epochs)] == pytest.approx(wanted)
