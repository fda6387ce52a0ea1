"""Optimizers and schedules that are timm's, by name: what of the section optim they are told, and what not."""

from __future__ import annotations

from pydantic import model_validator

from fastlg.config.fields import TIMM, Section
from fastlg.errors import brief


class OfTimmOrOurs(Section):
    """A section with ``name`` and ``schedule``, each one of ours or timm:NAME."""

    @property
    def of_timm(self) -> str:
        """Name in timm of an optimizer that is timm's, else ""."""
        return self.name.removeprefix(TIMM) if self.name.startswith(TIMM) else ""

    @property
    def schedule_of_timm(self) -> str:
        """Name in timm of a schedule that is timm's, else ""."""
        return self.schedule.removeprefix(TIMM) if self.schedule.startswith(TIMM) else ""

    @model_validator(mode="after")
    def _taken(self):
        for is_timms, args, name in (
            (self.of_timm, "args", "name"),
            (self.schedule_of_timm, "schedule_args", "schedule"),
        ):
            if getattr(self, args) and not is_timms:
                own = getattr(self, name)
                raise ValueError(
                    f"{args} is {brief(getattr(self, args))}, but {name} is {own}; use optim.{name}={TIMM}{own}"
                )
        exact = {
            "betas": self.of_timm,
            "momentum": self.of_timm,
            "muon_momentum": self.of_timm,
            "muon_also": self.of_timm,
            "flat": self.schedule_of_timm,
        }
        for name, is_timms in exact.items():
            if is_timms and getattr(self, name) != type(self).model_fields[name].default:
                fix = "leave it out" if name == "flat" else f"set optim.args.{name}"
                raise ValueError(f"{name} is {brief(getattr(self, name))}, which timm:{is_timms} is not told; {fix}")
        return self
