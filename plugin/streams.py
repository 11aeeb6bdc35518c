"""Following drivers that can only stream: one asyncio task per measured task, opened again by the rules of retries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from cameleer.errors import UnrecoverableError
from cameleer.log import fields, log
from cameleer.measurement import checked
from cameleer.retrying import retry

if TYPE_CHECKING:
    from cameleer.calls import Calls
    from cameleer.driver import RunningTask
    from cameleer.figures import Tally
    from cameleer.measurement import Measurement, Pair
    from cameleer.usage import Counters

STALE_INTERVALS = 3
_LATE_NS = 1.1e9
"""Nanoseconds between two readings for each second of their interval, from which on one is late."""
"""A stream that is silent for so many intervals is reported."""


class Streams:
    """All streams of one host.

    :param noted: told of a failure that may pass.
    :param recovered: told that it has passed.
    :param given_up: told that a measurement cannot go on.
    :param publish: takes what the streams that were woken together have yielded.
    """

    def __init__(
        self,
        calls: Calls,
        tally: Tally,
        *,
        noted: Callable[[Measurement, Exception], None],
        recovered: Callable[[Measurement], None],
        given_up: Callable[[Measurement, Exception], None],
        publish: Callable[[list[Pair]], None],
    ) -> None:
        self._calls = calls
        self._tally = tally
        self._noted = noted
        self._recovered = recovered
        self._given_up = given_up
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._members: set[Measurement] = set()
        self._arrived: list[Pair] = []
        self._flush_due = False
        self._stale_timer: asyncio.TimerHandle | None = None

    def follow(self, member: Measurement, running: RunningTask) -> None:
        """Begin to follow a task's stream."""
        self._members.add(member)
        member.heard_at = self._loop.time()
        member.work = self._calls.spawn(
            self._calls.watched(self._follow(member, running), f"{member.life.driver.name}.stats")
        )
        if self._stale_timer is None:
            self._stale_timer = self._loop.call_later(1, self._look_for_stale)

    def discard(self, member: Measurement) -> None:
        """It is followed no more."""
        self._members.discard(member)

    async def _follow(self, member: Measurement, running: RunningTask) -> None:
        """Read a stream; one that ended is opened again after an interval, one that failed by the rules of retries."""
        failure: Exception | None = None

        async def attempt() -> None:
            await self._read(member, running)

        while True:
            try:
                if failure is None:
                    await attempt()
                else:
                    wait = member.life.driver.cls.retry
                    await retry(attempt, failure=failure, wait=wait, failed=lambda error: self._noted(member, error))
                failure = None
            except UnrecoverableError as final:
                self._given_up(member, final)
                return
            except _StreamBroke as broke:  # after a success: the count of attempts starts anew
                failure = broke.error
            except Exception as error:
                failure = error
            if failure is None:
                await asyncio.sleep(member.interval_s)
            else:
                self._noted(member, failure)

    async def _read(self, member: Measurement, running: RunningTask) -> None:
        """Read a stream to its end."""
        some = False
        try:
            async with aclosing(running.stats(member.interval_s)) as source:
                async for counters in source:
                    self._arrive(member, counters)
                    some = True
        except UnrecoverableError:
            raise
        except Exception as error:
            if some:
                raise _StreamBroke(error) from error
            raise

    def _arrive(self, member: Measurement, counters: Counters) -> None:
        began = time.thread_time_ns()
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        previous = member.previous
        member.deliver(checked(counters, member.life.driver.name), self._arrived)
        if previous is not None and counters.at_ns - previous.at_ns > member.interval_s * _LATE_NS:
            self._tally.late_ticks += 1
        member.heard_at = self._loop.time()
        if member.stale or member.failing.active:
            member.stale = False
            self._recovered(member)
        self._tally.readings += 1
        self._tally.cpu_ns += time.thread_time_ns() - began

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
        for member in self._members:
            if not member.stale and now - member.heard_at > STALE_INTERVALS * member.interval_s + 1:
                member.stale = True
                log.warning(
                    "the stream of task %s is stale: silent for %d intervals of %g s",
                    member.life.id,
                    STALE_INTERVALS,
                    member.interval_s,
                    extra=fields(task_id=member.life.id, driver=member.life.driver.name),
                )
        if self._members:
            self._stale_timer = self._loop.call_later(1, self._look_for_stale)

    def close(self) -> None:
        """Look after nothing any more."""
        if self._stale_timer is not None:
            self._stale_timer.cancel()


class _StreamBroke(Exception):
    """A stream failed after it had yielded something."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
