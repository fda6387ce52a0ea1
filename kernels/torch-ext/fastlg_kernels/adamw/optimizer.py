"""``AdamW``: torch.optim.AdamW's numbers, one kernel for all parameters, float32 masters of bfloat16 ones.

Parameters are found by a table of addresses, not in one flat buffer: nothing of the user's moves, gradients may be new
tensors in every step, and neither a sum into a buffer nor a copy out of it is made. The table is made again where an
address has changed, which costs a copy of 48 bytes per parameter; torch's allocator gives most steps the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..devices import check_impl, takes_triton
from .op import adamw_step
from .plain import Columns

COLUMN = Columns()
HALVES = (torch.bfloat16, torch.float16)


class AdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) for parameters on one device.

    params        parameters or groups of them, each with its own lr, betas, eps, weight_decay and maximize
    lr            a number, or a tensor with one element that a schedule may fill, also between replays of a CUDA graph
    betas, eps, weight_decay, maximize    as in torch.optim.AdamW, with the same defaults
    impl          "auto" takes the Triton kernel where it runs and torch elsewhere; "triton" and "torch" insist

    A bfloat16 or float16 parameter is the copy of a float32 master, ``state[p]["master"]``, which is what is trained:
    the step writes both in one pass, and a module in bfloat16 needs no casts. Moments are float32 (float64 beside
    float64). The state per parameter has torch's names, ``exp_avg``, ``exp_avg_sq`` and ``step``; checkpoints of
    torch's AdamW load. Steps are counted for all parameters together, on the device: nothing waits for it, and after
    one step outside the next can be captured in a CUDA graph. Raises ValueError for values out of range, parameters on
    several devices or of another dtype, or a sparse gradient; RuntimeError where ``impl="triton"`` cannot run.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        impl: str = "auto",
    ):
        check_impl(impl)
        self.impl = impl
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)
        self._forget_tables()

    def add_param_group(self, param_group: dict) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name, value, is_right in (
            ("lr", group["lr"], isinstance(group["lr"], Tensor) or group["lr"] >= 0),
            ("eps", group["eps"], group["eps"] >= 0),
            ("weight_decay", group["weight_decay"], group["weight_decay"] >= 0),
            ("betas", group["betas"], all(0 <= beta < 1 for beta in group["betas"])),
        ):
            if not is_right:
                raise ValueError(f"{name} is {value}; betas lie between 0 and 1, all others are at least 0")
        parameters = [p for of_group in self.param_groups for p in of_group["params"]]
        devices, dtypes = {p.device for p in parameters}, {p.dtype for p in parameters}
        if len(devices) > 1:
            raise ValueError(f"parameters are on {', '.join(sorted(map(str, devices)))}; move them to one device")
        if wrong := dtypes - {torch.float32, torch.float64, *HALVES}:
            raise ValueError(f"parameters are {', '.join(map(str, wrong))}; use float32, float64, bfloat16 or float16")
        self._forget_tables()

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, which would round to the parameters' dtype what is kept wider; layouts become the parameters'."""
        super().load_state_dict(state_dict)
        both = (state_dict["param_groups"], self.param_groups)
        keys, parameters = ([p for group in groups for p in group["params"]] for groups in both)
        for key, parameter in zip(keys, parameters, strict=True):
            saved, state = state_dict["state"].get(key, {}), self.state[parameter]
            for name in ("master", "exp_avg", "exp_avg_sq"):
                if name in saved:
                    state[name] = torch.empty_like(parameter, dtype=_wide(parameter)).copy_(saved[name])
        self._forget_tables()

    def _forget_tables(self) -> None:
        self._tables: dict = {}
        self._rates: Tensor | None = None
        self._rows: list | None = None
        self._steps: Tensor | None = None

    @torch.no_grad()
    def step(self, closure=None):
        """One step. Parameters without a gradient stay what they are; returns what ``closure`` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kinds: dict[tuple, list[tuple[Tensor, int]]] = {}
        for index, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if parameter.grad.is_sparse:
                        raise ValueError("a gradient is sparse; use torch.optim.SparseAdam for such parameters")
                    kind = (parameter.dtype, parameter.grad.dtype)
                    kinds.setdefault(kind, []).append((parameter, index))
        if kinds:
            rates, steps = self._on_device(next(iter(kinds.values()))[0][0])
            steps += 1
            for kind, members in kinds.items():
                self._step_of(kind, members, rates, steps)
        return loss

    def _on_device(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Rates [groups, 6] as they are now, and the count of steps; both float64 on the device."""
        rows = [
            [0.0 if isinstance(g["lr"], Tensor) else g["lr"], g["weight_decay"], *g["betas"], g["eps"]]
            + [-1.0 if g["maximize"] else 1.0]
            for g in self.param_groups
        ]
        if rows != self._rows:
            if like.is_cuda and torch.cuda.is_current_stream_capturing():
                raise RuntimeError("AdamW cannot be captured with other options than its last step had; take one first")
            self._rows, rates = rows, torch.tensor(rows, dtype=torch.float64)
            if self._rates is None or self._rates.shape != rates.shape:
                self._rates = torch.empty_like(rates, device=like.device)
            # pinned, so that the host does not wait for the device; torch's allocator keeps it until it is there
            self._rates.copy_(rates.pin_memory() if like.is_cuda else rates, non_blocking=True)
        for k, group in enumerate(self.param_groups):
            if isinstance(group["lr"], Tensor):
                self._rates[k, COLUMN.lr].copy_(group["lr"].squeeze())
        if self._steps is None:
            known = [state["step"] for state in self.state.values() if "step" in state]
            count = float(known[0]) if known else 0.0
            self._steps = torch.full((), count, dtype=torch.float64, device=like.device)
            for state in self.state.values():
                state["step"] = self._steps
        return self._rates, self._steps

    def _state_of(self, parameter: Tensor) -> dict:
        state = self.state[parameter]
        if "exp_avg" not in state:
            wide = _wide(parameter)
            state["step"] = self._steps
            state["exp_avg"] = torch.zeros_like(parameter, dtype=wide, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
        if parameter.dtype in HALVES and "master" not in state:
            state["master"] = parameter.detach().to(torch.float32)
        return state

    def _step_of(self, kind: tuple, members: list[tuple[Tensor, int]], rates: Tensor, steps: Tensor) -> None:
        parameters, groups = [parameter for parameter, _ in members], [index for _, index in members]
        states = [self._state_of(parameter) for parameter in parameters]
        has_copies = kind[0] in HALVES
        weights = [state["master"] for state in states] if has_copies else parameters
        firsts, seconds = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        # one layout for all that belongs to a parameter: the kernel walks through memory
        grads = [p.grad if p.grad.stride() == p.stride() else torch.empty_like(p).copy_(p.grad) for p in parameters]
        copies = parameters if has_copies else []
        dense = all(_is_dense(t) for t in parameters)
        limit = "" if dense else "a parameter has gaps in memory"
        tables = (None, None)
        if takes_triton(self.impl, "AdamW", weights, limit):
            tables = self._tables_of(kind, (weights, grads, firsts, seconds, copies), groups)
        adamw_step(weights, grads, firsts, seconds, copies, groups, rates, steps, *tables)

    def _tables_of(self, kind: tuple, columns: tuple, groups: list[int]) -> tuple[Tensor, Tensor]:
        from . import launch

        tables = self._tables.setdefault(kind, launch.Tables())
        return tables.current(launch.addresses(*columns), groups, columns[0][0].device)


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill a stretch of memory, in any order."""
    return torch.ops.aten.is_non_overlapping_and_dense(tensor)
