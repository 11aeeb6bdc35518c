"""Measuring tasks: who wants which readings, how they begin and end, and what happens when a read fails.

Nothing is measured unless it is published or somebody looks. What runs at each tick is in :mod:`cameleer.sweep`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from cameleer.driver import RunningTask
from cameleer.errors import (
    PluginShutdown,
    RecoverableError,
    StatsNotImplemented,
    TaskNotFound,
    UnrecoverableError,
)
from cameleer.log import fields, log
from cameleer.measurement import DRIVER_FAULTS, Measurement, completed, is_our_own, only_streams
from cameleer.rates import derive, measured_fields
from cameleer.readings import Readings
from cameleer.retrying import is_recoverable, retry
from cameleer.streams import Streams
from cameleer.sweep import Sweeps
from cameleer.threads import post
from cameleer.usage import Counters, TaskResourceUsage

if TYPE_CHECKING:
    from cameleer.calls import Calls
    from cameleer.figures import Tally
    from cameleer.life import Life
    from cameleer.measurement import Pair
    from cameleer.telemetry import Telemetry


class Collector:
    """Everything that is measured by one host.

    :param publish: takes the readings of a sweep, for the hook plugins.
    :param deadline_s: how long a read may take.
    """

    def __init__(
        self, telemetry: Telemetry, calls: Calls, tally: Tally, publish: Callable[[list[Pair]], None], deadline_s: float
    ) -> None:
        self._telemetry = telemetry
        self._calls = calls
        self._tally = tally
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._sweeps = Sweeps(tally, self._failed, publish, deadline_s)
        self._sweeps.extended_interval_s = telemetry.extended_interval_s
        self._streams = Streams(
            calls, tally, noted=self._note, recovered=self._recovered, given_up=self._give_up, publish=publish
        )
        self._measured: dict[Life, list[Measurement]] = {}
        self._wished: set[Life] = set()
        self._samples: dict[tuple[Life, float, bool], asyncio.Task[TaskResourceUsage]] = {}

    @property
    def measured_tasks(self) -> int:
        """How many tasks are measured now."""
        return len(self._measured)

    # -- who wants what ------------------------------------------------------------------------------------------

    def wish(self, life: Life) -> None:
        """Publish this task's readings whenever publishing is on; again, anew."""
        self.unwish(life)
        self._wished.add(life)
        if self._telemetry.publish_allocation_metrics and life.running is not None and not life.over:
            self._measurement(life, life.running, self._telemetry.interval_s, False).publish = True

    def unwish(self, life: Life) -> None:
        """Publish this task's readings no more."""
        self._wished.discard(life)
        for measurement in list(self._measured.get(life, ())):
            measurement.publish = False
            self._drop_if_unwanted(measurement)

    def switch(self, telemetry: Telemetry) -> None:
        """Use another configuration from now on."""
        if telemetry == self._telemetry:
            return
        self._telemetry = telemetry
        self._sweeps.extended_interval_s = telemetry.extended_interval_s
        for life in list(self._wished):
            self.wish(life)

    def readings(self, life: Life, interval_s: float | None, per_process: bool) -> Readings:
        """Measure for one more reader, for as long as it looks.

        :raises UnrecoverableError: the task has ended.
        """
        running = self._running(life)
        interval = self._telemetry.interval_s if interval_s is None else interval_s
        if not 0.01 <= interval <= 86400:
            raise ValueError(f"interval_s is {interval_s!r}: it must be 0.01 to 86400 seconds")

        def dropped() -> None:
            life.account.dropped += 1
            self._tally.dropped += 1

        readings = Readings(dropped)
        measurement = readings.measurement = self._measurement(life, running, interval, per_process)
        loop, left = self._loop, self._reader_left
        # the reader may be dropped in any thread: the garbage collector runs where it runs
        measurement.readers += (weakref.ref(readings, lambda _: post(loop, left, measurement)),)
        return readings

    def _reader_left(self, measurement: Measurement) -> None:
        measurement.readers = tuple(each for each in measurement.readers if each() is not None)
        self._drop_if_unwanted(measurement)

    def _running(self, life: Life) -> RunningTask:
        if life.over:
            raise UnrecoverableError(f"the task {life.id} has ended: there is nothing to measure any more")
        if life.running is None:
            raise RecoverableError(f"the task {life.id} is out of reach for now: {life.unreachable or 'not started'}")
        if not life.driver.capabilities.stats:
            raise StatsNotImplemented(f"the driver {life.driver.name} offers no statistics")
        return life.running

    def _measurement(self, life: Life, running: RunningTask, interval_s: float, per_process: bool) -> Measurement:
        mine = self._measured.setdefault(life, [])
        for measurement in mine:
            if measurement.interval_s == interval_s and measurement.per_process == per_process:
                return measurement
        measurement = Measurement(life, running, interval_s, per_process)
        mine.append(measurement)
        if only_streams(running):
            self._streams.follow(measurement, running)
        else:
            measurement.work = self._calls.spawn(self._first(measurement))
        return measurement

    def _drop_if_unwanted(self, measurement: Measurement) -> None:
        if not measurement.publish and not any(each() is not None for each in measurement.readers):
            self._drop(measurement)

    def _drop(self, measurement: Measurement) -> None:
        self._rest(measurement)
        self._streams.discard(measurement)
        self._no_longer_failing(measurement)
        mine = self._measured.get(measurement.life)
        if mine is not None and measurement in mine:
            mine.remove(measurement)
            if not mine:
                del self._measured[measurement.life]

    def _rest(self, measurement: Measurement) -> None:
        """Neither sweep it nor follow its stream nor try again."""
        self._sweeps.unschedule(measurement)
        work, measurement.work = measurement.work, None
        if work is not None and work is not asyncio.current_task():
            work.cancel()

    # -- first and single readings -------------------------------------------------------------------------------

    async def _first(self, measurement: Measurement) -> None:
        """Join the sweep, and read at once."""
        self._sweeps.schedule(measurement)
        try:
            self._single(measurement, await self._read(measurement.life, measurement.per_process))
        except DRIVER_FAULTS as error:
            if is_our_own(error):
                raise
            measurement.work = None
            self._failed(measurement, error)
        else:
            measurement.work = None

    def _single(self, measurement: Measurement, counters: Counters) -> None:
        batch: list[Pair] = []
        measurement.deliver(counters, batch)
        self._tally.readings += 1
        if batch:
            self._publish(batch)

    async def _read(self, life: Life, per_process: bool = False) -> Counters:
        return await self._sweeps.read(life, self._running(life), self._sweeps.tick(per_process=per_process))

    async def sample(self, life: Life, window_s: float, per_process: bool) -> TaskResourceUsage:
        """Measure once, over a window; callers within one window share it."""
        if not 0.01 <= window_s <= 3600:
            raise ValueError(f"window_s is {window_s!r}: it must be 0.01 to 3600 seconds")
        self._running(life)
        key = (life, window_s, per_process)
        task = self._samples.get(key)
        if task is None:
            task = self._samples[key] = self._calls.spawn(self._sample(life, window_s, per_process))
            task.add_done_callback(lambda _: self._samples.pop(key, None))
        return await asyncio.shield(task)

    async def _sample(self, life: Life, window_s: float, per_process: bool) -> TaskResourceUsage:
        running = self._running(life)
        if only_streams(running):
            first, last = await _two_of_stream(running, window_s)
        else:
            first = await self._read(life, per_process)
            await asyncio.sleep(window_s)
            last = await self._read(life, per_process)
        measured = life.measured or measured_fields(last, life.limits, life.node)
        usage = derive(first, last, life.limits, life.node, measured)
        life.account.add(usage)
        return usage

    # -- failures ------------------------------------------------------------------------------------------------

    def _failed(self, member: Measurement, error: BaseException) -> None:
        """Take a task out of the sweep: read it again later, or no more."""
        self._sweeps.unschedule(member)
        if member not in self._measured.get(member.life, ()):  # dropped meanwhile
            return
        if not isinstance(error, Exception):
            error = RecoverableError(f"the driver {member.life.driver.name} raised {error!r} in read")
        if isinstance(error, TaskNotFound):  # it is just ending: its last reading comes with its end
            return
        if not is_recoverable(error):
            self._give_up(member, error)
            return
        self._note(member, error)
        member.work = self._calls.spawn(self._again(member, error))

    def _note(self, member: Measurement, error: Exception) -> None:
        """Count and log a failure that may pass."""
        driver = member.life.driver
        self._tally.errors[driver.name] += 1
        if isinstance(error, PluginShutdown):
            extra = fields(task_id=member.life.id, driver=driver.name)
            log.debug("the driver %s is shutting down: %s", driver.name, error, extra=extra)
            return
        driver.failing.add(member)
        driver.problem = driver.problem or f"reading task {member.life.id} failed: {error}"
        member.failing.report(
            f"cannot measure task {member.life.id} of {driver.name}", error, task_id=member.life.id, driver=driver.name
        )

    def _give_up(self, member: Measurement, error: Exception) -> None:
        log.debug(
            "task %s is not measured any more: %s",
            member.life.id,
            error,
            extra=fields(task_id=member.life.id, driver=member.life.driver.name),
        )
        member.finish(None if member.life.over else error)
        self._drop(member)

    async def _again(self, member: Measurement, error: Exception) -> None:
        async def attempt() -> Counters:
            return await self._read(member.life, member.per_process)

        wait = member.life.driver.cls.retry
        try:
            counters = await retry(attempt, failure=error, wait=wait, failed=lambda each: self._note(member, each))
        except TaskNotFound:
            member.work = None
            return
        except UnrecoverableError as final:
            self._give_up(member, final)
            return
        member.work = None
        self._recovered(member)
        self._sweeps.schedule(member)
        self._single(member, counters)

    def _recovered(self, member: Measurement) -> None:
        member.failing.reset()
        self._no_longer_failing(member)

    def _no_longer_failing(self, member: Measurement) -> None:
        driver = member.life.driver
        if member in driver.failing:
            driver.failing.discard(member)
            driver.behaves()

    # -- ends ----------------------------------------------------------------------------------------------------

    async def finish(self, life: Life, final: Counters | None) -> None:
        """A task has ended: its last reading, then the end of its readings.

        :param final: the kernel's own totals; without them a measured task is read once more.
        """
        measurements = list(self._measured.get(life, ()))
        for measurement in measurements:
            measurement.info = life.info
            self._rest(measurement)
        await self._sweeps.quiet(life)
        last = final
        if last is None and measurements and life.running is not None and not only_streams(life.running):
            last = await self._last(life, life.running)
        for measurement in measurements:
            if last is not None:
                self._last_reading(measurement, last)
            measurement.finish()
            self._drop(measurement)
        self._wished.discard(life)

    async def _last(self, life: Life, running: RunningTask) -> Counters | None:
        try:
            return await self._sweeps.read(life, running, self._sweeps.tick())
        except DRIVER_FAULTS as error:
            if is_our_own(error):
                raise
            log.debug("task %s has no last reading: %r", life.id, error, extra=fields(task_id=life.id))
            return None

    def _last_reading(self, measurement: Measurement, last: Counters) -> None:
        try:
            self._single(measurement, completed(last, measurement.previous))
        except DRIVER_FAULTS as error:
            self._note(measurement, error if isinstance(error, Exception) else RecoverableError(repr(error)))

    async def forget(self, life: Life) -> None:
        """Measure this task no more, and return when no read of it is in progress, or its deadline has passed."""
        self._wished.discard(life)
        for measurement in list(self._measured.get(life, ())):
            measurement.finish()
            self._drop(measurement)
        await self._sweeps.quiet(life)

    def close(self) -> None:
        """Measure nothing any more."""
        for measurements in list(self._measured.values()):
            for measurement in list(measurements):
                measurement.finish()
                self._drop(measurement)
        for task in list(self._samples.values()):
            task.cancel()
        self._streams.close()


async def _two_of_stream(running: RunningTask, window_s: float) -> tuple[Counters, Counters]:
    found: list[Counters] = []
    async with aclosing(running.stats(window_s)) as source:
        async for each in source:
            found.append(each)
            if len(found) == 2:
                break
    if not found:
        raise RecoverableError("the stream ended without a reading")
    return found[0], found[-1]
