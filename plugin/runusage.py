"""The summary of a run: peaks seen while it was measured, and the kernel's own totals at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cameleer.rates import rate_percent
from cameleer.usage import NO_CPU, Counters, MemoryMeasure, RunUsage, TaskResourceUsage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cameleer.config import Resources

    _Source = Counters | TaskResourceUsage

PEAK_WINDOW_NS = 500_000_000
"""Shortest window of a peak percentage: below it the kernel's 10 ms ticks would show as peaks."""


class RunAccount:
    """What is remembered of a task's readings."""

    __slots__ = ("_base", "_base_at_ns", "dropped", "last", "memory_measure", "memory_peak_bytes", "peak", "readings")

    def __init__(self) -> None:
        self.readings = 0
        self.dropped = 0
        self.peak: float | None = None
        self.memory_peak_bytes = -1
        self.memory_measure: MemoryMeasure | None = None
        self.last: TaskResourceUsage | None = None
        self._base: int | None = None
        self._base_at_ns = 0

    def add(self, usage: TaskResourceUsage) -> None:
        """Remember a reading; called for every one, so it does little."""
        self.readings += 1
        self.last = usage
        memory = usage.memory
        measure = memory.measure
        if measure == "cgroup":
            in_use = memory.working_set_bytes
        else:
            in_use = memory.pss_bytes if measure == "pss" else memory.rss_bytes
        if in_use is not None and in_use > self.memory_peak_bytes:
            self.memory_peak_bytes = in_use
            self.memory_measure = measure
        window_ns = usage.window_ns
        if window_ns is not None and window_ns >= PEAK_WINDOW_NS:
            percent = usage.cpu.percent
            if percent is not None and (self.peak is None or percent > self.peak):
                self.peak = percent
        elif usage.at_ns - self._base_at_ns >= PEAK_WINDOW_NS:
            self._close_window(usage)

    def _close_window(self, usage: TaskResourceUsage) -> None:
        """Several short windows together are long enough for a peak."""
        if self._base is not None:
            percent = rate_percent(self._base, usage.cpu.total_ns, usage.at_ns - self._base_at_ns)
            if percent is not None and (self.peak is None or percent > self.peak):
                self.peak = percent
        self._base = usage.cpu.total_ns
        self._base_at_ns = usage.at_ns

    def summary(
        self, final: Counters | None, limits: Resources, wall_ns: int | None, *, since_recovery: bool
    ) -> RunUsage:
        """Sum up the run.

        :param final: the kernel's totals for the whole run; what they lack is taken from the last reading.
        :param wall_ns: from start to end, nanoseconds.
        """
        sources = [each for each in (final, self.last) if each is not None]
        cpu = next((each.cpu for each in sources if each.cpu.total_ns is not None), NO_CPU)
        average = rate_percent(0, cpu.total_ns, wall_ns) if wall_ns else None
        peak_bytes, measure = self._memory_peak(sources)
        quota, limit = limits.cpu_quota_cores, limits.memory_limit_bytes
        periods, throttled = _known(sources, "cpu", "periods"), _known(sources, "cpu", "throttled_periods")
        return RunUsage(
            wall_ns=wall_ns,
            cpu_total_ns=cpu.total_ns,
            cpu_user_ns=cpu.user_ns,
            cpu_system_ns=cpu.system_ns,
            cpu_percent_average=average,
            cpu_percent_peak=self._cpu_peak(average, wall_ns),
            memory_peak_bytes=peak_bytes,
            memory_measure=measure,
            minor_faults=_known(sources, "memory", "minor_faults"),
            major_faults=_known(sources, "memory", "major_faults"),
            voluntary_switches=_known(sources, "processes", "voluntary_switches"),
            involuntary_switches=_known(sources, "processes", "involuntary_switches"),
            io_read_bytes=_known(sources, "io", "read_bytes"),
            io_write_bytes=_known(sources, "io", "write_bytes"),
            oom_kills=_known(sources, "memory", "oom_kills"),
            throttled_percent=throttled * 100 / periods if periods and throttled is not None else None,
            throttled_ns=_known(sources, "cpu", "throttled_ns"),
            cpu_limit_percent=average / quota if average is not None and quota else None,
            memory_limit_percent=peak_bytes * 100 / limit if peak_bytes is not None and limit else None,
            processes_seen=_known(sources, "processes", "seen"),
            readings=self.readings,
            readings_dropped=self.dropped,
            since_recovery=since_recovery,
        )

    def _cpu_peak(self, average: float | None, wall_ns: int | None) -> float | None:
        """The highest window; the whole run is one too, and knows of processes that no sample saw."""
        if self.peak is None or average is None or not wall_ns or wall_ns < PEAK_WINDOW_NS:
            return self.peak
        return max(self.peak, average)

    def _memory_peak(self, sources: Sequence[_Source]) -> tuple[int | None, MemoryMeasure | None]:
        """Return the largest figure that is known; a cgroup's own peak is the truth and needs no comparison."""
        peaks = [
            (each.memory.peak_bytes, each.memory.measure) for each in sources if each.memory.peak_bytes is not None
        ]
        of_cgroup = [pair for pair in peaks if pair[1] == "cgroup"]
        if not of_cgroup and self.memory_peak_bytes >= 0:
            peaks.append((self.memory_peak_bytes, self.memory_measure))
        return max(of_cgroup or peaks, key=lambda pair: pair[0], default=(None, None))


def _known(sources: Sequence[_Source], group: str, field: str) -> int | None:
    """A counter, from the first source that has it."""
    for source in sources:
        value: int | None = getattr(getattr(source, group), field)
        if value is not None:
            return value
    return None
