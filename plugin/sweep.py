"""Reading tasks: many at a wake-up, in the loop or in a driver's thread, or one by itself.

The hot path is :meth:`Sweeps.read_members`: for each task of a slice one call of its ``read``, one ``derive``, one
entry in the batch for the hook plugins. Reads of one task never overlap: while one hangs, no other is made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cameleer.driver import Tick
from cameleer.errors import DeadlineExceeded
from cameleer.measurement import DRIVER_FAULTS, Measurement, checked
from cameleer.scheduler import Scheduler, Slice
from cameleer.threads import post

if TYPE_CHECKING:
    from cameleer.driver import RunningTask
    from cameleer.figures import Tally
    from cameleer.life import Life
    from cameleer.measurement import Pair
    from cameleer.opened import OpenDriver
    from cameleer.usage import Counters

HOLD_THE_LOOP_NS = 10_000_000
"""Longest stretch of reading in the event loop, nanoseconds; then others have their turn."""


class Group:
    """The measurements of one slice that are read in one go: those of one driver.

    :ivar batch: the one that is being read in the driver's thread.
    """

    __slots__ = ("batch", "driver", "members", "per_process")

    def __init__(self, driver: OpenDriver, per_process: bool) -> None:
        self.driver = driver
        self.per_process = per_process
        self.members: list[Measurement] = []
        self.batch: Batch | None = None

    def was_read(self, _: object) -> None:
        """The batch was read, or given up."""
        self.batch = None


class Batch:
    """Reads under way in a driver's thread.

    :ivar current: position of the read that is being made.
    :ivar done: set when all were made, or the batch was given up.
    :ivar returned: set when all were made, or the one that hung has returned.
    """

    __slots__ = ("abandoned", "cpu_ns", "current", "done", "driver", "lives", "reads", "results", "returned", "timer")

    def __init__(self, driver: OpenDriver, lives: list[Life], reads: list[Callable[[Tick], Counters]]) -> None:
        loop = asyncio.get_running_loop()
        self.driver = driver
        self.lives = lives
        self.reads = reads
        self.results: list[Counters | BaseException] = []
        self.current = 0
        self.abandoned = False
        self.cpu_ns = 0
        self.done: asyncio.Future[None] = loop.create_future()
        self.returned: asyncio.Future[None] = loop.create_future()
        self.timer: asyncio.TimerHandle | None = None

    def make(self, tick: Tick) -> None:
        """Make all reads, in the driver's thread; stop after one that was given up."""
        began = time.thread_time_ns()
        for read in self.reads:
            try:
                self.results.append(read(tick))
            except BaseException as error:  # it is that task's, whatever it is
                self.results.append(error)
            if self.abandoned:
                return
            self.current += 1
        self.cpu_ns = time.thread_time_ns() - began

    @property
    def culprit(self) -> int:
        """Position of the read that hangs."""
        return min(self.current, len(self.reads) - 1)


class Sweeps:
    """All reads of one host.

    :param failed: told of a measurement whose read failed; it takes it out of the sweep.
    :param publish: takes the readings of a sweep, for the hook plugins.
    :param deadline_s: how long a read may take.
    :ivar extended_interval_s: how often the dear groups are asked for.
    """

    def __init__(
        self,
        tally: Tally,
        failed: Callable[[Measurement, BaseException], None],
        publish: Callable[[list[Pair]], None],
        deadline_s: float,
    ) -> None:
        self.extended_interval_s = 5.0
        self._tally = tally
        self._failed = failed
        self._publish = publish
        self._deadline_s = deadline_s
        self._loop = asyncio.get_running_loop()
        self._schedulers: dict[float, Scheduler] = {}
        self._batches: set[Batch] = set()

    # -- when ----------------------------------------------------------------------------------------------------

    def schedule(self, measurement: Measurement) -> None:
        """Read this at each wake-up of its slice, but not in the half of an interval that follows: it is read now."""
        interval = measurement.interval_s
        measurement.not_before_ns = int((self._loop.time() + interval / 2) * 1e9)
        scheduler = self._schedulers.get(interval)
        if scheduler is None:
            scheduler = self._schedulers[interval] = Scheduler(interval, self._sweep, _group, self._tally)
        scheduler.add(measurement)

    def unschedule(self, measurement: Measurement) -> None:
        """Read it no more; harmless if it is not in."""
        scheduler = self._schedulers.get(measurement.interval_s)
        if scheduler is not None:
            scheduler.remove(measurement)
            if not scheduler:
                del self._schedulers[measurement.interval_s]

    def tick(self, *, extended: bool = True, per_process: bool = False, fresh: bool = True) -> Tick:
        """Make a tick of now; as it is, for a first, last or asked-for reading: everything is wanted, and fresh."""
        return Tick(int(self._loop.time() * 1e9), extended=extended, per_process=per_process, fresh=fresh)

    def _sweep(self, scheduler: Scheduler, place: Slice, now: float) -> None:
        extended = now >= place.extended_due
        if extended:
            place.extended_due = now + self.extended_interval_s - scheduler.interval_s / 2
        for group in list(place.groups.values()):
            tick = self.tick(extended=extended, per_process=group.per_process, fresh=False)
            if group.driver.reader is None:
                self.read_members(group.members.copy(), tick, 0)
            elif group.batch is not None:  # the last one is not finished
                self._tally.missed_ticks += 1
            else:
                self._sweep_in_thread(group, tick)

    # -- in the loop ---------------------------------------------------------------------------------------------

    def read_members(self, members: list[Measurement], tick: Tick, start: int) -> None:
        """Read in the loop, and let others have their turn after 10 ms.

        :param start: the first that was not read yet.
        """
        began = time.thread_time_ns()
        limit = time.monotonic_ns() + HOLD_THE_LOOP_NS
        batch: list[Pair] = []
        readings = 0
        at_ns = tick.at_ns
        for index in range(start, len(members)):
            if not index & 15 and time.monotonic_ns() > limit and index > start:
                self._loop.call_soon(self.read_members, members, tick, index)
                break
            member = members[index]
            if member.not_before_ns:
                if member.not_before_ns > at_ns:
                    continue
                member.not_before_ns = 0
            if member.place is None:
                continue
            try:
                member.deliver(member.read(tick), batch)
            except DRIVER_FAULTS as error:
                self._failed(member, error)
            else:
                readings += 1
        if batch:
            self._publish(batch)
        tally = self._tally
        tally.sweeps += start == 0
        tally.readings += readings
        tally.cpu_ns += time.thread_time_ns() - began

    # -- in a driver's thread ------------------------------------------------------------------------------------

    def _sweep_in_thread(self, group: Group, tick: Tick) -> None:
        due = [each for each in group.members if each.not_before_ns <= tick.at_ns and each.life.hanging is None]
        if not due:
            return
        batch = Batch(group.driver, [each.life for each in due], [each.read for each in due])
        group.batch = batch
        batch.done.add_done_callback(group.was_read)
        batch.returned.add_done_callback(lambda _: self._was_swept(batch, due))
        self._submit(batch, tick)

    def _was_swept(self, batch: Batch, due: list[Measurement]) -> None:
        if batch.abandoned:  # its results are thrown away; the next tick reads all of them again
            return
        began = time.thread_time_ns()
        out: list[Pair] = []
        for member, result in zip(due, batch.results, strict=True):
            if member.place is None:  # dropped meanwhile
                continue
            try:
                if isinstance(result, BaseException):
                    raise result
                member.deliver(result, out)
            except DRIVER_FAULTS as error:
                self._failed(member, error)
            else:
                self._tally.readings += 1
        if out:
            self._publish(out)
        self._tally.sweeps += 1
        self._tally.cpu_ns += batch.cpu_ns + time.thread_time_ns() - began

    def _submit(self, batch: Batch, tick: Tick) -> None:
        assert batch.driver.reader is not None
        batch.timer = self._loop.call_later(self._deadline_s, self._hangs, batch)
        self._batches.add(batch)

        def job() -> None:
            batch.make(tick)
            post(self._loop, self._came_back, batch)

        batch.driver.reader.submit(job)

    def _hangs(self, batch: Batch) -> None:
        driver, life = batch.driver, batch.lives[batch.culprit]
        assert driver.reader is not None
        batch.abandoned = True
        life.hanging = batch.returned
        self._tally.abandoned[driver.name] += 1
        driver.failing.add(life)
        driver.misbehaves(f"{driver.name}.read of task {life.id} did not return within {self._deadline_s:g} s")
        driver.reader.replace()
        batch.done.set_result(None)

    def _came_back(self, batch: Batch) -> None:
        if batch.timer is not None:
            batch.timer.cancel()
        self._batches.discard(batch)
        if batch.abandoned:
            life = batch.lives[batch.culprit]
            life.hanging = None
            batch.driver.failing.discard(life)
            batch.driver.behaves()
        else:
            batch.done.set_result(None)
        batch.returned.set_result(None)

    # -- one by itself -------------------------------------------------------------------------------------------

    async def read(self, life: Life, running: RunningTask, tick: Tick) -> Counters:
        """Read one task by itself, in the driver's thread where it may block, after a read of it that hangs.

        :raises DeadlineExceeded: the read did not return in time.
        :raises RecoverableError: it gave nonsense.
        """
        driver = life.driver
        if driver.reader is None:
            return checked(running.read(tick), driver.name)
        while life.hanging is not None:
            await asyncio.shield(life.hanging)
        batch = Batch(driver, [life], [running.read])
        self._submit(batch, tick)
        await asyncio.shield(batch.done)
        if batch.abandoned:
            raise DeadlineExceeded(f"{driver.name}.read of task {life.id} did not return within its deadline")
        result = batch.results[0]
        if isinstance(result, BaseException):
            raise result
        return checked(result, driver.name)

    async def quiet(self, life: Life) -> None:
        """Wait until no read of this task is in progress, or the deadline has passed."""
        busy = [batch.done for batch in self._batches if not batch.done.done() and life in batch.lives]
        if busy:
            await asyncio.wait(busy, timeout=self._deadline_s)


def _group(measurement: Measurement) -> Group:
    return Group(measurement.life.driver, measurement.per_process)
