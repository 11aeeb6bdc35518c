"""Drivers and hook plugins that misbehave: the others keep their interval, the culprit is named, and comes back."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from fakes import FakeDriver, FakeTask, FunctionDriver, FunctionTask, ReadTask, a_driver, counters

from cameleer.config import TaskConfig
from cameleer.driver import Fingerprint, RunningTask, Tick
from cameleer.errors import DeadlineExceeded, RecoverableError, UnrecoverableError
from cameleer.hooks.specs import hookimpl
from cameleer.host import Host
from cameleer.node import NodeInfo
from cameleer.status import Exit, FinalStatus
from cameleer.usage import Counters

SOON_S = 10.0


class Consumer:
    """Counts what is published, by task id."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.news = asyncio.Event()

    @hookimpl
    async def update_stats(self, readings: Any) -> None:
        for task, _ in readings:
            self.counts[task.id] = self.counts.get(task.id, 0) + 1
        self.news.set()

    async def reaches(self, task_id: str, count: int) -> None:
        async with asyncio.timeout(SOON_S):
            while self.counts.get(task_id, 0) < count:
                self.news.clear()
                await self.news.wait()


def a_host(*plugins: object, call_s: float = 0.3, start_s: float = 0.3) -> Host:
    return Host(
        {
            "telemetry": {"publish_allocation_metrics": True, "collection_interval": 0.05},
            "plugins": {"hooks": ["stats_hook"]},
            "deadlines": {"call": call_s, "start": start_s, "stop": 0.5},
        },
        plugins=plugins,
        node=NodeInfo(),
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.005)


async def health(host: Host, name: str) -> tuple[str, str]:
    info = next(each for each in await host.drivers() if each.name == name)
    return info.health, info.health_description


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a hanging call waits for; opened at the latest at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_read_that_raises_makes_its_driver_unhealthy_until_it_works_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = True

    def on_read(task: FakeTask, tick: Tick) -> Counters:
        if broken:
            raise OSError("disk on fire")
        return counters(tick.at_ns)

    consumer = Consumer()
    drivers = a_driver(name="bad", on_read=on_read), a_driver(name="good")
    async with a_host(*drivers, consumer, call_s=SOON_S, start_s=SOON_S) as host:
        await host.start(TaskConfig(id="b", command="x"), "bad")
        await host.start(TaskConfig(id="g", command="x"), "good")
        await consumer.reaches("g", 5)
        assert "b" not in consumer.counts
        assert (await health(host, "bad"))[0] == "unhealthy"
        assert "disk on fire" in (await health(host, "bad"))[1]
        assert (await health(host, "good"))[0] == "healthy"
        broken = False
        await consumer.reaches("b", 3)
        assert (await health(host, "bad"))[0] == "healthy"
    assert "task b" in caplog.text


@pytest.mark.parametrize("kind", ["read", "thread"])
@pytest.mark.parametrize("nonsense", [None, 5, "text", Counters])
async def test_a_read_that_returns_nonsense_is_an_error_of_its_driver_alone(kind: str, nonsense: object) -> None:
    consumer = Consumer()
    bad = a_driver(kind, name="bad", on_read=lambda task, tick: nonsense)
    async with a_host(bad, a_driver(name="good"), consumer) as host:
        await host.start(TaskConfig(id="b", command="x"), "bad")
        await host.start(TaskConfig(id="g", command="x"), "good")
        await consumer.reaches("g", 5)
        await until(lambda: host.figures.errors_by_driver.get("bad", 0) >= 1)
        assert "b" not in consumer.counts
        assert (await health(host, "bad"))[0] == "unhealthy"


async def test_a_read_that_hangs_stalls_its_driver_only_and_recovers_when_it_returns(gate: threading.Event) -> None:
    hang = True

    def on_read(task: FakeTask, tick: Tick) -> Counters:
        if hang and task.config.id == "b" and task.reads == 3:
            gate.wait()
            return counters(tick.at_ns, 10**18)  # must never be seen
        return counters(tick.at_ns, tick.at_ns // 2)

    consumer = Consumer()
    async with a_host(a_driver("thread", name="bad", on_read=on_read), a_driver(name="good"), consumer) as host:
        bad = await host.start(TaskConfig(id="b", command="x"), "bad")
        await host.start(TaskConfig(id="b2", command="x"), "bad")
        await host.start(TaskConfig(id="g", command="x"), "good")
        await until(lambda: host.figures.abandoned_by_driver.get("bad", 0) == 1)
        stalled = consumer.counts["b"]
        assert (await health(host, "bad"))[0] == "unhealthy"
        assert "task b did" in (await health(host, "bad"))[1]
        await consumer.reaches("g", consumer.counts["g"] + 5)
        await consumer.reaches("b2", consumer.counts.get("b2", 0) + 3)  # the driver's other task goes on
        assert consumer.counts["b"] == stalled
        gate.set()
        await consumer.reaches("b", stalled + 3)
        assert (await health(host, "bad"))[0] == "healthy"
        assert bad.latest is not None
        assert bad.latest.cpu.total_ns is not None
        assert bad.latest.cpu.total_ns < 10**18


async def test_destroy_during_a_running_read_waits_for_it(gate: threading.Event) -> None:
    reading = threading.Event()
    closed = threading.Event()

    class Careful(ReadTask):
        def read(self, tick: Tick) -> Counters:
            if self.reads:
                reading.set()
                gate.wait()
            self.reads += 1
            assert not closed.is_set()
            return counters(tick.at_ns)

        async def destroy(self, force: bool = False) -> None:
            closed.set()

    class CarefulDriver(FakeDriver):
        task_type = Careful
        reads_never_block = False

    consumer = Consumer()
    async with a_host(CarefulDriver, consumer, call_s=5) as host:
        task = await host.start(TaskConfig(id="c", command="x"), "fake")
        await until(reading.is_set)
        destroying = asyncio.create_task(task.destroy(force=True))
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert not closed.is_set()
        gate.set()
        await destroying
        assert closed.is_set()
        assert "c" not in host.tasks


async def test_destroy_of_a_task_whose_read_hangs_goes_on_after_the_deadline(gate: threading.Event) -> None:
    def on_read(task: FakeTask, tick: Tick) -> Counters:
        gate.wait()
        return counters(tick.at_ns)

    consumer = Consumer()
    async with a_host(a_driver("thread", on_read=on_read), consumer) as host:
        task = await host.start(TaskConfig(id="b", command="x"), "fake")
        async with asyncio.timeout(SOON_S):
            await task.destroy(force=True)
        gate.set()
        await asyncio.sleep(0.05)
        assert not consumer.counts


async def test_a_start_that_hangs_is_abandoned_and_its_task_removed_when_it_appears() -> None:
    release = asyncio.Event()
    made: list[FakeTask] = []

    class Slow(FakeDriver):
        async def start(self, task: TaskConfig) -> RunningTask:
            try:
                await release.wait()
            except asyncio.CancelledError:
                await release.wait()  # it takes no notice
            made.append(ReadTask(task, self))
            return made[0]

    async with a_host(Slow) as host:
        with pytest.raises(DeadlineExceeded, match=r"fake\.start did not return within 0\.3 s"):
            await host.start(TaskConfig(id="late", command="x"), "fake")
        assert not host.tasks
        assert (await health(host, "fake"))[0] == "unhealthy"
        release.set()
        await until(lambda: bool(made) and made[0].destroyed == 1)
        assert not host.tasks


async def test_a_blocking_start_that_hangs_is_abandoned_and_undone_when_it_returns(gate: threading.Event) -> None:
    made: list[FunctionTask] = []

    class Slow(FunctionDriver):
        def start(self, task: TaskConfig) -> FunctionTask:
            gate.wait()
            made.append(FunctionTask(task, self))
            return made[0]

    async with a_host(Slow) as host:
        with pytest.raises(DeadlineExceeded):
            await host.start(TaskConfig(id="late", command="x"), "function")
        gate.set()
        await until(lambda: bool(made) and made[0].destroyed == 1 and made[0].ended.is_set())


async def test_a_driver_that_holds_the_loop_is_named_with_its_line(caplog: pytest.LogCaptureFixture) -> None:
    class Rude(FakeDriver):
        async def start(self, task: TaskConfig) -> RunningTask:
            time.sleep(0.35)  # what it must not do
            return await super().start(task)

    async with a_host(Rude, start_s=5) as host:
        await host.start(TaskConfig(command="x"), "fake")
    (line,) = [each.message for each in caplog.records if "held the event loop" in each.message]
    assert line.startswith("fake.start held")
    assert "test_faults.py" in line
    assert "in start" in line


@pytest.mark.parametrize("error", [RuntimeError("boom"), SystemExit(3), UnrecoverableError("gone")])
async def test_a_driver_whose_start_raises_leaves_no_task(error: BaseException) -> None:
    class Bad(FakeDriver):
        async def start(self, task: TaskConfig) -> RunningTask:
            raise error

    async with a_host(Bad) as host:
        expected = UnrecoverableError if isinstance(error, UnrecoverableError) else RecoverableError
        with pytest.raises(expected) as caught:
            await host.start(TaskConfig(id="t", command="x"), "fake")
        if not isinstance(error, UnrecoverableError):
            assert caught.value.__cause__ is error
        assert not host.tasks


async def test_a_wait_that_fails_is_tried_again_and_never_taken_for_success() -> None:
    class Flaky(ReadTask):
        waits = 0

        async def wait(self) -> Exit:
            Flaky.waits += 1
            if Flaky.waits == 1:
                raise ConnectionResetError("the engine went away")
            return Exit(exit_code=3)

    async with a_host(a_driver(task_type=Flaky)) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        async with asyncio.timeout(SOON_S):
            result = await task.wait()
        assert (result.status, result.exit_code) == (FinalStatus.ERROR, 3)
        assert Flaky.waits == 2


async def test_a_wait_that_cannot_succeed_ends_with_an_unknown_exit_code() -> None:
    class Lost(ReadTask):
        async def wait(self) -> Exit:
            raise UnrecoverableError("no such container")

    async with a_host(a_driver(task_type=Lost)) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        result = await task.wait()
        assert (result.status, result.exit_code) == (FinalStatus.ERROR, None)
        assert "no such container" in str(result.error)


async def test_a_hook_plugin_that_hangs_is_suspended_and_the_others_are_served(
    gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    class Hanging:
        calls = 0

        @hookimpl
        def update_stats(self, readings: Any) -> None:
            Hanging.calls += 1
            gate.wait()

    class Plain:
        count = 0

        @hookimpl
        def update_stats(self, readings: Any) -> None:
            Plain.count += len(readings)

    async with a_host(a_driver(), Plain(), Hanging()) as host:
        await host.start(TaskConfig(id="t", command="x"), "fake")
        await until(lambda: "plugin Hanging did not return from update_stats" in caplog.text)
        before = Plain.count
        await until(lambda: Plain.count > before + 5)
        assert Hanging.calls == 1
        assert host.figures.dropped_by_plugin["Hanging"] > 0


async def test_a_hook_that_hangs_in_an_event_does_not_keep_the_others_from_it(
    gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    class Hanging:
        @hookimpl
        def exited(self, request: Any) -> None:
            gate.wait()

    class Raising:
        @hookimpl
        async def exited(self, request: Any) -> None:
            raise ValueError("oops")

    class Plain:
        @hookimpl
        def exited(self, request: Any) -> None:
            seen.append(request.result.status)

    async with a_host(a_driver(), Plain(), Raising(), Hanging(), call_s=3) as host:  # the others have a tenth of it
        task = await host.start(TaskConfig(id="t", command="x"), "fake")
        task._life.running.finish()  # type: ignore[union-attr]
        async with asyncio.timeout(SOON_S):
            assert (await task.wait()).status is FinalStatus.SUCCESS
        assert seen == ["success"]
    assert "plugin Hanging did not return from exited within 3 s" in caplog.text
    assert "plugin Raising failed in exited" in caplog.text


async def test_a_stream_that_falls_silent_is_reported_stale(caplog: pytest.LogCaptureFixture) -> None:
    async def silent(task: FakeTask, interval_s: float) -> AsyncGenerator[Counters, None]:
        yield counters(time.monotonic_ns())
        await asyncio.Event().wait()

    async with a_host(a_driver("stream", on_stats=silent)) as host:
        await host.start(TaskConfig(id="quiet", command="x"), "fake")
        await until(lambda: "the stream of task quiet is stale" in caplog.text)


async def test_readings_of_a_stream_that_come_late_are_counted() -> None:
    began_ns = time.monotonic_ns()
    gaps_s = (0, 0.05, 0.05, 0.054, 0.06, 0.05, 1)  # at an interval of 0.05

    async def stream(task: FakeTask, interval_s: float) -> AsyncGenerator[Counters, None]:
        for passed_s in itertools.accumulate(gaps_s):
            yield counters(began_ns + int(passed_s * 1e9))
        await asyncio.Event().wait()

    async with a_host(a_driver("stream", on_stats=stream)) as host:
        await host.start(TaskConfig(command="x"), "fake")
        await until(lambda: host.figures.readings == len(gaps_s))
        assert host.figures.late_ticks == 2


async def test_two_hundred_blocking_tasks_wait_at_once_and_stop_answers_within_a_second() -> None:
    async with a_host(FunctionDriver, start_s=10) as host:
        tasks = [await host.start(TaskConfig(id=f"t{n}", command="x"), "function") for n in range(200)]
        waiting = [asyncio.create_task(task.wait()) for task in tasks]
        began = time.monotonic()
        await tasks[150].stop(5)
        assert time.monotonic() - began < 1
        assert (await waiting[150]).status is FinalStatus.KILLED
        assert sum(each.done() for each in waiting) == 1
        assert sum("function" in each.name for each in threading.enumerate()) < 40
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_driver_that_says_it_is_well_again_is_held_for_well_again() -> None:
    words: asyncio.Queue[Fingerprint] = asyncio.Queue()

    class Wavering(a_driver(name="wavering")):  # type: ignore[misc]
        async def fingerprint(self) -> AsyncGenerator[Fingerprint, None]:
            while True:
                yield await words.get()

    async with a_host(Wavering) as host:
        driver = await host.driver("wavering")
        driver.misbehaves("a call was abandoned")
        async with aclosing(driver.fingerprint()) as found:
            for health, expected in (("healthy", "unhealthy"), ("unhealthy", "unhealthy"), ("healthy", "healthy")):
                words.put_nowait(Fingerprint(health=health))
                assert (await anext(found)).health == expected
        assert driver.problem is None
