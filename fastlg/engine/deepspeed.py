"""DeepSpeed: ZeRO stages 0 to 3, its mixed precision, its communication; our checkpoints, schedule and batches."""

from __future__ import annotations

import logging
import os
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastlg import ranks
from fastlg.batch import Batch, StepOutput, Views
from fastlg.engine.precision import set_rates
from fastlg.engine.protocol import (
    BesideTeacher,
    autocast,
    group_keys,
    joined_outputs,
    load_optimizer_state,
    micro_batches,
    optimizer_state,
)
from fastlg.errors import UserError, first_line

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
SCALE_STATE = ("scale", "_growth_tracker")


class DeepSpeedEngine(BesideTeacher):
    """See ``protocol.Engine``. Student and projections are the wrapped module; the teacher stays outside.

    Args as PlainEngine; ``config`` is the merged DeepSpeed configuration (``merged_config``). Raises UserError where
    the library is missing or refuses the configuration.
    """

    def __init__(
        self,
        unit: nn.Module,
        teacher,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        dtype: torch.dtype,
        accumulation: int,
        config: dict,
        is_compiled: bool = False,
    ):
        deepspeed = library(device)
        self.unit, self.teacher, self.basic = unit, teacher, optimizer
        self.device, self.dtype, self.accumulation = device, dtype, accumulation
        self.group_keys = group_keys(optimizer)
        self.learning_rate = float(optimizer.param_groups[0]["lr"])
        self.stage = config["zero_optimization"]["stage"]
        self.gathered = deepspeed.zero.GatheredParameters
        self.fragments = deepspeed.utils
        if not dist.is_initialized():  # DeepSpeed wants a group of a lone process, too
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            os.environ.setdefault("LOCAL_RANK", "0")
        if is_compiled:
            unit.student.compile(dynamic=False)
        try:
            self.engine, *_ = deepspeed.initialize(model=unit, optimizer=optimizer, config=config)
        except Exception as error:  # the library raises half a dozen types for a configuration it cannot use
            if ranks.is_broken_contact(error):
                raise
            raise UserError(f"DeepSpeed refuses its configuration: {first_line(error)}; see engine.*") from None
        self.input_dtype = next(iter(unit.parameters())).dtype  # bf16 or fp16 where DeepSpeed holds the weights so

    def set_learning_rate(self, lr: float) -> None:
        self.learning_rate = lr
        set_rates(self.engine.optimizer, lr)

    def step(self, views: Views, batch: Batch, total: int) -> StepOutput:
        outputs = []
        images, guide = views.student.to(self.input_dtype), self.guide(views, batch)
        parts = micro_batches(views._replace(student=images), guide, self.accumulation, total)
        for part in parts:
            self.engine.set_gradient_accumulation_boundary(part is parts[-1])
            out = self.engine(*part)
            share = len(part[0]) * ranks.world_size() / total  # DeepSpeed averages over the ranks
            self.engine.backward(out.loss * share, scale_wrt_gas=False)
            self.engine.step()
            outputs.append(out._replace(loss=out.loss.detach()))
        return joined_outputs(outputs)

    def predict(self, images: Tensor, *, latest: bool = False) -> Tensor:
        with autocast(self.device, self.dtype):
            return self.engine.module.student(images.to(self.input_dtype))[0]

    def state_dict(self) -> dict:
        with self._whole_weights():
            unit = {name: _in_fp32(value) for name, value in self.unit.state_dict().items()}
        if self.stage == 0:
            return {"unit": unit, **optimizer_state(self.unit, self.basic, self.group_keys), "scaler": self._scale()}
        moments = {}
        self._link_moments()
        first = next(iter(self.basic.state.values()), {})  # a flat partition of ZeRO; none before the first update
        known = [key for key in MOMENTS if first.get(key) is not None]
        for name, parameter in self.unit.named_parameters():
            unit[name] = self.fragments.safe_get_full_fp32_param(parameter).cpu()
            if known:
                own = {key: self.fragments.safe_get_full_optimizer_state(parameter, key).cpu() for key in known}
                # One tensor each: torch steps every parameter's own, and one shared by all would count them all.
                moments[name] = own | (
                    {"step": torch.as_tensor(first["step"]).cpu().clone()} if "step" in first else {}
                )
        return {"unit": unit, "optimizer": moments, "scaler": self._scale()}

    def load_state_dict(self, state: dict) -> None:
        with self._whole_weights(writer=0):
            self.unit.load_state_dict(state["unit"])
        if self.stage == 0:
            load_optimizer_state(self.unit, self.basic, state)
        else:
            self._make_moments(state["optimizer"])
            for name, parameter in self.unit.named_parameters():
                self._set(parameter, state["unit"][name])
                for key, value in state["optimizer"].get(name, {}).items():
                    if key != "step":
                        self._set(parameter, value, key)
        self._load_scale(state["scaler"])

    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None = None) -> None:
        """A whole float32 weight or moment becomes this rank's part of it."""
        value, own = value.to(self.device), () if moment is None else (moment,)
        kind = "optimizer_state" if own else "fp32_param"
        if self.stage != 3:
            getattr(self.fragments, f"safe_set_full_{kind}")(parameter, value, *own)
            return
        count = parameter.ds_tensor.ds_numel  # equal on all ranks; setting a whole one fails unless that divides it
        value = nn.functional.pad(value.flatten(), (0, count * ranks.world_size() - value.numel()))
        part = value.narrow(0, count * ranks.rank(), count)
        getattr(self.fragments, f"safe_set_local_{kind}")(parameter, part, *own)

    def _whole_weights(self, writer: int | None = None):
        """Stage 3 keeps a part of each weight per rank; inside, they are whole. ``writer`` is whose changes count."""
        return self.gathered(list(self.unit.parameters()), modifier_rank=writer, enabled=self.stage == 3)

    def _make_moments(self, state: dict) -> None:
        """ZeRO steps flat partitions, whose moments appear at the first update; a resumed run needs them before."""
        first = next(iter(state.values()), None)
        if first is None:
            return
        if self.stage == 3:  # which lends its partitions to the optimizer only while that steps
            flats = self.engine.optimizer.fp32_partitioned_groups_flat
        else:
            flats = [flat for group in self.basic.param_groups for flat in group["params"]]
        for flat in flats:
            own = {key: torch.zeros_like(flat) for key in first if key != "step"}
            if "step" in first:
                own["step"] = first["step"].clone().to(flat.device)
            self.basic.state[flat] = own
        self._link_moments()

    def _link_moments(self) -> None:
        """Tells every parameter of stages 1 and 2 where its moments lie; stage 3 looks them up by itself.

        DeepSpeed (0.19) does so after the step of the first parameter group, when the later groups have none yet.
        """
        for parameter in self.unit.parameters():
            mapping = getattr(parameter, "_hp_mapping", None)
            if mapping is not None:
                flat = self.basic.param_groups[mapping.param_group_index]["params"][0]
                mapping.set_optim_state_fragment(flat, self.basic.state[flat])

    def _scale(self) -> dict:
        """Of fp16's gradients, in the terms of torch's GradScaler; empty in other precisions."""
        if (scaler := self.engine.torch_autocast_z0_gradscaler) is not None:
            return {key: scaler.state_dict()[key] for key in SCALE_STATE}
        zero = getattr(self.engine.optimizer, "loss_scaler", None)
        if zero is None or not zero.dynamic:
            return {}
        return dict(zip(SCALE_STATE, (float(zero.cur_scale), zero.cur_iter - zero.last_overflow_iter), strict=True))

    def _load_scale(self, state: dict) -> None:
        if not state:
            return
        if (scaler := self.engine.torch_autocast_z0_gradscaler) is not None:
            scaler.load_state_dict({**scaler.state_dict(), **state})
        elif getattr(zero := getattr(self.engine.optimizer, "loss_scaler", None), "dynamic", False):
            zero.cur_scale, since_overflow = (state[key] for key in SCALE_STATE)
            zero.last_overflow_iter = zero.cur_iter - since_overflow


def _in_fp32(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value


def library(device: torch.device):
    """DeepSpeed, made quiet and told the device. Raises UserError where it is not installed."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # else it takes the GPU of a run that is told to use the CPU
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            "engine.kind is deepspeed, which is not installed: pip install 'fastlg[deepspeed]', or engine.kind=plain"
        ) from None
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # the import sets its own level
    # ZeRO calls torch's collectives by names of which torch has warned at every call since 2.14.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is (deprecated|a private)", FutureWarning)
    if device.type == "cpu":  # it would compile a C++ extension for a minute, to send what gloo sends
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
