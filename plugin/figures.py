"""What measuring costs: the collector's own figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Totals since the host opened.

    :ivar sweeps: batches of tasks read.
    :ivar readings: readings delivered.
    :ivar cpu_ns: CPU time spent reading, deriving and delivering, nanoseconds.
    :ivar cpu_ns_per_sweep: the same for one sweep, on average; None before the first.
    :ivar late_ticks: wake-ups, and readings of drivers that stream, later than a tenth of their interval.
    :ivar missed_ticks: wake-ups that did not happen at all, or found the last sweep still running.
    :ivar dropped: readings that a slow reader of ``Task.readings()`` did not get.
    :ivar dropped_by_plugin: readings that a slow hook plugin did not get.
    :ivar errors_by_driver: failed readings and calls.
    :ivar abandoned_by_driver: calls that passed their deadline.
    :ivar measured_tasks: tasks that are measured now.
    """

    sweeps: int
    readings: int
    cpu_ns: int
    cpu_ns_per_sweep: float | None
    late_ticks: int
    missed_ticks: int
    dropped: int
    dropped_by_plugin: Mapping[str, int]
    errors_by_driver: Mapping[str, int]
    abandoned_by_driver: Mapping[str, int]
    measured_tasks: int


class Tally:
    """The same, while they are counted."""

    __slots__ = ("abandoned", "cpu_ns", "dropped", "errors", "late_ticks", "missed_ticks", "readings", "sweeps")

    def __init__(self) -> None:
        self.sweeps = 0
        self.readings = 0
        self.cpu_ns = 0
        self.late_ticks = 0
        self.missed_ticks = 0
        self.dropped = 0
        self.errors: Counter[str] = Counter()
        self.abandoned: Counter[str] = Counter()
