"""The reader for version 2: up to five files in the core tier."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from cameleer.drivers.cgroup import kernel, parse
from cameleer.drivers.cgroup.fields import MICROSECONDS, keys
from cameleer.drivers.cgroup.parse import ABSENT, Layout, garbled, read_keys
from cameleer.drivers.cgroup.reader import CLOSED, NOT_KEPT, NUMBER_BYTES, CgroupCounters
from cameleer.errors import NotSupported
from cameleer.usage import NO_CPU, NO_IO, NO_MEMORY, CpuUsage, IoUsage, MemoryUsage

_MICROSECOND_NS: Final = MICROSECONDS.factor
_STAT_BYTES: Final = 4096
_NEWLINE: Final = 10

_CPU_KEYS: Final = keys(2, "cpu.stat")
_CPU_OPTIONAL: Final = frozenset({b"nr_periods", b"nr_throttled", b"throttled_usec"})
"""Absent where the controller is not enabled for the group."""
_STAT_KEYS: Final = keys(2, "memory.stat")
_STAT_OPTIONAL: Final = frozenset({b"kernel", b"sock"})
"""From Linux 5.18, and with networking."""


class CgroupCountersV2(CgroupCounters):
    """Reads ``cpu.stat``, ``memory.stat``, ``memory.current``, ``memory.peak``, with swap ``memory.swap.current``."""

    _first_bytes = 478
    _parsers = MappingProxyType(
        {
            "memory.max": parse.limit,
            "memory.low": parse.limit,
            "memory.events": parse.oom_kills,
            "io.stat": parse.io_stat,
            "pids.current": parse.number,
            "pids.max": parse.limit,
            "cpu.pressure": parse.pressure,
            "memory.pressure": parse.pressure,
            "io.pressure": parse.pressure,
        }
    )
    __slots__ = (
        "_cpu_data",
        "_cpu_layout",
        "_current",
        "_has_swap",
        "_limit_bytes",
        "_memory_data",
        "_memory_stat",
        "_oom_kills",
        "_peak",
        "_soft_limit_bytes",
        "_stat",
        "_swap",
        "_swap_data",
    )

    def _folder(self, controller: str) -> str | None:
        return self._folders.get("unified")

    def _opened(self) -> None:
        handle = self._core.handles.get
        self._first = handle("cpu.stat", CLOSED)
        if self._first == CLOSED:
            raise NotSupported(f"the group {self._shown()} has no cpu.stat")
        self._memory_stat = handle("memory.stat", CLOSED)
        self._current = handle("memory.current", CLOSED)
        self._peak = handle("memory.peak", CLOSED)
        self._swap = handle("memory.swap.current", CLOSED)
        self._cpu_data = b""
        self._memory_data: tuple[bytes, ...] = NOT_KEPT
        self._swap_data = b""
        self._has_swap = self._swap != CLOSED and _host_has_swap()
        self._cpu_layout: Layout | None = None
        self._stat: Layout | None = None
        self._limit_bytes: int | None = None
        self._soft_limit_bytes: int | None = None
        self._oom_kills: int | None = None
        self._cpu, self._memory = NO_CPU, NO_MEMORY

    def _read_core(self, data: bytes, extended: bool) -> None:
        pread = self._pread
        if data != self._cpu_data:
            self._count_cpu(data)
        if self._memory_stat != CLOSED:
            layout = self._stat
            stat = pread(self._memory_stat, _STAT_BYTES if layout is None else layout.size, 0)
            usage = b"" if self._current == CLOSED else pread(self._current, NUMBER_BYTES, 0)
            peak = b"" if self._peak == CLOSED else pread(self._peak, NUMBER_BYTES, 0)
            if self._has_swap or (extended and self._swap != CLOSED):
                self._swap_data = pread(self._swap, NUMBER_BYTES, 0)
            if data != self._first_data:  # it ran: this text is not worth keeping
                self._count_memory(stat, usage, peak, self._swap_data)
                self._memory_data = NOT_KEPT
            elif extended or (stat, usage, peak, self._swap_data) != self._memory_data:
                self._count_memory(stat, usage, peak, self._swap_data)
                self._memory_data = (stat, usage, peak, self._swap_data)
        self._first_data = data

    def _count_cpu(self, data: bytes) -> None:
        layout = self._cpu_layout
        values = None if layout is None else layout.values(data)
        if values is None:
            self._cpu_layout, values = read_keys(layout, _CPU_KEYS, _CPU_OPTIONAL, data, self._path("cpu.stat"))
        total, user, system, periods, throttled_periods, throttled = values
        self._cpu = CpuUsage(
            total_ns=total * _MICROSECOND_NS,
            user_ns=user * _MICROSECOND_NS,
            system_ns=system * _MICROSECOND_NS,
            periods=None if periods == ABSENT else periods,
            throttled_periods=None if throttled_periods == ABSENT else throttled_periods,
            throttled_ns=None if throttled == ABSENT else throttled * _MICROSECOND_NS,
        )
        self._cpu_data = data

    def _count_memory(self, stat: bytes, usage: bytes, peak: bytes, swap: bytes) -> None:
        layout = self._stat
        values = None if layout is None else layout.values(stat)
        if values is None:
            self._stat, values = read_keys(layout, _STAT_KEYS, _STAT_OPTIONAL, stat, self._path("memory.stat"))
        anon, file, mapped, unevictable, inactive, faults, major, kernel_bytes, sock = values
        usage_bytes = None if self._current == CLOSED else self._number(usage, "memory.current")
        swap_bytes = None if self._swap == CLOSED else self._number(swap, "memory.swap.current")
        if swap_bytes:
            self._has_swap = True  # it was given some since
        self._memory = MemoryUsage(  # by position: see cameleer.usage
            anon,
            None,  # pss_bytes
            file,
            swap_bytes,
            mapped,
            usage_bytes,
            None if usage_bytes is None or swap_bytes is None else usage_bytes + swap_bytes,
            None if usage_bytes is None else max(usage_bytes - inactive, 0),
            None if self._peak == CLOSED else self._number(peak, "memory.peak"),
            None if kernel_bytes == ABSENT else kernel_bytes,
            None,  # kernel_peak_bytes
            unevictable,
            None if sock == ABSENT else sock,
            self._limit_bytes,
            self._soft_limit_bytes,
            faults - major if faults > major else 0,
            major,
            self._oom_kills,
            "cgroup",
        )

    def _number(self, data: bytes, name: str) -> int:
        try:
            if data[-1] == _NEWLINE:
                return int(data)
        except (ValueError, IndexError):
            pass
        raise garbled(self._path(name), data)

    def _take_memory(self) -> None:
        self._limit_bytes = self._value("memory.max", int)
        self._soft_limit_bytes = self._value("memory.low", int) or None
        self._oom_kills = self._value("memory.events", int)

    def _count_io(self) -> IoUsage:
        found = self._value("io.stat", parse.IoStat)
        if found is None:
            return NO_IO
        return IoUsage(
            read_bytes=found.read_bytes,
            write_bytes=found.write_bytes,
            read_ops=found.read_ops,
            write_ops=found.write_ops,
        )


def _host_has_swap() -> bool:
    try:
        return kernel.read("/proc/swaps").count("\n") > 1
    except OSError:
        return True
