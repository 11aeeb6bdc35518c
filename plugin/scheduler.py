"""One clock for all tasks that are measured at the same interval.

They are spread over slices of at most 250, each with one wake-up an interval, on a grid that does not drift. A wake-up
that comes late or not at all is counted. What is done at a wake-up is the owner's business.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING

from cameleer.beat import SLICE_SIZE, next_due, phase_of_slice

if TYPE_CHECKING:
    from cameleer.figures import Tally
    from cameleer.measurement import Measurement
    from cameleer.sweep import Group

LATE_SHARE = 0.1
"""A wake-up is late when it comes this share of the interval after its time, and at least 10 ms."""


class Slice:
    """Measurements that are read at the same wake-up, grouped by what can be read in one go.

    :ivar extended_due: loop time from which the next sweep reads the dear groups too.
    """

    __slots__ = ("due", "extended_due", "groups", "phase", "queued", "size")

    def __init__(self, phase: float) -> None:
        self.phase = phase
        self.groups: dict[object, Group] = {}
        self.size = 0
        self.due = 0.0
        self.queued = False
        self.extended_due = 0.0


class Scheduler:
    """Wakes the slices of one interval.

    :param interval_s: seconds, above 0.
    :param sweep: called with a slice that is due and the loop's time.
    :param make_group: makes the group that a first measurement of its kind joins.
    """

    def __init__(
        self,
        interval_s: float,
        sweep: Callable[[Scheduler, Slice, float], None],
        make_group: Callable[[Measurement], Group],
        tally: Tally,
    ) -> None:
        self.interval_s = interval_s
        self._late_s = max(interval_s * LATE_SHARE, 0.01)
        self._sweep = sweep
        self._make_group = make_group
        self._tally = tally
        self._loop = asyncio.get_running_loop()
        self._origin = self._loop.time()  # the grid begins with the first reading
        self.slices: list[Slice] = []
        self._queue: list[tuple[float, int]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, measurement: Measurement) -> None:
        """Measure this from its slice's next wake-up on."""
        place = self._free_slice()
        if not place.queued:
            self._queue_slice(place, self.slices.index(place), self._loop.time())
            self._arm()
        key = measurement.group_key
        group = place.groups.get(key)
        if group is None:
            group = place.groups[key] = self._make_group(measurement)
        group.members.append(measurement)
        measurement.place = (place, group)
        place.size += 1

    def _free_slice(self) -> Slice:
        for place in self.slices:
            if place.size < SLICE_SIZE:
                return place
        place = Slice(phase_of_slice(len(self.slices)))
        self.slices.append(place)
        return place

    def remove(self, measurement: Measurement) -> None:
        """Stop measuring this; harmless if it is not in."""
        if measurement.place is None:
            return
        place, group = measurement.place
        measurement.place = None
        group.members.remove(measurement)
        place.size -= 1
        if not group.members:
            del place.groups[measurement.group_key]
        if not self:
            self.close()

    def __bool__(self) -> bool:
        return any(place.size for place in self.slices)

    def close(self) -> None:
        """Wake nobody any more."""
        self._queue.clear()
        self.slices.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue:
            self._timer = self._loop.call_at(self._queue[0][0], self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._queue and self._queue[0][0] <= now + 1e-4:  # a timer may fire a clock's grain too early
            _, index = heapq.heappop(self._queue)
            place = self.slices[index]
            place.queued = False
            if place.size:
                self._count_delay(place, now)
                self._queue_slice(place, index, max(now, place.due))
                self._sweep(self, place, now)
        self._arm()

    def _queue_slice(self, place: Slice, index: int, after: float) -> None:
        place.due = self._origin + next_due(after - self._origin, self.interval_s, place.phase)
        place.queued = True
        heapq.heappush(self._queue, (place.due, index))

    def _count_delay(self, place: Slice, now: float) -> None:
        delay = now - place.due
        if delay > self._late_s:
            self._tally.late_ticks += 1
            self._tally.missed_ticks += int(delay / self.interval_s)
