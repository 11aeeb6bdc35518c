"""What a task used: the counters a driver reads, and the readings that everybody else sees.

A driver fills :class:`Counters` and computes nothing. The host turns two of them into a :class:`TaskResourceUsage`
(:func:`cameleer.derive`), which has the same groups with their rates filled in. Both are built on every reading, so
they are msgspec Structs. Unknown is ``None``, never 0; ``missing`` says why a whole group is absent.

Build them by keyword. The three whose many fields are filled for every task and tick are not keyword-only, for the few
lines here that build them by position: by keyword :class:`MemoryUsage` alone costs 0.45 µs more, of the 5 that a
reading costs beside the kernel's part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

MemoryMeasure = Literal["cgroup", "pss", "rss_sum", "max_rss"]
"""What stands for "memory in use": a cgroup's own account (``working_set_bytes``); the proportional set size of all
processes; the sum of their resident sets, an upper bound where pages are shared; the largest resident set that any one
process ever had, as the kernel reports it at the end."""

MissingReason = Literal["unsupported", "disabled", "not permitted", "failed"]


class CpuUsage(msgspec.Struct, frozen=True, gc=False):
    """What a task used of the processors. Counters grow from the task's start.

    :ivar total_ns: user and system CPU time, nanoseconds; counter.
    :ivar user_ns: CPU time in user mode, nanoseconds; counter.
    :ivar system_ns: CPU time in the kernel, nanoseconds; counter.
    :ivar percent: ``Δtotal_ns / window_ns × 100``: percent of one core, so 200 is two cores busy.
    :ivar user_percent: the same of ``user_ns``.
    :ivar system_percent: the same of ``system_ns``.
    :ivar ticks_mhz: ``percent / 100 × total_mhz / cores`` of the node: the speed at which the task computes, in MHz.
    :ivar limit_percent: ``percent / cpu_quota_cores``: share of the CPU quota; None without a quota.
    :ivar periods: quota periods in which the task was runnable; counter.
    :ivar throttled_periods: those in which it was held back by the quota; counter.
    :ivar throttled_ns: time held back by the quota, nanoseconds, summed over CPUs; counter.
    """

    total_ns: int | None = None
    user_ns: int | None = None
    system_ns: int | None = None
    percent: float | None = None
    user_percent: float | None = None
    system_percent: float | None = None
    ticks_mhz: float | None = None
    limit_percent: float | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_ns: int | None = None


class MemoryUsage(msgspec.Struct, frozen=True, gc=False):
    """What a task holds in memory, in bytes, and its page faults.

    :ivar rss_bytes: anonymous memory of a cgroup; of a process tree the resident sets added up, an upper bound where
        several processes share pages.
    :ivar pss_bytes: resident memory with each shared page divided by the number of processes that map it. Dear to
        read: as old as ``memory_at_ns`` where it is the task's ``measure``, else as ``extended_at_ns``.
    :ivar cache_bytes: page cache charged to the task.
    :ivar swap_bytes: swap alone, without memory.
    :ivar mapped_file_bytes: mapped files, part of the cache.
    :ivar usage_bytes: all that is charged to the task, page cache included.
    :ivar usage_with_swap_bytes: ``usage_bytes`` and swap.
    :ivar working_set_bytes: ``usage_bytes`` less inactive file pages: what cannot be reclaimed easily.
    :ivar peak_bytes: the highest ``usage_bytes`` (of a process tree: the largest sum seen) since the start.
    :ivar kernel_bytes: kernel memory charged to the task.
    :ivar kernel_peak_bytes: its highest value.
    :ivar unevictable_bytes: locked pages.
    :ivar socket_bytes: buffers of sockets.
    :ivar limit_bytes: the hard limit; None without one.
    :ivar soft_limit_bytes: the soft limit; None without one.
    :ivar minor_faults: page faults served without IO; counter.
    :ivar major_faults: page faults that needed IO; counter.
    :ivar oom_kills: processes of the task killed for lack of memory; counter.
    :ivar measure: what stands for "memory in use", see :data:`MemoryMeasure`.
    """

    rss_bytes: int | None = None
    pss_bytes: int | None = None
    cache_bytes: int | None = None
    swap_bytes: int | None = None
    mapped_file_bytes: int | None = None
    usage_bytes: int | None = None
    usage_with_swap_bytes: int | None = None
    working_set_bytes: int | None = None
    peak_bytes: int | None = None
    kernel_bytes: int | None = None
    kernel_peak_bytes: int | None = None
    unevictable_bytes: int | None = None
    socket_bytes: int | None = None
    limit_bytes: int | None = None
    soft_limit_bytes: int | None = None
    minor_faults: int | None = None
    major_faults: int | None = None
    oom_kills: int | None = None
    measure: MemoryMeasure | None = None

    @property
    def in_use_bytes(self) -> int | None:
        """Memory in use, bytes, by this task's ``measure``: the working set of a cgroup, PSS, or the sum of RSS."""
        if self.measure == "cgroup":
            return self.working_set_bytes
        return self.pss_bytes if self.measure == "pss" else self.rss_bytes


class IoUsage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Block IO of the task; all are counters.

    :ivar read_bytes: bytes fetched from storage.
    :ivar write_bytes: bytes sent to storage.
    :ivar read_ops: read operations.
    :ivar write_ops: write operations.
    """

    read_bytes: int | None = None
    write_bytes: int | None = None
    read_ops: int | None = None
    write_ops: int | None = None


class NetworkUsage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Traffic of a network namespace of the task's own; all are counters. Never the host's numbers."""

    rx_bytes: int | None = None
    rx_packets: int | None = None
    rx_errors: int | None = None
    rx_drops: int | None = None
    tx_bytes: int | None = None
    tx_packets: int | None = None
    tx_errors: int | None = None
    tx_drops: int | None = None


class ProcessUsage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How many processes the task has, and how often they gave up or lost a processor.

    :ivar processes: processes now.
    :ivar threads: threads now.
    :ivar limit: how many processes and threads it may have; None without a limit.
    :ivar seen: different processes counted since the start; counter.
    :ivar voluntary_switches: context switches because a thread waited; counter.
    :ivar involuntary_switches: context switches because another was due; counter.
    """

    processes: int | None = None
    threads: int | None = None
    limit: int | None = None
    seen: int | None = None
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None


class PressureUsage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Time the task lost waiting for a resource (PSI ``total``), nanoseconds; all are counters.

    ``some``: at least one of its threads waited; ``full``: all that could have run did.
    """

    cpu_some_ns: int | None = None
    cpu_full_ns: int | None = None
    memory_some_ns: int | None = None
    memory_full_ns: int | None = None
    io_some_ns: int | None = None
    io_full_ns: int | None = None


class ProcessRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One process of a task, on request.

    :ivar pid: process id as the host sees it.
    :ivar name: the kernel's short name for it (``comm``), at most 15 bytes; control characters and bytes that are
        not UTF-8 as ``\\xNN``.
    :ivar ppid: its parent now.
    :ivar state: the kernel's letter: R, S, D, T, t, Z, X, I.
    :ivar start_ticks: its start, clock ticks after boot; with the pid and the boot it names a process for good.
    :ivar user_ns: CPU time in user mode, nanoseconds, without its children; counter.
    :ivar system_ns: CPU time in the kernel, nanoseconds, without its children; counter.
    :ivar rss_bytes: resident set, shared pages in full.
    :ivar threads: threads now.
    """

    pid: int
    name: str
    ppid: int | None = None
    state: str | None = None
    start_ticks: int | None = None
    user_ns: int | None = None
    system_ns: int | None = None
    rss_bytes: int | None = None
    threads: int | None = None


NO_CPU = CpuUsage()
NO_MEMORY = MemoryUsage()
NO_IO = IoUsage()
NO_NETWORK = NetworkUsage()
NO_PROCESSES = ProcessUsage()
NO_PRESSURE = PressureUsage()


class Counters(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the kernel or an engine says of a task at one moment, without any rate.

    A group that was not read this time is handed over again as it was, with its true age in ``memory_at_ns`` or
    ``extended_at_ns``.

    :ivar at_ns: when these were true, ``time.monotonic_ns()``; a remote engine's own time, mapped to ours.
    :ivar taken_at_ns: the same moment as Unix time, nanoseconds.
    :ivar memory_at_ns: when ``memory`` was read (monotonic); None: at ``at_ns``.
    :ivar extended_at_ns: when the groups after ``memory`` were read (monotonic); None: at ``at_ns``.
    :ivar missing: for each absent group, why.
    :ivar per_process: a row for each process, only when the tick asked.
    """

    at_ns: int
    taken_at_ns: int
    memory_at_ns: int | None = None
    extended_at_ns: int | None = None
    missing: Mapping[str, MissingReason] = {}
    cpu: CpuUsage = NO_CPU
    memory: MemoryUsage = NO_MEMORY
    io: IoUsage = NO_IO
    network: NetworkUsage = NO_NETWORK
    processes: ProcessUsage = NO_PROCESSES
    pressure: PressureUsage = NO_PRESSURE
    per_process: tuple[ProcessRow, ...] | None = None


class TaskResourceUsage(msgspec.Struct, frozen=True, gc=False):
    """One reading of a task: its counters and the rates derived from them.

    :ivar at_ns: when it was true, ``time.monotonic_ns()``.
    :ivar taken_at_ns: the same moment as Unix time, nanoseconds.
    :ivar memory_at_ns: when ``memory`` was really read (monotonic); None: at ``at_ns``.
    :ivar extended_at_ns: when the groups after ``memory`` were really read; None: at ``at_ns``.
    :ivar window_ns: what the rates cover, nanoseconds; None at the first reading and after a counter went back.
    :ivar measured: names (``cpu.percent``, …) of the fields that this task's readings carry: one constant per task, so
        that a series does not come and go.
    :ivar missing: for each absent group, why; may change.
    """

    at_ns: int
    taken_at_ns: int
    memory_at_ns: int | None = None
    extended_at_ns: int | None = None
    window_ns: int | None = None
    measured: frozenset[str] = frozenset()
    missing: Mapping[str, MissingReason] = {}
    cpu: CpuUsage = NO_CPU
    memory: MemoryUsage = NO_MEMORY
    io: IoUsage = NO_IO
    network: NetworkUsage = NO_NETWORK
    processes: ProcessUsage = NO_PROCESSES
    pressure: PressureUsage = NO_PRESSURE
    per_process: tuple[ProcessRow, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class RunUsage:
    """What a whole run used, from the kernel's own totals and peaks where there are any.

    :ivar wall_ns: from start to end, nanoseconds.
    :ivar cpu_total_ns: user and system CPU time of all processes, ended ones included, nanoseconds.
    :ivar cpu_user_ns: of it in user mode.
    :ivar cpu_system_ns: of it in the kernel.
    :ivar cpu_percent_average: ``cpu_total_ns / wall_ns × 100``, percent of one core.
    :ivar cpu_percent_peak: the highest percent over a window of at least 0.5 s, never below the average; None where
        no window was that long.
    :ivar memory_peak_bytes: the largest memory in use that is known, bytes.
    :ivar memory_measure: what that figure is, see :data:`MemoryMeasure`.
    :ivar minor_faults: page faults served without IO.
    :ivar major_faults: page faults that needed IO.
    :ivar voluntary_switches: context switches because a thread waited.
    :ivar involuntary_switches: context switches because another was due.
    :ivar io_read_bytes: bytes fetched from storage.
    :ivar io_write_bytes: bytes sent to storage.
    :ivar oom_kills: processes killed for lack of memory.
    :ivar throttled_percent: throttled periods in a hundred periods of the CPU quota.
    :ivar throttled_ns: time held back by the CPU quota, nanoseconds.
    :ivar cpu_limit_percent: ``cpu_percent_average / cpu_quota_cores``: share of the CPU quota.
    :ivar memory_limit_percent: ``memory_peak_bytes`` as percent of the memory limit.
    :ivar processes_seen: different processes counted.
    :ivar readings: readings taken.
    :ivar readings_dropped: readings that a slow consumer did not get.
    :ivar since_recovery: peaks and counts of readings begin at a recovery, not at the start; totals are whole.
    """

    wall_ns: int | None = None
    cpu_total_ns: int | None = None
    cpu_user_ns: int | None = None
    cpu_system_ns: int | None = None
    cpu_percent_average: float | None = None
    cpu_percent_peak: float | None = None
    memory_peak_bytes: int | None = None
    memory_measure: MemoryMeasure | None = None
    minor_faults: int | None = None
    major_faults: int | None = None
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    oom_kills: int | None = None
    throttled_percent: float | None = None
    throttled_ns: int | None = None
    cpu_limit_percent: float | None = None
    memory_limit_percent: float | None = None
    processes_seen: int | None = None
    readings: int = 0
    readings_dropped: int = 0
    since_recovery: bool = False
