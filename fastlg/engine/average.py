"""The running mean of a student's weights, which is what is then evaluated and exported."""

from __future__ import annotations

import torch
from torch import nn

WARM_UP = 9  # update t counts at least WARM_UP / (WARM_UP + 1 + t), so that the first weights are soon forgotten


class Average:
    """Exponential moving average of weights and float buffers (Polyak and Juditsky 1992), on their device.

    Update t = 1, 2, ... moves it towards the weights by max(1 - decay, 9 / (10 + t)), so that it is a mean over all of
    the run so far before it is one over the latest 1 / (1 - decay) updates, as in TensorFlow's average. Everything it
    counts with lies on the device, for updates are captured as CUDA graphs. Other buffers are taken as they are.
    """

    def __init__(self, student: nn.Module, decay: float):
        self.decay = decay
        self.latest = student.state_dict()  # the weights themselves, not copies
        self.weights = {name: value.clone() for name, value in self.latest.items()}
        self.count = torch.zeros((), device=next(student.parameters()).device)
        moving = [name for name, value in self.latest.items() if value.is_floating_point()]
        self._pairs = [self.weights[name] for name in moving], [self.latest[name] for name in moving]
        self._others = [name for name in self.latest if name not in set(moving)]

    @torch.no_grad()
    def update(self) -> None:
        """After every update of the weights."""
        self.count += 1
        rate = (WARM_UP / (WARM_UP + 1 + self.count)).clamp(min=1 - self.decay)
        means, latest = self._pairs
        steps = torch._foreach_sub(latest, means)
        torch._foreach_mul_(steps, rate)
        torch._foreach_add_(means, steps)
        for name in self._others:
            self.weights[name].copy_(self.latest[name])

    def state_dict(self) -> dict:
        """{"weights": {name: tensor}, "count": tensor}, the mean itself and no copy."""
        return {"weights": dict(self.weights), "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.count.copy_(state["count"])
        for name, value in self.weights.items():
            value.copy_(state["weights"][name])
