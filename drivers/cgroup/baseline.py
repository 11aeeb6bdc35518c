"""What a group had counted before a task joined it: not the task's own.

A group that somebody else made counts on from task to task. What it says at a task's start is taken off what it says
later. A peak cannot be taken apart: it is the task's only once it is above the one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from cameleer.usage import CpuUsage, IoUsage, MemoryUsage, PressureUsage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cameleer.usage import Counters

U = TypeVar("U", CpuUsage, MemoryUsage, IoUsage, PressureUsage)

_COUNTED: Final[Mapping[str, tuple[str, ...]]] = {
    "cpu": ("total_ns", "user_ns", "system_ns", "periods", "throttled_periods", "throttled_ns"),
    "memory": ("minor_faults", "major_faults", "oom_kills"),
    "io": IoUsage.__struct_fields__,
    "pressure": PressureUsage.__struct_fields__,
}
_PEAKS: Final = ("peak_bytes", "kernel_peak_bytes")


class Baseline(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The counters of a group at a task's start."""

    cpu: CpuUsage = CpuUsage()
    memory: MemoryUsage = MemoryUsage()
    io: IoUsage = IoUsage()
    pressure: PressureUsage = PressureUsage()

    @classmethod
    def of(cls, counters: Counters) -> Baseline:
        """From a reading."""
        return cls(cpu=counters.cpu, memory=counters.memory, io=counters.io, pressure=counters.pressure)

    def kept(self) -> dict[str, dict[str, int]]:
        """What is not 0, as plain data."""
        found: dict[str, dict[str, int]] = {}
        for name, fields in _COUNTED.items():
            usage = getattr(self, name)
            names = (*fields, *_PEAKS) if name == "memory" else fields
            if values := {each: value for each in names if (value := getattr(usage, each))}:
                found[name] = values
        return found

    @classmethod
    def kept_in(cls, found: object) -> Baseline | None:
        """From plain data; None: there is none.

        :raises msgspec.ValidationError: it is something else.
        """
        return msgspec.convert(found, cls) if found else None

    def since(self, counters: Counters) -> Counters:
        """What was counted since; a counter that fell meanwhile is 0."""
        memory = _less(counters.memory, self.memory, _COUNTED["memory"])
        peaks = {
            each: None
            for each in _PEAKS
            if (now := getattr(memory, each)) is not None and now <= (getattr(self.memory, each) or 0)
        }
        return msgspec.structs.replace(
            counters,
            cpu=_less(counters.cpu, self.cpu, _COUNTED["cpu"]),
            memory=msgspec.structs.replace(memory, **peaks) if peaks else memory,
            io=_less(counters.io, self.io, _COUNTED["io"]),
            pressure=_less(counters.pressure, self.pressure, _COUNTED["pressure"]),
        )


def _less(usage: U, before: U, fields: tuple[str, ...]) -> U:
    changed = {
        each: max(now - had, 0)
        for each in fields
        if (had := getattr(before, each)) and (now := getattr(usage, each)) is not None
    }
    return msgspec.structs.replace(usage, **changed) if changed else usage
