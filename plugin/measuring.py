"""Measuring tasks: who is read when, what becomes of the counters, and what happens when a read fails.

The hot path is :meth:`Collector._read_members`: for each task of a slice one call of its ``read``, one ``derive``, one
entry in the batch for the hook plugins. Everything that can wait (retries, streams, first and last readings) is kept
out of it. Nothing is measured unless it is published or somebody looks.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import msgspec

from cameleer.driver import RunningTask, Tick
from cameleer.errors import (
    DeadlineExceeded,
    PluginShutdown,
    RecoverableError,
    StatsNotImplemented,
    TaskNotFound,
    UnrecoverableError,
)
from cameleer.log import Repeated, fields, log
from cameleer.rates import derive, measured_fields
from cameleer.retrying import is_recoverable, retry
from cameleer.scheduler import Scheduler, Slice
from cameleer.threads import post
from cameleer.usage import Counters, TaskResourceUsage

if TYPE_CHECKING:
    from cameleer.calls import Calls
    from cameleer.figures import Tally
    from cameleer.life import Life
    from cameleer.opened import OpenDriver
    from cameleer.task import TaskInfo
    from cameleer.telemetry import Telemetry

    Pair = tuple[TaskInfo, TaskResourceUsage]

G = TypeVar("G", bound=msgspec.Struct)

HOLD_THE_LOOP_NS = 10_000_000
"""Longest stretch of reading in the event loop, nanoseconds; then others have their turn."""

STALE_INTERVALS = 3
"""A stream that is silent for so many intervals is reported."""

_DRIVER_FAULTS = (Exception, SystemExit, asyncio.CancelledError)  # what a driver's code may raise at us


class Readings(AsyncIterator[TaskResourceUsage]):
    """The readings of one task for one reader: the latest wins, and it may be dropped at any time without closing."""

    def __init__(self, account_drop: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._usage: TaskResourceUsage | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: Exception | None = None
        self._account_drop = account_drop
        self.measurement: Measurement | None = None  # kept alive by its reader

    def put(self, usage: TaskResourceUsage) -> None:
        """Hand over a reading; one that was not taken is replaced and counted."""
        if self._usage is not None:
            self._account_drop()
        self._usage = usage
        self._wake()

    def finish(self, error: Exception | None = None) -> None:
        """No more readings; what was put is still taken."""
        self._ended = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def __aiter__(self) -> Readings:
        return self

    async def __anext__(self) -> TaskResourceUsage:
        if self._waiter is not None:
            raise RuntimeError("two readers wait on one iterator: give each its own readings()")
        while self._usage is None:
            if self._ended:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        usage, self._usage = self._usage, None
        return usage


class Measurement:
    """One task, measured at one interval for the hook plugins, for readers, or for both.

    Ten thousand of these do not fit into a processor's cache: what the sweep needs of a task is here and not behind
    another object, and what is the same for many tasks is one object.

    :ivar previous: the last counters: what the next rates are taken from.
    :ivar place: slice and group in which it is swept; None while it is not.
    :ivar not_before_ns: sweeps before this moment pass it by: it was just read.
    :ivar work: the asyncio task that follows its stream, or tries again after a failure.
    """

    __slots__ = (
        "account",
        "failing",
        "group_key",
        "heard_at",
        "info",
        "interval_s",
        "life",
        "limits",
        "measured",
        "node",
        "not_before_ns",
        "per_process",
        "place",
        "previous",
        "publish",
        "read",
        "readers",
        "stale",
        "work",
    )

    def __init__(self, life: Life, running: RunningTask, interval_s: float, per_process: bool) -> None:
        self.life = life
        self.interval_s = interval_s
        self.per_process = per_process
        self.group_key = (life.driver.name, per_process)
        self.read = running.read
        self.limits, self.node, self.account = life.limits, life.node, life.account.add
        self.measured, self.info = life.measured, life.info
        self.previous: Counters | None = None
        self.publish = False
        self.readers: tuple[weakref.ref[Readings], ...] = ()
        self.place: tuple[Slice, Group] | None = None
        self.not_before_ns = 0
        self.work: asyncio.Task[None] | None = None
        self.failing = Repeated()
        self.heard_at = 0.0
        self.stale = False


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

    def read(self, _: object) -> None:
        """The batch was read, or given up."""
        self.batch = None


class Batch:
    """Reads under way in a driver's thread.

    :ivar current: position of the member that is being read.
    """

    __slots__ = ("abandoned", "cpu_ns", "current", "done", "driver", "members", "results", "timer")

    def __init__(self, driver: OpenDriver, members: list[Measurement], done: asyncio.Future[None]) -> None:
        self.driver = driver
        self.members = members
        self.results: list[Counters | BaseException] = []
        self.current = 0
        self.abandoned = False
        self.cpu_ns = 0
        self.done = done
        self.timer: asyncio.TimerHandle | None = None

    def read(self, tick: Tick) -> None:
        """Read every member, in the driver's thread."""
        began = time.thread_time_ns()
        for member in self.members:
            try:
                self.results.append(member.read(tick))
            except BaseException as error:  # it is the member's, whatever it is
                self.results.append(error)
            if self.abandoned:
                return
            self.current += 1
        self.cpu_ns = time.thread_time_ns() - began


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
        self._deadline_s = deadline_s
        self._loop = asyncio.get_running_loop()
        self._schedulers: dict[float, Scheduler] = {}
        self._measured: dict[Life, list[Measurement]] = {}
        self._wished: set[Life] = set()
        self._batches: set[Batch] = set()
        self._arrived: list[Pair] = []
        self._flush_due = False
        self._field_names: dict[frozenset[str], frozenset[str]] = {}
        self._streams: set[Measurement] = set()
        self._stale_timer: asyncio.TimerHandle | None = None
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
            measurement = self._measurement(life, self._telemetry.interval_s, False)
            measurement.publish = True

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
        account = life.account

        def dropped() -> None:
            account.dropped += 1
            self._tally.dropped += 1

        readings = Readings(dropped)
        del running
        measurement = self._measurement(life, interval, per_process)
        readings.measurement = measurement
        loop = self._loop
        # the reader may be dropped in any thread: the garbage collector runs where it runs
        measurement.readers += (weakref.ref(readings, lambda _: post(loop, self._reader_left, measurement)),)
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

    def _measurement(self, life: Life, interval_s: float, per_process: bool) -> Measurement:
        mine = self._measured.setdefault(life, [])
        for measurement in mine:
            if measurement.interval_s == interval_s and measurement.per_process == per_process:
                return measurement
        assert life.running is not None
        measurement = Measurement(life, life.running, interval_s, per_process)
        mine.append(measurement)
        if _streams(life.running):
            self._follow(measurement)
        else:
            measurement.work = self._calls.spawn(self._first(measurement))
        return measurement

    def _drop_if_unwanted(self, measurement: Measurement) -> None:
        if not measurement.publish and not any(each() is not None for each in measurement.readers):
            self._drop(measurement)

    def _drop(self, measurement: Measurement) -> None:
        self._unschedule(measurement)
        self._no_longer_failing(measurement)
        self._streams.discard(measurement)
        if measurement.work is not None and measurement.work is not asyncio.current_task():
            measurement.work.cancel()
            measurement.work = None
        mine = self._measured.get(measurement.life)
        if mine is not None and measurement in mine:
            mine.remove(measurement)
            if not mine:
                del self._measured[measurement.life]

    # -- the sweep -----------------------------------------------------------------------------------------------

    def _schedule(self, measurement: Measurement) -> None:
        interval = measurement.interval_s
        scheduler = self._schedulers.get(interval)
        if scheduler is None:
            scheduler = self._schedulers[interval] = Scheduler(interval, self._sweep, self._group, self._tally)
        scheduler.add(measurement)

    def _unschedule(self, measurement: Measurement) -> None:
        scheduler = self._schedulers.get(measurement.interval_s)
        if scheduler is not None:
            scheduler.remove(measurement)
            if not scheduler:
                del self._schedulers[measurement.interval_s]

    def _group(self, measurement: Measurement) -> Group:
        return Group(measurement.life.driver, measurement.per_process)

    def _sweep(self, scheduler: Scheduler, place: Slice, now: float) -> None:
        extended = now >= place.extended_due
        if extended:
            place.extended_due = now + self._telemetry.extended_interval_s - scheduler.interval_s / 2
        for group in list(place.groups.values()):
            tick = Tick(int(self._loop.time() * 1e9), extended=extended, per_process=group.per_process)
            if group.driver.reader is None:
                self._read_members(group.members.copy(), tick, 0)
            elif group.batch is not None:  # the last one is not finished
                self._tally.missed_ticks += 1
            else:
                due = [each for each in group.members if each.not_before_ns <= tick.at_ns]
                if due:
                    group.batch = self._read_in_thread(group.driver, due, tick)
                    group.batch.done.add_done_callback(group.read)

    def _read_members(self, members: list[Measurement], tick: Tick, start: int) -> None:
        """Read in the loop, and let others have their turn after 10 ms: the hot path."""
        began = time.thread_time_ns()
        limit = time.monotonic_ns() + HOLD_THE_LOOP_NS
        batch: list[Pair] = []
        readings = 0
        at_ns = tick.at_ns
        for index in range(start, len(members)):
            if not index & 15 and time.monotonic_ns() > limit and index > start:
                self._loop.call_soon(self._read_members, members, tick, index)
                break
            member = members[index]
            if member.not_before_ns:
                if member.not_before_ns > at_ns:
                    continue
                member.not_before_ns = 0
            if member.place is None:
                continue
            try:
                self._deliver(member, member.read(tick), batch)
            except _DRIVER_FAULTS as error:
                self._failed(member, error)
            else:
                readings += 1
        if batch:
            self._publish(batch)
        tally = self._tally
        tally.sweeps += start == 0
        tally.readings += readings
        tally.cpu_ns += time.thread_time_ns() - began

    def _deliver(self, member: Measurement, counters: Counters, batch: list[Pair]) -> None:
        """Turn counters into a reading and hand it to whoever wants it."""
        previous = member.previous
        if previous is None:
            self._begin(member, counters)
        elif counters.at_ns <= previous.at_ns:  # handed over again: an old value is no new reading
            return
        usage = derive(previous, counters, member.limits, member.node, member.measured)
        member.previous = counters
        member.account(usage)
        if member.publish:
            batch.append((member.info, usage))
        if member.readers:
            for reference in member.readers:
                reader = reference()
                if reader is not None:
                    reader.put(usage)

    def _begin(self, member: Measurement, counters: Counters) -> None:
        if type(counters) is not Counters:
            raise RecoverableError(f"the driver {member.life.driver.name} returned {counters!r} in place of Counters")
        life = member.life
        if not life.measured:
            fields_ = measured_fields(counters, life.limits, life.node)
            life.measured = self._field_names.setdefault(fields_, fields_)
        member.measured = life.measured

    # -- reading in a driver's thread ----------------------------------------------------------------------------

    def _read_in_thread(self, driver: OpenDriver, members: list[Measurement], tick: Tick) -> Batch:
        assert driver.reader is not None
        batch = Batch(driver, members, self._loop.create_future())
        batch.timer = self._loop.call_later(self._deadline_s, self._hangs, batch)
        self._batches.add(batch)

        def job() -> None:
            batch.read(tick)
            post(self._loop, self._came_back if batch.abandoned else self._finished, batch)

        driver.reader.submit(job)
        return batch

    def _finished(self, batch: Batch) -> None:
        if batch.abandoned:  # it came back in the very moment in which it was given up
            self._came_back(batch)
            return
        began = time.thread_time_ns()
        self._end_batch(batch)
        out: list[Pair] = []
        for member, result in zip(batch.members, batch.results, strict=True):
            if member.place is None and member.work is None:
                continue  # dropped meanwhile
            try:
                if isinstance(result, BaseException):
                    raise result
                self._deliver(member, result, out)
            except _DRIVER_FAULTS as error:
                self._failed(member, error)
            else:
                self._tally.readings += 1
        if out:
            self._publish(out)
        self._tally.sweeps += 1
        self._tally.cpu_ns += batch.cpu_ns + time.thread_time_ns() - began

    def _end_batch(self, batch: Batch) -> None:
        if batch.timer is not None:
            batch.timer.cancel()
        self._batches.discard(batch)
        if not batch.done.done():
            batch.done.set_result(None)

    def _hangs(self, batch: Batch) -> None:
        driver = batch.driver
        assert driver.reader is not None
        batch.abandoned = True
        culprit = batch.members[min(batch.current, len(batch.members) - 1)]
        self._tally.abandoned[driver.name] += 1
        driver.misbehaves(f"{driver.name}.read of task {culprit.life.id} did not return within {self._deadline_s:g} s")
        driver.reader.replace()
        driver.failing.add(culprit)
        self._unschedule(culprit)
        self._end_batch(batch)

    def _came_back(self, batch: Batch) -> None:
        """A read that had been given up has returned: its result is thrown away, the task is read again."""
        self._end_batch(batch)
        culprit = batch.members[min(batch.current, len(batch.members) - 1)]
        if culprit.place is None and culprit in self._measured.get(culprit.life, ()):
            self._failed(culprit, DeadlineExceeded("the read returned after its deadline"))

    # -- first, last and single readings -------------------------------------------------------------------------

    async def _first(self, measurement: Measurement) -> None:
        """Read at once, then join the sweep."""
        try:
            self._skip_ahead(measurement)
            self._schedule(measurement)
            counters = await self._read_once(measurement.life, self._fresh_tick(measurement.per_process))
            self._single(measurement, counters)
        except _DRIVER_FAULTS as error:
            if (
                isinstance(error, asyncio.CancelledError)
                and (current := asyncio.current_task())
                and current.cancelling()
            ):
                raise
            measurement.work = None
            if measurement in self._measured.get(measurement.life, ()):
                self._failed(measurement, error)
        else:
            measurement.work = None

    def _skip_ahead(self, measurement: Measurement) -> None:
        measurement.not_before_ns = int((self._loop.time() + measurement.interval_s / 2) * 1e9)

    def _single(self, measurement: Measurement, counters: Counters) -> None:
        batch: list[Pair] = []
        self._deliver(measurement, counters, batch)
        self._tally.readings += 1
        if batch:
            self._publish(batch)

    async def _read_once(self, life: Life, tick: Tick) -> Counters:
        """Read one task by itself, in the driver's thread where it may block."""
        running = self._running(life)
        driver = life.driver
        if driver.reader is None:
            counters = running.read(tick)
        else:
            member = Measurement(life, running, 0, tick.per_process)
            done: asyncio.Future[None] = self._loop.create_future()
            batch = Batch(driver, [member], done)
            self._batches.add(batch)
            batch.timer = self._loop.call_later(self._deadline_s, self._hangs, batch)

            def job() -> None:
                batch.read(tick)
                post(self._loop, self._end_batch, batch)

            driver.reader.submit(job)
            await done
            if batch.abandoned:
                raise DeadlineExceeded(f"{driver.name}.read of task {life.id} did not return within its deadline")
            result = batch.results[0]
            if isinstance(result, BaseException):
                raise result
            counters = result
        if type(counters) is not Counters:
            raise RecoverableError(f"the driver {driver.name} returned {counters!r} in place of Counters")
        return counters

    def _fresh_tick(self, per_process: bool = False) -> Tick:
        """A tick for a first, last or asked-for reading: everything is wanted, nothing may be handed over again."""
        return Tick(int(self._loop.time() * 1e9), extended=True, per_process=per_process, fresh=True)

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
        if _streams(running):
            counters = []
            async with aclosing(running.stats(window_s)) as source:
                async for each in source:
                    counters.append(each)
                    if len(counters) == 2:
                        break
            if not counters:
                raise RecoverableError(f"the stream of task {life.id} ended without a reading")
            first, last = counters[0], counters[-1]
        else:
            first = await self._read_once(life, self._fresh_tick(per_process))
            await asyncio.sleep(window_s)
            last = await self._read_once(life, self._fresh_tick(per_process))
        measured = life.measured or measured_fields(last, life.limits, life.node)
        usage = derive(first, last, life.limits, life.node, measured)
        life.account.add(usage)
        return usage

    # -- failures ------------------------------------------------------------------------------------------------

    def _failed(self, member: Measurement, error: BaseException) -> None:
        """Take a task out of the sweep: read it again later, or no more."""
        if not isinstance(error, Exception):
            error = RecoverableError(f"the driver {member.life.driver.name} raised {error!r} in read")
        self._unschedule(member)
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
        extra = fields(task_id=member.life.id, driver=driver.name)
        if isinstance(error, PluginShutdown):
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
        ended = None if member.life.over else error
        for reference in member.readers:
            reader = reference()
            if reader is not None:
                reader.finish(ended)
        self._drop(member)

    async def _again(self, member: Measurement, error: Exception) -> None:
        async def attempt() -> Counters:
            return await self._read_once(member.life, self._fresh_tick(member.per_process))

        try:
            counters = await retry(
                attempt, failure=error, wait=member.life.driver.cls.retry, failed=lambda each: self._note(member, each)
            )
        except TaskNotFound:
            member.work = None
            return
        except UnrecoverableError as final:
            self._give_up(member, final)
            return
        member.work = None
        self._recovered(member)
        self._skip_ahead(member)
        self._schedule(member)
        self._single(member, counters)

    def _recovered(self, member: Measurement) -> None:
        member.failing.reset()
        self._no_longer_failing(member)

    def _no_longer_failing(self, member: Measurement) -> None:
        driver = member.life.driver
        if member in driver.failing:
            driver.failing.discard(member)
            driver.behaves()

    # -- streams -------------------------------------------------------------------------------------------------

    def _follow(self, member: Measurement) -> None:
        self._streams.add(member)
        member.heard_at = self._loop.time()
        who = f"{member.life.driver.name}.stats"
        member.work = self._calls.spawn(self._calls.watched(self._follow_stream(member), who))
        if self._stale_timer is None:
            self._stale_timer = self._loop.call_later(1, self._look_for_stale)

    async def _follow_stream(self, member: Measurement) -> None:
        """Read a stream; one that ended is opened again after an interval, one that failed by the rules of retries."""
        failure: Exception | None = None

        async def attempt() -> bool:
            return await self._read_stream(member)

        while True:
            try:
                if failure is None:
                    await attempt()
                else:
                    await retry(
                        attempt,
                        failure=failure,
                        wait=member.life.driver.cls.retry,
                        failed=lambda error: self._note(member, error),
                    )
                failure = None
            except UnrecoverableError as final:
                self._give_up(member, final)
                return
            except _StreamBroke as broke:  # after a success: the count of attempts starts anew
                failure = broke.error
                self._note(member, failure)
            except Exception as error:
                failure = error
                self._note(member, failure)
            if failure is None:
                await asyncio.sleep(member.interval_s)

    async def _read_stream(self, member: Measurement) -> bool:
        """Read a stream to its end."""
        some = False
        try:
            async with aclosing(self._running(member.life).stats(member.interval_s)) as source:
                async for counters in source:
                    self._arrive(member, counters)
                    some = True
        except UnrecoverableError:
            raise
        except Exception as error:
            if some:
                raise _StreamBroke(error) from error
            raise
        return some

    def _arrive(self, member: Measurement, counters: Counters) -> None:
        if type(counters) is not Counters:
            raise RecoverableError(f"the driver {member.life.driver.name} yielded {counters!r} in place of Counters")
        began = time.thread_time_ns()
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        self._deliver(member, counters, self._arrived)
        self._tally.readings += 1
        self._tally.cpu_ns += time.thread_time_ns() - began
        member.heard_at = self._loop.time()
        if member.stale or member.failing.active:
            member.stale = False
            self._recovered(member)

    def _flush(self) -> None:
        """What the streams that were woken together have yielded is one batch."""
        self._flush_due = False
        self._tally.sweeps += 1
        if self._arrived:
            batch, self._arrived = self._arrived, []
            self._publish(batch)

    def _look_for_stale(self) -> None:
        self._stale_timer = None
        now = self._loop.time()
        for member in self._streams:
            if not member.stale and now - member.heard_at > STALE_INTERVALS * member.interval_s + 1:
                member.stale = True
                driver = member.life.driver
                log.warning(
                    "the stream of task %s is stale: silent for %d intervals of %g s",
                    member.life.id,
                    STALE_INTERVALS,
                    member.interval_s,
                    extra=fields(task_id=member.life.id, driver=driver.name),
                )
        if self._streams:
            self._stale_timer = self._loop.call_later(1, self._look_for_stale)

    # -- the end of a task ---------------------------------------------------------------------------------------

    async def finish(self, life: Life, final: Counters | None) -> None:
        """A task has ended: its last reading, then the end of its readings.

        :param final: the kernel's own totals; without them a measured task is read once more.
        """
        measurements = list(self._measured.get(life, ()))
        for measurement in measurements:
            measurement.info = life.info
            self._unschedule(measurement)
            if measurement.work is not None:
                measurement.work.cancel()
                measurement.work = None
        await self._quiet(life)
        if measurements and not (life.running is not None and _streams(life.running) and final is None):
            last = final if final is not None else await self._last(life)
            if last is not None:
                for measurement in measurements:
                    self._last_reading(measurement, last)
        for measurement in measurements:
            for reference in measurement.readers:
                reader = reference()
                if reader is not None:
                    reader.finish()
            self._drop(measurement)
        self._wished.discard(life)

    async def _last(self, life: Life) -> Counters | None:
        try:
            return await self._read_once(life, self._fresh_tick())
        except _DRIVER_FAULTS as error:
            if (
                isinstance(error, asyncio.CancelledError)
                and (current := asyncio.current_task())
                and current.cancelling()
            ):
                raise
            log.debug("task %s has no last reading: %r", life.id, error, extra=fields(task_id=life.id))
            return None

    def _last_reading(self, measurement: Measurement, last: Counters) -> None:
        try:
            self._single(measurement, completed(last, measurement.previous))
        except _DRIVER_FAULTS as error:
            self._note(measurement, error if isinstance(error, Exception) else RecoverableError(repr(error)))

    async def _quiet(self, life: Life) -> None:
        """Wait until no read of this task is in progress, or the deadline has passed."""
        busy = [batch.done for batch in self._batches if any(each.life is life for each in batch.members)]
        if busy:
            await asyncio.wait(busy, timeout=self._deadline_s)

    async def forget(self, life: Life) -> None:
        """Measure this task no more, and return when no read of it is in progress."""
        self._wished.discard(life)
        for measurement in list(self._measured.get(life, ())):
            for reference in measurement.readers:
                reader = reference()
                if reader is not None:
                    reader.finish()
            self._drop(measurement)
        await self._quiet(life)

    def close(self) -> None:
        """Measure nothing any more."""
        for measurements in list(self._measured.values()):
            for measurement in list(measurements):
                for reference in measurement.readers:
                    reader = reference()
                    if reader is not None:
                        reader.finish()
                self._drop(measurement)
        for task in list(self._samples.values()):
            task.cancel()
        if self._stale_timer is not None:
            self._stale_timer.cancel()


class _StreamBroke(Exception):
    """A stream failed after it had yielded something."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _streams(running: RunningTask) -> bool:
    """Whether a task can only be measured by its stream."""
    return type(running).read is RunningTask.read and type(running).stats is not RunningTask.stats


def completed(last: Counters, previous: Counters | None) -> Counters:
    """The totals of an end; what they do not say is as it was read before, under its own age."""
    if previous is None:
        return last
    memory, memory_at_ns = last.memory, last.memory_at_ns
    if memory.measure != previous.memory.measure:
        memory, memory_at_ns = previous.memory, previous.memory_at_ns or previous.at_ns
    return Counters(
        at_ns=last.at_ns,
        taken_at_ns=last.taken_at_ns,
        memory_at_ns=memory_at_ns,
        extended_at_ns=previous.extended_at_ns or previous.at_ns,
        missing=last.missing or previous.missing,
        cpu=_filled(last.cpu, previous.cpu),
        memory=memory,
        io=_filled(last.io, previous.io),
        network=_filled(last.network, previous.network),
        processes=_filled(last.processes, previous.processes),
        pressure=_filled(last.pressure, previous.pressure),
    )


def _filled(new: G, old: G) -> G:
    """A group, with the fields that it lacks taken from an older one."""
    lacking = {
        name: value
        for name in new.__struct_fields__
        if getattr(new, name) is None and (value := getattr(old, name)) is not None
    }
    return msgspec.structs.replace(new, **lacking) if lacking else new
