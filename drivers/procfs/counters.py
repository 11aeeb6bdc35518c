"""What a task's process tree used, as the counters of the contract.

CPU time of all its processes, ended ones included; memory as the sum of resident sets or as PSS; IO, context switches,
swap and peaks in the second tier. A tree has no network of its own here and no pressure figures.
"""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from cameleer.errors import TaskNotFound
from cameleer.usage import NO_IO, NO_PROCESSES, Counters, CpuUsage, IoUsage, MemoryUsage, ProcessUsage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cameleer.driver import Tick
    from cameleer.drivers.procfs.table import ProcessTable
    from cameleer.drivers.procfs.tree import Tree, TreeExtended, TreeUsage
    from cameleer.usage import MemoryMeasure, MissingReason

THRIFT = 50
"""What is dear is read again only after so many times of what it cost: that is at most 2 % of a core."""

_CHANGED = 50
"""PSS is read before its time is up when the sum of resident sets has changed by more than this part of it."""

_NONE_OF_ITS_OWN: Mapping[str, MissingReason] = MappingProxyType({"network": "unsupported", "pressure": "unsupported"})


class TreeCounters:
    """Turns one tree into :class:`~cameleer.usage.Counters`. One :meth:`read` at a time.

    CPU time, faults and resident sets are read each time, from one line of /proc for each process. IO, processes, swap
    and the peaks of single processes are the second tier: read when the tick asks, else handed over again under their
    own time (``extended_at_ns``). ``memory.peak_bytes`` is the largest memory in use that was seen here, and not less
    than the largest VmHWM, the kernel's own peak of a single process, that was seen.

    With ``memory="rss"`` the measure is ``rss_sum``, an upper bound where processes share pages; ``pss_bytes`` is then
    part of the second tier, which is read less often when that costs more than 2 % of a core.

    With ``memory="pss"`` PSS is the measure: it is as old as ``memory_at_ns`` says, while ``rss_bytes`` and the faults
    beside it are of ``at_ns``. It is read anew after ``process_stats_ttl_s``, or sooner when the resident sets have
    changed by 2 %, but never so often that it costs more than 2 % of a core. Where the kernel does not show PSS to us
    the measure is ``rss_sum`` after all, decided at the first reading.

    :ivar tree: the processes that are counted.
    :param table: shared by all tasks of the host.
    :param pid: the root.
    :param include_root: whether the root itself counts; a supervisor does not, but the CPU time of its ended children.
    :param memory: what shall stand for "memory in use".
    :param process_stats_ttl_s: how old PSS may get, seconds.
    :raises TaskNotFound: there is no such process.
    """

    def __init__(
        self,
        table: ProcessTable,
        pid: int,
        *,
        include_root: bool = True,
        memory: Literal["rss", "pss"] = "rss",
        process_stats_ttl_s: float = 5.0,
    ) -> None:
        self._table = table
        self.tree: Tree = table.track(pid, include_root)
        self._measure: MemoryMeasure = "pss" if memory == "pss" else "rss_sum"
        self._ttl_ns = int(process_stats_ttl_s * 1e9)
        self._last: Counters | None = None
        self._missing = _NONE_OF_ITS_OWN
        self._peak_bytes = 0
        self._swap_bytes: int | None = None
        self._io = NO_IO
        self._processes = NO_PROCESSES
        self._extended_at_ns: int | None = None
        self._extended_due_ns = 0
        self._pss_bytes: int | None = None
        self._pss_at_ns: int | None = None
        self._pss_due_ns = 0
        self._pss_allowed_ns = 0
        self._pss_rss_bytes = 0

    def read(self, tick: Tick) -> Counters:
        """Count the tree. Once its root is gone the last counters are the answer, under their own time.

        The last counters of a tree without a process are true to the end: a supervisor is still there to ask.

        :raises TaskNotFound: the root was gone before the first reading.
        :raises UnrecoverableError: it was closed, or /proc may not be read.
        :raises RecoverableError: a text of /proc is garbled, or descriptors are used up.
        """
        tree = self.tree
        try:
            self._table.refresh(tick)
            at_ns, taken_at_ns = time.monotonic_ns(), time.time_ns()
            usage = tree.usage()
            if self._measure == "pss" and self._pss_is_due(tick, at_ns, usage.rss_bytes):
                self._read_pss(at_ns, usage.rss_bytes)
            if tick.fresh or self._extended_at_ns is None or (tick.extended and at_ns >= self._extended_due_ns):
                self._read_extended(at_ns, usage)
            rows = tree.rows() if tick.per_process else None
        except TaskNotFound:
            if self._last is None:
                raise
            return self._last
        pss_is_measure = self._measure == "pss"
        in_use = self._pss_bytes if pss_is_measure else usage.rss_bytes
        if in_use is not None and in_use > self._peak_bytes:
            self._peak_bytes = in_use
        user_ns, system_ns = usage.cpu_user_ns, usage.cpu_system_ns
        self._last = counters = Counters(
            at_ns=at_ns,
            taken_at_ns=taken_at_ns,
            memory_at_ns=self._pss_at_ns if pss_is_measure and self._pss_at_ns != at_ns else None,
            extended_at_ns=self._extended_at_ns if self._extended_at_ns != at_ns else None,
            missing=self._missing,
            cpu=CpuUsage(total_ns=user_ns + system_ns, user_ns=user_ns, system_ns=system_ns),
            memory=MemoryUsage(
                rss_bytes=usage.rss_bytes,
                pss_bytes=self._pss_bytes,
                swap_bytes=self._swap_bytes,
                peak_bytes=self._peak_bytes,
                minor_faults=usage.minor_faults,
                major_faults=usage.major_faults,
                measure=self._measure,
            ),
            io=self._io,
            processes=self._processes,
            per_process=rows,
        )
        return counters

    def close(self) -> None:
        """Let go of the tree; twice without error. A reading that runs in another thread is not disturbed."""
        self._table.untrack(self.tree)

    def _read_extended(self, at_ns: int, usage: TreeUsage) -> None:
        began_ns = time.thread_time_ns()
        extended = self.tree.extended()
        self._extended_at_ns = at_ns
        self._swap_bytes = extended.swap_bytes
        if extended.peak_process_bytes is not None and extended.peak_process_bytes > self._peak_bytes:
            self._peak_bytes = extended.peak_process_bytes
        self._processes = ProcessUsage(
            processes=usage.processes,
            threads=usage.threads,
            seen=usage.seen,
            voluntary_switches=extended.voluntary_switches,
            involuntary_switches=extended.involuntary_switches,
        )
        self._take_io(extended)
        if self._measure != "pss":
            self._pss_bytes = self.tree.pss()
        self._extended_due_ns = at_ns + THRIFT * (time.thread_time_ns() - began_ns)

    def _take_io(self, extended: TreeExtended) -> None:
        reason = extended.io_missing
        if reason is None:
            self._missing = _NONE_OF_ITS_OWN
            self._io = IoUsage(
                read_bytes=extended.read_bytes,
                write_bytes=extended.write_bytes,
                read_ops=extended.read_ops,
                write_ops=extended.write_ops,
            )
        elif self._missing.get("io") != reason:
            self._missing = MappingProxyType({"io": reason, **_NONE_OF_ITS_OWN})
            self._io = NO_IO

    def _pss_is_due(self, tick: Tick, at_ns: int, rss_bytes: int) -> bool:
        if tick.fresh or self._pss_at_ns is None or at_ns >= self._pss_due_ns:
            return True
        changed = abs(rss_bytes - self._pss_rss_bytes) * _CHANGED > self._pss_rss_bytes
        return changed and at_ns >= self._pss_allowed_ns

    def _read_pss(self, at_ns: int, rss_bytes: int) -> None:
        began_ns = time.thread_time_ns()
        self._pss_bytes = self.tree.pss()
        if self._pss_bytes is None and self._pss_at_ns is None:
            self._measure = "rss_sum"
        self._pss_at_ns = at_ns
        self._pss_rss_bytes = rss_bytes
        self._pss_allowed_ns = at_ns + THRIFT * (time.thread_time_ns() - began_ns)
        self._pss_due_ns = max(at_ns + self._ttl_ns, self._pss_allowed_ns)
