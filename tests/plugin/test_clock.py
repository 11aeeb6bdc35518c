"""One clock for all tasks: slices, no drift, late and missed ticks, and a loop that others can use."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from typing import Any

import pytest
from fakes import FakeTask, a_driver, counters
from virtual_clock import VirtualLoop, on_a_virtual_clock

import cameleer.sweep
from cameleer.config import TaskConfig
from cameleer.driver import Tick
from cameleer.hooks.specs import hookimpl
from cameleer.host import Host
from cameleer.node import NodeInfo
from cameleer.scheduler import Scheduler
from cameleer.usage import Counters

PUBLISHING = {
    "telemetry": {"publish_allocation_metrics": True, "collection_interval": 1},
    "plugins": {"hooks": ["stats_hook"]},
}


class Batches:
    """Remembers the size and the time of each batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.times: list[float] = []

    @hookimpl
    async def update_stats(self, readings: Any) -> None:
        self.sizes.append(len(readings))
        self.times.append(asyncio.get_running_loop().time())


async def start(host: Host, count: int, driver: str = "fake") -> None:
    for number in range(count):
        await host.start(TaskConfig(id=f"{driver}{number}", command="x"), driver)


@pytest.mark.parametrize(("tasks", "slices"), [(1, 1), (250, 1), (251, 2), (1000, 4)])
@on_a_virtual_clock
async def test_tasks_are_spread_over_slices_of_250_with_one_batch_each(tasks: int, slices: int) -> None:
    batches = Batches()
    async with Host(PUBLISHING, plugins=[a_driver(), batches], node=NodeInfo()) as host:
        await start(host, tasks)
        await asyncio.sleep(5)
        batches.sizes.clear()
        before = host.figures.sweeps
        await asyncio.sleep(10)
        assert host.figures.sweeps - before == pytest.approx(10 * slices, abs=slices)
        assert sum(batches.sizes) == pytest.approx(10 * tasks, abs=tasks)
        assert max(batches.sizes) <= 250


@on_a_virtual_clock
async def test_a_measured_task_has_no_asyncio_task_timer_or_thread_of_its_own() -> None:
    async with Host({"plugins": {"hooks": []}}, plugins=[a_driver()], node=NodeInfo()) as host:
        await start(host, 500)
        loop = asyncio.get_running_loop()
        before = len(asyncio.all_tasks()), threading.active_count()
        timers = len(loop._scheduled)  # type: ignore[attr-defined]
        readers = [task.readings(1) for task in host.tasks.values()]
        await asyncio.sleep(3.1)
        assert host.figures.measured_tasks == 500
        assert (len(asyncio.all_tasks()), threading.active_count()) == before
        assert len(loop._scheduled) - timers <= 2  # type: ignore[attr-defined]
        assert len(readers) == 500


@on_a_virtual_clock
async def test_a_tick_that_comes_late_is_counted_and_missed_ones_are_not_made_up_for() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    batches = Batches()
    async with Host(PUBLISHING, plugins=[a_driver(), batches], node=NodeInfo()) as host:
        await start(host, 1)
        await asyncio.sleep(3.5)
        assert (host.figures.late_ticks, host.figures.missed_ticks) == (0, 0)
        grid = batches.times[-1]
        loop.now += 5.3  # somebody held the loop
        await asyncio.sleep(0.01)
        assert (host.figures.late_ticks, host.figures.missed_ticks) == (1, 4)  # 5.0, 6.0, 7.0 and 8.0
        seen = len(batches.times)
        await asyncio.sleep(3)
        assert len(batches.times) - seen == 3
        assert (batches.times[-1] - grid) % 1 == pytest.approx(0, abs=1e-6) or (
            batches.times[-1] - grid
        ) % 1 == pytest.approx(1, abs=1e-6)


async def test_the_loop_is_given_back_after_ten_milliseconds_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.monotonic_ns()]

    class Clock:
        thread_time_ns = staticmethod(time.thread_time_ns)

        @staticmethod
        def monotonic_ns() -> int:
            return now[0]

    monkeypatch.setattr(cameleer.sweep, "time", Clock)
    turns: list[int] = []
    reads = 0

    def on_read(task: FakeTask, tick: Tick) -> Counters:
        nonlocal reads
        reads += 1
        now[0] += 1_000_000  # each read takes a millisecond
        return counters(tick.at_ns)

    async with Host({"plugins": {"hooks": []}}, plugins=[a_driver(on_read=on_read)], node=NodeInfo()) as host:
        await start(host, 100)
        readers = [task.readings(0.2) for task in host.tasks.values()]
        while reads < 100:
            await asyncio.sleep(0)
        first = reads
        loop = asyncio.get_running_loop()

        def turn() -> None:
            turns.append(reads)
            if reads < first + 100:
                loop.call_soon(turn)

        turn()
        async with asyncio.timeout(10):
            while reads < first + 100:
                await asyncio.sleep(0.01)
        longest = max(later - earlier for earlier, later in itertools.pairwise(turns))
        assert longest <= 16 + 16  # looked at every 16 reads
        assert len(readers) == 100


@on_a_virtual_clock
async def test_the_dear_groups_are_asked_for_at_their_own_interval() -> None:
    extended: list[bool] = []

    def on_read(task: FakeTask, tick: Tick) -> Counters:
        extended.append(tick.extended)
        return counters(tick.at_ns)

    async with Host({"plugins": {"hooks": []}}, plugins=[a_driver(on_read=on_read)], node=NodeInfo()) as host:
        await start(host, 1)
        reader = next(iter(host.tasks.values())).readings(1)
        await asyncio.sleep(30.5)
        assert extended[0]
        assert sum(extended[2:]) == pytest.approx(6, abs=1)
        assert reader is not None


@on_a_virtual_clock
async def test_rows_by_process_are_asked_for_only_on_request() -> None:
    asked: list[bool] = []

    def on_read(task: FakeTask, tick: Tick) -> Counters:
        asked.append(tick.per_process)
        return counters(tick.at_ns)

    async with Host({"plugins": {"hooks": []}}, plugins=[a_driver(on_read=on_read)], node=NodeInfo()) as host:
        await start(host, 1)
        task = next(iter(host.tasks.values()))
        await anext(task.readings(1))
        assert asked == [False]
        await anext(task.readings(1, per_process=True))
        assert asked[-1]


def test_a_scheduler_that_is_closed_wakes_nobody() -> None:
    async def main() -> None:
        scheduler = Scheduler(1, lambda *_: pytest.fail("woken"), lambda _: pytest.fail("asked"), None)  # type: ignore[arg-type]
        scheduler.close()
        await asyncio.sleep(5)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


async def test_every_call_is_logged_with_its_duration_when_traced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CAMELEER_TRACE", "1")
    caplog.set_level(logging.INFO, "cameleer")
    async with Host(PUBLISHING, plugins=[a_driver()], node=NodeInfo()) as host:
        await start(host, 1)
    for call in ("fake.open took", "fake.start took", "stats_hook: poststart took"):
        assert call in caplog.text


@pytest.mark.parametrize("kind", ["read", "thread", "stream"])
async def test_the_collector_measures_itself(kind: str) -> None:
    from collections.abc import AsyncGenerator

    from cameleer.beat import ticks

    async def on_stats(task: FakeTask, interval_s: float) -> AsyncGenerator[Counters, None]:
        async for tick in ticks(interval_s):
            yield counters(tick.at_ns)

    driver = a_driver(kind, on_stats=on_stats) if kind == "stream" else a_driver(kind)
    async with Host({"plugins": {"hooks": []}}, plugins=[driver], node=NodeInfo()) as host:
        await start(host, 3)
        readers = [task.readings(0.05) for task in host.tasks.values()]
        for reader in readers:
            for _ in range(4):
                await anext(reader)
        figures = host.figures
        assert figures.readings >= 12
        assert figures.cpu_ns > 0
        assert figures.cpu_ns_per_sweep is not None
        assert figures.measured_tasks == 3
