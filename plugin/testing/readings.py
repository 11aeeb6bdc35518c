"""Checks of what a driver measures: counters that never fall, at the host's beat, without rates of the driver's own."""

# ruff: noqa: D102 # each check is named by its sentence
from __future__ import annotations

import asyncio
import os
import statistics
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import pytest

from cameleer.errors import StatsNotImplemented
from cameleer.testing.base import SuiteBase, check

if TYPE_CHECKING:
    from cameleer.task import Task
    from cameleer.usage import TaskResourceUsage

COUNTERS = (
    *("cpu.total_ns", "cpu.user_ns", "cpu.system_ns", "cpu.periods", "cpu.throttled_periods", "cpu.throttled_ns"),
    *("memory.minor_faults", "memory.major_faults", "memory.oom_kills", "memory.peak_bytes"),
    *("io.read_bytes", "io.write_bytes", "io.read_ops", "io.write_ops"),
    *("network.rx_bytes", "network.rx_packets", "network.tx_bytes", "network.tx_packets"),
    *("processes.seen", "processes.voluntary_switches", "processes.involuntary_switches"),
    *("pressure.cpu_some_ns", "pressure.cpu_full_ns", "pressure.memory_some_ns", "pressure.memory_full_ns"),
    *("pressure.io_some_ns", "pressure.io_full_ns"),
)
"""Fields that may only grow."""

RATES = ("percent", "user_percent", "system_percent", "ticks_mhz", "limit_percent")
_GRAIN_NS = 50_000_000
"""Kernels count user and system time apart by ticks of up to 10 ms, per processor."""


class ReadingChecks(SuiteBase):
    """What is counted is true, and no more than counted."""

    async def readings(self, task: Task, count: int, interval_s: float | None = None) -> list[TaskResourceUsage]:
        """The next readings of a task; fewer where it ends."""
        found: list[TaskResourceUsage] = []

        async def collect() -> None:
            async for usage in task.readings(interval_s or self.interval_s):
                found.append(usage)
                if len(found) == count:
                    return

        try:
            async with asyncio.timeout(self.patience_s):
                await collect()
        except TimeoutError:
            pytest.fail(f"within {self.patience_s:g} s: {count} readings did not come, {len(found)} did")
        return found

    @check("stats", "busy")
    async def test_counters_never_fall(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.busy())
            found = await self.readings(task, 8)
            for previous, current in pairwise(found):
                for name in COUNTERS:
                    old, new = value_of(previous, name), value_of(current, name)
                    assert old is None or new is None or new >= old, f"{name} fell from {old} to {new}"

    @check("stats", "busy")
    async def test_the_counters_of_a_busy_task_grow(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.busy())
            found = await self.readings(task, 6)
            totals = [usage.cpu.total_ns for usage in found]
            if all(total is None for total in totals):
                return  # it measures something else
            assert None not in totals, "cpu.total_ns comes and goes"
            grown = (totals[-1] or 0) - (totals[0] or 0)
            window = found[-1].at_ns - found[0].at_ns
            cores = os.cpu_count() or 1
            assert grown > window // 50, f"a busy task used {grown} ns of CPU time in {window} ns"
            assert grown < window * cores * 1.1 + _GRAIN_NS, "a task used more CPU time than there was: nanoseconds?"

    @check("stats", "busy")
    async def test_user_and_system_time_add_up(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.busy())
            for usage in await self.readings(task, 4):
                total, user, system = usage.cpu.total_ns, usage.cpu.user_ns, usage.cpu.system_ns
                if total is None or user is None or system is None:
                    continue
                assert abs(user + system - total) <= total // 10 + _GRAIN_NS, (
                    f"user {user} and system {system} do not add up to the total {total}"
                )

    @check("stats")
    async def test_the_driver_hands_over_counters_without_rates(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.busy() or self.commands.lasts())
            first = (await self.readings(task, 1))[0]
            if first.window_ns is None:
                given = [name for name in RATES if getattr(first.cpu, name) is not None]
                assert not given, "a first reading has rates: the driver computed them, and only the host may"

    @check("stats", "busy")
    async def test_rates_agree_with_the_counters(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.busy())
            found = await self.readings(task, 5)
            compared = 0
            for previous, current in pairwise(found):
                if current.window_ns != current.at_ns - previous.at_ns:
                    continue  # a reading in between was lost
                for rate, counter in (("percent", "total_ns"), ("user_percent", "user_ns")):
                    old, new = getattr(previous.cpu, counter), getattr(current.cpu, counter)
                    percent = getattr(current.cpu, rate)
                    if old is not None and new is not None:
                        assert percent == pytest.approx((new - old) * 100 / current.window_ns, rel=1e-6, abs=1e-6)
                        compared += 1
            assert compared or found[-1].cpu.total_ns is None, "no reading had a rate"

    @check("stats")
    async def test_the_interval_is_kept(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            found = await self.readings(task, 9)
            spacing = [(b.at_ns - a.at_ns) / 1e9 for a, b in pairwise(found[1:])]
            assert all(gap > 0 for gap in spacing), "at_ns does not grow from reading to reading"
            median = statistics.median(spacing)
            assert 0.6 * self.interval_s <= median <= 1.5 * self.interval_s, (
                f"readings come every {median:.3f} s, asked for was {self.interval_s:g} s"
            )

    @check("stats")
    async def test_times_are_true(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            for _ in range(3):
                before, before_unix = time.monotonic_ns(), time.time_ns()
                usage = await self.soon(task.sample(0.1), "sample did not return")
                slack = int(self.interval_s * 1e9)
                assert before - slack <= usage.at_ns <= time.monotonic_ns(), "at_ns is not time.monotonic_ns() of now"
                assert before_unix - slack <= usage.taken_at_ns <= time.time_ns() + slack, (
                    "taken_at_ns is not Unix time in nanoseconds, of now"
                )
                for older in (usage.memory_at_ns, usage.extended_at_ns):
                    assert older is None or older <= usage.at_ns, "a group is younger than its reading"

    @check("stats")
    async def test_memory_says_what_it_measures(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            for usage in await self.readings(task, 2):
                memory = usage.memory
                known = [memory.rss_bytes, memory.pss_bytes, memory.usage_bytes, memory.working_set_bytes]
                if any(value is not None for value in known):
                    assert memory.measure is not None, "memory.measure does not say what stands for memory in use"
                    assert memory.in_use_bytes is not None, f"the figure of memory.measure {memory.measure} is missing"

    @check("stats")
    async def test_no_figure_is_negative(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.busy() or self.commands.lasts())
            for usage in await self.readings(task, 3):
                for group in ("cpu", "memory", "io", "network", "processes", "pressure"):
                    for name, value in msgspec.structs.asdict(getattr(usage, group)).items():
                        assert not isinstance(value, (int, float)) or value >= 0, f"{group}.{name} is {value}"

    @check("stats")
    async def test_what_is_measured_does_not_change(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            found = await self.readings(task, 4)
            assert len({usage.measured for usage in found}) == 1, "`measured` changes from reading to reading"
            assert found[0].measured, "nothing is measured"

    @check("stats")
    async def test_readings_end_with_the_task(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            found: list[TaskResourceUsage] = []

            async def collect() -> None:
                async for usage in task.readings(self.interval_s):
                    found.append(usage)

            collector = asyncio.create_task(collect())
            await self.until(lambda: found, "no reading came")
            await self.soon(task.stop(), "stop did not return")
            await self.soon(collector, "the readings did not end with the task")
            await self.soon(task.wait(), "wait did not return")

    @check("stats")
    async def test_a_reader_that_leaves_harms_nothing(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            async for _ in task.readings(self.interval_s):
                break
            reading = asyncio.create_task(self.readings(task, 1000))
            await asyncio.wait([reading], timeout=self.interval_s / 2)
            reading.cancel()
            await asyncio.wait([reading])
            assert len(await self.readings(task, 3)) == 3
            await self.soon(task.stop(), "stop did not return")

    @check("stats")
    async def test_two_readers_at_once_get_what_they_asked_for(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.busy() or self.commands.lasts())
            quick, slow = await asyncio.gather(
                self.readings(task, 7, self.interval_s), self.readings(task, 4, self.interval_s * 2)
            )
            for found, interval_s in ((quick, self.interval_s), (slow, self.interval_s * 2)):
                spacing = [(b.at_ns - a.at_ns) / 1e9 for a, b in pairwise(found[1:])]
                median = statistics.median(spacing)
                assert 0.6 * interval_s <= median <= 1.5 * interval_s, (
                    f"a reader that asked for {interval_s:g} s got a reading every {median:.3f} s"
                )

    @check("stats")
    async def test_a_sample_covers_its_window(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.busy() or self.commands.lasts())
            usage = await self.soon(task.sample(0.3), "sample did not return")
            if usage.cpu.total_ns is not None:
                assert usage.window_ns is not None
                assert usage.window_ns >= 250_000_000
                assert usage.cpu.percent is not None

    @check("stats", "busy")
    async def test_the_summary_is_no_less_than_the_readings(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.busy())
            found = await self.readings(task, 4)
            await self.soon(task.stop(0), "stop did not return")
            usage = (await self.soon(task.wait(), "wait did not return")).usage
            assert usage.readings >= len(found)
            seen = found[-1].cpu.total_ns
            if seen is not None:
                assert usage.cpu_total_ns is not None
                assert usage.cpu_total_ns >= seen - _GRAIN_NS, "the total at the end is less than a reading before"

    @check()
    async def test_a_driver_measures_or_says_that_it_does_not(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            if self.offers("stats"):
                assert await self.readings(task, 1)
            else:
                with pytest.raises(StatsNotImplemented):
                    await self.readings(task, 1)


def value_of(usage: TaskResourceUsage, name: str) -> int | None:
    """``cpu.total_ns`` of a reading."""
    group, _, field = name.partition(".")
    value: int | None = getattr(getattr(usage, group), field)
    return value
