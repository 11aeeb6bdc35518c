"""The life cycle and the retries of the stats hook, for a driver with ``read`` and for one with ``stats``."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from fakes import FakeDriver, FakeTask, a_driver, counters
from virtual_clock import on_a_virtual_clock

from cameleer.beat import ticks
from cameleer.config import TaskConfig
from cameleer.errors import PluginShutdown, RecoverableError, StatsNotImplemented, UnrecoverableError
from cameleer.hooks.specs import ExitedRequest, PoststartRequest, hookimpl
from cameleer.hooks.stats_hook import StatsHook
from cameleer.host import Host
from cameleer.node import NodeInfo
from cameleer.task import Task
from cameleer.usage import TaskResourceUsage

BOTH = pytest.mark.parametrize("kind", ["read", "stream"])


class Consumer:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.readings: list[TaskResourceUsage] = []
        self.times: list[float] = []

    @hookimpl
    async def update_stats(self, readings: Any) -> None:
        self.readings += [usage for _, usage in readings]
        self.times += [asyncio.get_running_loop().time()] * len(readings)


def publishing(interval: str = "1s", on: bool = True) -> dict[str, Any]:
    return {
        "telemetry": {"publish_allocation_metrics": on, "collection_interval": interval},
        "plugins": {"hooks": ["stats_hook"]},
    }


def scripted(kind: str, script: Callable[[int], object]) -> type[FakeDriver]:
    """A driver whose n-th attempt to measure (from 1) returns None for success, or raises what the script returns."""

    def attempt(task: FakeTask) -> None:
        error = script(task.reads)
        if isinstance(error, BaseException):
            raise error

    async def on_stats(task: FakeTask, interval_s: float) -> AsyncGenerator[Any, None]:
        attempt(task)
        async for tick in ticks(interval_s):
            yield counters(tick_ns(tick))

    def on_read(task: FakeTask, tick: Any) -> Any:
        attempt(task)
        return counters(tick.at_ns)

    return a_driver(kind, on_read=on_read) if kind == "read" else a_driver(kind, on_stats=on_stats)


def tick_ns(_: object) -> int:
    return int(asyncio.get_running_loop().time() * 1e9)


def fake_of(task: Task) -> FakeTask:
    running = task._life.running
    assert isinstance(running, FakeTask)
    return running


@BOTH
@on_a_virtual_clock
async def test_the_first_reading_comes_at_once_and_exited_ends_the_collection(kind: str) -> None:
    consumer = Consumer()
    async with Host(publishing("1m"), plugins=[scripted(kind, lambda n: None), consumer], node=NodeInfo()) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        await asyncio.sleep(0.5)
        assert len(consumer.readings) == 1
        assert consumer.readings[0].memory.rss_bytes == 1
        fake_of(task).finish()
        await task.wait()
        after = len(consumer.readings)
        await asyncio.sleep(600)
        assert len(consumer.readings) == after
        assert host.figures.measured_tasks == 0


@BOTH
@on_a_virtual_clock
async def test_readings_come_at_the_interval_without_drift(kind: str) -> None:
    consumer = Consumer()
    async with Host(publishing("2s"), plugins=[scripted(kind, lambda n: None), consumer], node=NodeInfo()) as host:
        await host.start(TaskConfig(command="x"), "fake")
        await asyncio.sleep(100.5)
        gaps = [later - earlier for earlier, later in itertools.pairwise(consumer.times[1:])]
        assert len(consumer.readings) in (51, 52)
        assert gaps == pytest.approx([2.0] * len(gaps))


@on_a_virtual_clock
async def test_a_stream_that_ends_is_opened_again_after_one_interval() -> None:
    async def once(task: FakeTask, interval_s: float) -> AsyncGenerator[Any, None]:
        yield counters(tick_ns(None))

    consumer = Consumer()
    async with Host(publishing("60s"), plugins=[a_driver("stream", on_stats=once), consumer], node=NodeInfo()) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        await asyncio.sleep(0.5)
        assert fake_of(task).reads == 1  # upstream's Backoff case
        await asyncio.sleep(60)
        assert fake_of(task).reads == 2
        first, second = consumer.readings
        assert second.at_ns - first.at_ns == pytest.approx(60e9, rel=0.01)


@BOTH
@pytest.mark.parametrize("error", [StatsNotImplemented("no"), UnrecoverableError("stopped")])
@on_a_virtual_clock
async def test_an_unrecoverable_error_ends_the_collection_with_a_debug_line(
    kind: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "cameleer")
    consumer = Consumer()
    async with Host(publishing(), plugins=[scripted(kind, lambda n: error), consumer], node=NodeInfo()) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        await asyncio.sleep(600)
        assert fake_of(task).reads == 1
        assert not consumer.readings
        assert [each.levelno for each in caplog.records if "not measured any more" in each.message] == [logging.DEBUG]
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


@on_a_virtual_clock
async def test_a_driver_without_statistics_is_never_asked() -> None:
    consumer = Consumer()
    async with Host(publishing(), plugins=[a_driver("none"), consumer], node=NodeInfo()) as host:
        await host.start(TaskConfig(command="x"), "fake")
        await asyncio.sleep(10)
        assert not consumer.readings


@BOTH
@on_a_virtual_clock
async def test_other_errors_are_tried_again_after_1_2_4_5_5_seconds_and_logged_as_errors(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    times: list[float] = []

    def script(attempt: int) -> object:
        times.append(asyncio.get_running_loop().time())
        return RecoverableError("refused") if attempt <= 6 else None

    consumer = Consumer()
    async with Host(publishing("10s"), plugins=[scripted(kind, script), consumer], node=NodeInfo()) as host:
        await host.start(TaskConfig(command="x"), "fake")
        await asyncio.sleep(23)
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert waits[:6] == pytest.approx([1, 2, 4, 5, 5, 5])
        assert len(consumer.readings) == 1
        assert host.figures.errors_by_driver == {"fake": 6}
    errors = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert errors[0].exc_info is not None
    assert errors[0].__dict__["driver"] == "fake"
    assert len(errors) == 1  # the others are counted


@BOTH
@on_a_virtual_clock
async def test_the_count_of_attempts_starts_anew_after_a_success(kind: str) -> None:
    times: list[float] = []

    def script(attempt: int) -> object:
        times.append(asyncio.get_running_loop().time())
        return RecoverableError("again") if attempt in (1, 2, 4, 5) else None

    async def on_stats(task: FakeTask, interval_s: float) -> AsyncGenerator[Any, None]:
        error = script(task.reads)
        if isinstance(error, Exception):
            raise error
        yield counters(tick_ns(None))

    def on_read(task: FakeTask, tick: Any) -> Any:
        error = script(task.reads)
        if isinstance(error, Exception):
            raise error
        return counters(tick.at_ns)

    driver = a_driver(kind, on_read=on_read) if kind == "read" else a_driver(kind, on_stats=on_stats)
    async with Host(publishing("10s"), plugins=[driver], node=NodeInfo()) as host:
        await host.start(TaskConfig(command="x"), "fake")
        await asyncio.sleep(40)
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert waits[:2] == pytest.approx([1, 2])
        assert waits[3:5] == pytest.approx([1, 2])  # not 4, 5


@BOTH
@on_a_virtual_clock
async def test_a_plugin_that_shuts_down_is_asked_again_with_a_debug_line(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "cameleer")
    consumer = Consumer()
    driver = scripted(kind, lambda n: PluginShutdown("restarting") if n == 1 else None)
    async with Host(publishing("10s"), plugins=[driver, consumer], node=NodeInfo()) as host:
        await host.start(TaskConfig(command="x"), "fake")
        await asyncio.sleep(1.5)
        assert len(consumer.readings) == 1
    assert "shutting down" in caplog.text
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


@BOTH
@on_a_virtual_clock
async def test_an_end_during_a_back_off_ends_it_at_once(kind: str) -> None:
    loop = asyncio.get_running_loop()
    driver = scripted(kind, lambda n: RecoverableError("down"))
    async with Host(publishing(), plugins=[driver], node=NodeInfo()) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        await asyncio.sleep(13)  # in the middle of a wait of 5 s
        before = loop.time()
        fake_of(task).finish()
        await task.wait()
        assert loop.time() - before < 0.1


@BOTH
@on_a_virtual_clock
async def test_with_publishing_off_nothing_is_read_at_all(kind: str) -> None:
    consumer = Consumer()
    async with Host(publishing(on=False), plugins=[scripted(kind, lambda n: None), consumer], node=NodeInfo()) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        await asyncio.sleep(3600)
        fake = fake_of(task)
        assert fake.reads == 0
        fake.finish()
        await task.wait()
        assert fake.reads == 0
        assert not consumer.readings


@BOTH
@on_a_virtual_clock
async def test_publishing_can_be_switched_while_tasks_run(kind: str) -> None:
    import dataclasses

    consumer = Consumer()
    async with Host(publishing(on=False), plugins=[scripted(kind, lambda n: None), consumer], node=NodeInfo()) as host:
        await host.start(TaskConfig(command="x"), "fake")
        await asyncio.sleep(10)
        assert not consumer.readings
        host.telemetry = dataclasses.replace(host.telemetry, publish_allocation_metrics=True)
        await asyncio.sleep(10.5)
        assert 10 <= len(consumer.readings) <= 12
        host.telemetry = dataclasses.replace(host.telemetry, publish_allocation_metrics=False)
        await asyncio.sleep(0)
        before = len(consumer.readings)
        await asyncio.sleep(10)
        assert len(consumer.readings) == before
        assert host.figures.measured_tasks == 0


@BOTH
@on_a_virtual_clock
async def test_a_second_poststart_replaces_the_first_collection(kind: str) -> None:
    consumer = Consumer()
    async with Host(publishing("10s"), plugins=[scripted(kind, lambda n: None), consumer], node=NodeInfo()) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        hook = host.hooks.manager.get_plugin("stats_hook")
        assert isinstance(hook, StatsHook)
        await asyncio.sleep(0.1)
        await hook.poststart(PoststartRequest(task=task))
        await asyncio.sleep(0.1)
        assert len(consumer.readings) == 2  # one first reading each
        await asyncio.sleep(100)
        assert len(consumer.readings) == pytest.approx(12, abs=1)


@BOTH
@on_a_virtual_clock
async def test_exited_after_shutdown_is_harmless(kind: str) -> None:
    consumer = Consumer()
    async with Host(publishing(), plugins=[scripted(kind, lambda n: None), consumer], node=NodeInfo()) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        hook = host.hooks.manager.get_plugin("stats_hook")
        assert isinstance(hook, StatsHook)
        await asyncio.sleep(1.5)
        await hook.shutdown()
        before = len(consumer.readings)
        await asyncio.sleep(10)
        assert len(consumer.readings) == before
        fake_of(task).finish()
        result = await task.wait()
        await hook.exited(ExitedRequest(task=task, result=result))


@BOTH
@on_a_virtual_clock
async def test_a_slow_consumer_loses_readings_and_holds_up_nobody(kind: str) -> None:
    class Slow:
        got = 0

        @hookimpl
        async def update_stats(self, readings: Any) -> None:
            Slow.got += len(readings)
            await asyncio.sleep(4.9)

    consumer = Consumer()
    driver = scripted(kind, lambda n: None)
    async with Host(publishing(), plugins=[driver, consumer, Slow()], node=NodeInfo()) as host:
        await host.start(TaskConfig(command="x"), "fake")
        await asyncio.sleep(50.5)
        assert len(consumer.readings) in (51, 52)
        assert 10 <= Slow.got <= 12
        assert host.figures.dropped_by_plugin["Slow"] == pytest.approx(40, abs=3)


@on_a_virtual_clock
async def test_a_consumer_that_is_loaded_while_publishing_is_off_is_told_the_key_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cameleer")
    async with Host(publishing(on=False), plugins=[Consumer()], node=NodeInfo()):
        pass
    lines = [each for each in caplog.records if "telemetry.publish_allocation_metrics" in each.message]
    assert [each.levelno for each in lines] == [logging.INFO]
    assert "Consumer" in lines[0].message


@on_a_virtual_clock
async def test_after_a_restart_of_the_host_poststart_runs_again_and_collection_resumes(tmp_path: Any) -> None:
    state = tmp_path / "state"

    class Lasting(FakeDriver):
        async def recover(self, handle: Any) -> Any:
            return await self.start(handle.config)

    async with Host(publishing(), plugins=[Lasting], node=NodeInfo(), state_dir=state, on_exit="detach") as host:
        await host.start(TaskConfig(command="x", id="one"), "fake")
    consumer = Consumer()
    async with Host(publishing(), plugins=[Lasting, consumer], node=NodeInfo(), state_dir=state) as host:
        (task,) = await host.recover()
        await asyncio.sleep(3.5)
        assert task.id == "one"
        assert len(consumer.readings) in (4, 5)
