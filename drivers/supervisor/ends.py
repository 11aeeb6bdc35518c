"""A supervisor's report of an end, as the contract says it."""

from __future__ import annotations

import os
import time

from cameleer.drivers.supervisor.protocol import Message, number
from cameleer.status import Exit
from cameleer.usage import Counters, CpuUsage, IoUsage, MemoryUsage, ProcessRow, ProcessUsage

_BLOCK_BYTES = 512
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def exit_of(message: Message) -> Exit:
    """The end of a task.

    CPU time is wait4's, in microseconds, of all that was waited for; peak memory is ``ru_maxrss``, the largest
    resident set that any one process had, where it cannot be a child's before its exec.
    """
    signum = number(message, "signal")
    return Exit(
        exit_code=number(message, "code"),
        signal=signum or None,
        counters=_counters(message),
        ended_at_ns=number(message, "ended_at_ns") or None,
        left_running=tuple(_row(data) for data in message.get("rest", ())),
    )


def _counters(message: Message) -> Counters:
    user_ns, system_ns = number(message, "user_us") * 1000, number(message, "system_us") * 1000
    peak_kib = number(message, "peak_kib")
    now_ns, unix_ns = time.monotonic_ns(), time.time_ns()
    ended_at_ns = min(number(message, "ended_at_ns"), unix_ns)
    return Counters(
        at_ns=max(now_ns - (unix_ns - ended_at_ns), 1),
        taken_at_ns=ended_at_ns,
        missing={"network": "unsupported", "pressure": "unsupported"},
        cpu=CpuUsage(total_ns=user_ns + system_ns, user_ns=user_ns, system_ns=system_ns),
        memory=MemoryUsage(
            peak_bytes=peak_kib * 1024 or None,
            measure="max_rss" if peak_kib else None,
            minor_faults=number(message, "minor_faults"),
            major_faults=number(message, "major_faults"),
        ),
        io=IoUsage(
            read_bytes=number(message, "read_blocks") * _BLOCK_BYTES,
            write_bytes=number(message, "written_blocks") * _BLOCK_BYTES,
        ),
        processes=ProcessUsage(
            voluntary_switches=number(message, "voluntary"), involuntary_switches=number(message, "involuntary")
        ),
    )


def _row(data: bytes) -> ProcessRow:
    pid, parent, state, start, user, system, rss, threads, name = data.split(b" ", 8)
    return ProcessRow(
        pid=int(pid),
        name=name.decode("utf-8", "backslashreplace"),
        ppid=int(parent),
        state=state.decode("ascii"),
        start_ticks=int(start),
        user_ns=int(user) * _TICK_NS,
        system_ns=int(system) * _TICK_NS,
        rss_bytes=int(rss) * _PAGE_BYTES,
        threads=int(threads),
    )
