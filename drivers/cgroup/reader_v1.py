"""The reader for version 1: up to six files in the core tier."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import Final

from cameleer.drivers.cgroup import kernel, parse
from cameleer.drivers.cgroup.fields import TICKS, At, keys, source
from cameleer.drivers.cgroup.parse import ABSENT, Layout, Operations, garbled, read_keys
from cameleer.drivers.cgroup.reader import CLOSED, NEVER_NS, NOT_KEPT, NUMBER_BYTES, CgroupCounters
from cameleer.errors import NotSupported
from cameleer.usage import NO_CPU, NO_IO, NO_MEMORY, CpuUsage, IoUsage, MemoryUsage

_TICK_NS: Final = TICKS.factor
_TIMES_BYTES: Final = 64
_CPU_STAT_BYTES: Final = 200
_STAT_BYTES: Final = 4096
_NEWLINE: Final = 10
_CONTROLLERS: Final = ("memory", "pids", "cpuacct", "cpu", "blkio")
"""The first of them that a group has lists its processes."""

_STAT_KEYS: Final = keys(1, "memory.stat")
_STAT_OPTIONAL: Final = frozenset({b"total_swap"})
"""Absent where the kernel does not account for swap."""
_THROTTLING_KEYS: Final = keys(1, "cpu.stat")
_IO_BYTES: Final = source(1, "io.read_bytes")
_IO_OPS: Final = source(1, "io.read_ops")


class CgroupCountersV1(CgroupCounters):
    """Reads ``cpuacct.usage``, ``cpuacct.stat``, with a quota ``cpu.stat``, ``memory.stat``, usage and peak."""

    _first_bytes = NUMBER_BYTES
    _parsers = MappingProxyType(
        {
            "memory.kmem.usage_in_bytes": parse.number,
            "memory.kmem.max_usage_in_bytes": parse.number,
            "memory.kmem.tcp.usage_in_bytes": parse.number,
            "memory.limit_in_bytes": parse.limit,
            "memory.soft_limit_in_bytes": parse.limit,
            "memory.oom_control": parse.oom_kills,
            _IO_BYTES.file: parse.blkio,
            _IO_BYTES.older: parse.blkio,
            _IO_OPS.file: parse.blkio,
            _IO_OPS.older: parse.blkio,
            "pids.current": parse.number,
            "pids.max": parse.limit,
        }
    )
    __slots__ = (
        "_cpu_stat",
        "_kernel_bytes",
        "_kernel_peak_bytes",
        "_limit_bytes",
        "_max_usage",
        "_memory_data",
        "_memory_stat",
        "_oom_kills",
        "_socket_bytes",
        "_soft_limit_bytes",
        "_stat",
        "_stat_bytes",
        "_throttling",
        "_throttling_data",
        "_throttling_layout",
        "_times",
        "_times_data",
        "_usage_in_bytes",
    )

    def _folder(self, controller: str) -> str | None:
        if controller not in _CONTROLLERS:
            controller = next((name for name in _CONTROLLERS if name in self._folders), "")
        return self._folders.get(controller)

    def _opened(self) -> None:
        handle = self._core.handles.get
        self._times = handle("cpuacct.stat", CLOSED)
        self._cpu_stat = handle("cpu.stat", CLOSED)
        self._memory_stat = handle("memory.stat", CLOSED)
        self._usage_in_bytes = handle("memory.usage_in_bytes", CLOSED)
        self._max_usage = handle("memory.max_usage_in_bytes", CLOSED)
        self._first = handle("cpuacct.usage", CLOSED)
        if self._first == CLOSED:  # without a CPU counter nobody knows whether a task does nothing
            self._first, self._idle_after_ns = self._usage_in_bytes, NEVER_NS
        if self._first == CLOSED:
            raise NotSupported(f"the group {self._shown()} has neither a cpuacct nor a memory controller")
        self._times_data = self._throttling_data = b""
        self._stat_bytes = _STAT_BYTES
        self._memory_data: tuple[bytes, ...] = NOT_KEPT
        self._throttling: tuple[int | None, int | None, int | None] = (None, None, None)
        self._stat: Layout | None = None
        self._throttling_layout: Layout | None = None
        self._limit_bytes: int | None = None
        self._soft_limit_bytes: int | None = None
        self._oom_kills: int | None = None
        self._kernel_bytes: int | None = None
        self._kernel_peak_bytes: int | None = None
        self._socket_bytes: int | None = None
        self._cpu, self._memory = NO_CPU, NO_MEMORY
        if self._has_quota is None:
            self._has_quota = self._looks_limited()

    def _looks_limited(self) -> bool:
        source = f"{self._folder('cpu')}/cpu.cfs_quota_us"
        try:
            return parse.has_quota(kernel.read(source).encode(), source)
        except OSError:
            return False  # no such controller, or none that knows quotas

    def _read_core(self, data: bytes, extended: bool) -> None:
        pread, ran = self._pread, data != self._first_data
        if self._times != CLOSED:
            times = pread(self._times, _TIMES_BYTES, 0)
            throttled = (self._has_quota or extended) and self._cpu_stat != CLOSED and self._read_throttling()
            if ran or throttled or times != self._times_data:
                self._count_cpu(data, times)
        if self._memory_stat != CLOSED:
            stat = pread(self._memory_stat, self._stat_bytes, 0)
            usage = pread(self._usage_in_bytes, NUMBER_BYTES, 0)
            peak = pread(self._max_usage, NUMBER_BYTES, 0)
            if ran:  # this text is not worth keeping
                self._memory_data = NOT_KEPT
                self._count_memory(stat, usage, peak)
            elif extended or (stat, usage, peak) != self._memory_data:
                self._count_memory(stat, usage, peak)
                self._memory_data = (stat, usage, peak)
        self._first_data = data

    def _count_cpu(self, usage: bytes, times: bytes) -> None:
        periods, throttled_periods, throttled_ns = self._throttling
        try:
            user, user_ticks, system, system_ticks = times.split()
            if user != b"user" or system != b"system" or times[-1] != _NEWLINE or usage[-1] != _NEWLINE:
                raise ValueError
            self._cpu = CpuUsage(
                total_ns=int(usage),
                user_ns=int(user_ticks) * _TICK_NS,
                system_ns=int(system_ticks) * _TICK_NS,
                periods=periods,
                throttled_periods=throttled_periods,
                throttled_ns=throttled_ns,
            )
        except (ValueError, IndexError):
            parse.number(usage, self._path("cpuacct.usage"))
            raise garbled(self._path("cpuacct.stat"), times) from None
        self._times_data = times

    def _read_throttling(self) -> bool:
        """Read ``cpu.stat``; whether it says something new."""
        data = self._pread(self._cpu_stat, _CPU_STAT_BYTES, 0)
        if data == self._throttling_data:
            return False
        layout = self._throttling_layout
        values = None if layout is None else layout.values(data)
        if values is None:
            self._throttling_layout, values = read_keys(
                layout, _THROTTLING_KEYS, frozenset(), data, self._path("cpu.stat")
            )
        if self._throttling_data and values[0] != self._throttling[0]:
            self._has_quota = True  # it was given one since
        self._throttling = (values[0], values[1], values[2])
        self._throttling_data = data
        return True

    def _count_memory(self, stat: bytes, usage: bytes, peak: bytes) -> None:
        layout = self._stat
        values = None if layout is None else layout.values(stat, (usage, peak))
        if values is None or usage[-1] != _NEWLINE or peak[-1] != _NEWLINE:
            self._stat, values = read_keys(layout, _STAT_KEYS, _STAT_OPTIONAL, stat, self._path("memory.stat"))
            self._stat_bytes = self._stat.size
            values.append(parse.number(usage, self._path("memory.usage_in_bytes")))
            values.append(parse.number(peak, self._path("memory.max_usage_in_bytes")))
        rss, cache, mapped, unevictable, swap, inactive, faults, major, usage_bytes, peak_bytes = values
        self._memory = MemoryUsage(  # by position: see cameleer.usage
            rss,
            None,  # pss_bytes
            cache,
            None if swap == ABSENT else swap,
            mapped,
            usage_bytes,
            None if swap == ABSENT else usage_bytes + swap,
            usage_bytes - inactive if usage_bytes > inactive else 0,
            peak_bytes,
            self._kernel_bytes,
            self._kernel_peak_bytes,
            unevictable,
            self._socket_bytes,
            self._limit_bytes,
            self._soft_limit_bytes,
            faults - major if faults > major else 0,
            major,
            self._oom_kills,
            "cgroup",
        )

    def _take_memory(self) -> None:
        value = self._value
        self._kernel_bytes = value("memory.kmem.usage_in_bytes", int)
        self._kernel_peak_bytes = value("memory.kmem.max_usage_in_bytes", int)
        self._socket_bytes = value("memory.kmem.tcp.usage_in_bytes", int)
        self._limit_bytes = value("memory.limit_in_bytes", int)
        self._soft_limit_bytes = value("memory.soft_limit_in_bytes", int)
        kills = value("memory.oom_control", int)
        self._oom_kills = None if kills is None else kills + self._inside.oom_kills

    def _count_io(self) -> IoUsage:
        moved, operations = self._sums(_IO_BYTES), self._sums(_IO_OPS)
        if moved is None and operations is None:
            if "io" not in self._missing:
                self._unknown["io"] = "disabled"
                self._explain()
            return NO_IO
        if self._unknown.pop("io", None):
            self._explain()
        return IoUsage(
            read_bytes=None if moved is None else moved.read,
            write_bytes=None if moved is None else moved.write,
            read_ops=None if operations is None else operations.read,
            write_ops=None if operations is None else operations.write,
        )

    def _sums(self, at: At) -> Operations | None:
        """Of the file, or of the one that older kernels have."""
        names = [name for name in (at.file, at.older) if name in self._extended.handles]
        if not names:
            return None
        return self._value(names[0], Operations) or (_NOTHING if _COUNTS_ALL_IO else None)


def _counts_all_io(release: str) -> bool:
    """Whether this kernel counts IO of groups that have no IO limit; from 6.10 on not before one is set."""
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in (*release.split("."), "0")[:2])
    return (major, minor) < (6, 10)


_COUNTS_ALL_IO: Final = _counts_all_io(os.uname().release)
_NOTHING: Final = Operations(0, 0)
