"""Drivers whose tasks do what a test says."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from cameleer.blocking import BlockingDriver, BlockingTask
from cameleer.config import TaskConfig
from cameleer.driver import Capabilities, Driver, RunningTask, Tick
from cameleer.status import Exit
from cameleer.usage import Counters, CpuUsage, MemoryUsage


def counters(at_ns: int, cpu_ns: int = 0, rss_bytes: int = 1) -> Counters:
    return Counters(
        at_ns=at_ns,
        taken_at_ns=time.time_ns(),
        cpu=CpuUsage(total_ns=cpu_ns, user_ns=cpu_ns, system_ns=0),
        memory=MemoryUsage(rss_bytes=rss_bytes, measure="rss_sum"),
    )


class FakeTask(RunningTask):
    """A task that ends when it is told to, and uses half a core."""

    def __init__(self, config: TaskConfig, driver: Any) -> None:
        super().__init__(config, b"fake")
        self.driver = driver
        self.end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.signals: list[int] = []
        self.destroyed = 0
        self.reads = 0

    async def wait(self) -> Exit:
        return await asyncio.shield(self.end)

    async def signal(self, signum: int) -> None:
        self.signals.append(signum)
        self.finish(Exit(exit_code=128 + signum, signal=signum))

    def finish(self, end: Exit | None = None) -> None:
        if not self.end.done():
            self.end.set_result(end or Exit(exit_code=0))

    async def destroy(self, force: bool = False) -> None:
        self.destroyed += 1


class ReadTask(FakeTask):
    def read(self, tick: Tick) -> Counters:
        self.reads += 1
        if self.driver.on_read is not None:
            return self.driver.on_read(self, tick)  # type: ignore[no-any-return]
        return counters(tick.at_ns, tick.at_ns // 2)


class StreamTask(FakeTask):
    async def stats(self, interval_s: float) -> AsyncGenerator[Counters, None]:
        self.reads += 1
        async for each in self.driver.on_stats(self, interval_s):
            yield each


class FakeDriver(Driver):
    """Reads in the loop.

    :cvar on_read: in place of the task's own reading.
    """

    name = "fake"
    task_type: type[FakeTask] = ReadTask
    reads_never_block = True
    capabilities = Capabilities(honours=frozenset({"cpu_quota_cores", "memory_bytes"}))
    on_read: Callable[[Any, Tick], Counters] | None = None
    on_stats: Callable[[Any, float], AsyncGenerator[Counters, None]]

    def __init__(self, config: Any, node: Any) -> None:
        super().__init__(config, node)
        self.started: list[FakeTask] = []

    async def start(self, task: TaskConfig) -> RunningTask:
        made = self.task_type(task, self)
        self.started.append(made)
        return made


def a_driver(kind: str = "read", *, name: str = "fake", **attributes: Any) -> type[FakeDriver]:
    """Make a driver class.

    :param kind: ``read`` (in the loop), ``thread`` (in a thread of its own), ``stream``, ``none`` (no statistics).
    """
    task_type = {"read": ReadTask, "thread": ReadTask, "stream": StreamTask, "none": FakeTask}[kind]
    body = {"name": name, "task_type": task_type, "reads_never_block": kind != "thread", **attributes}
    for key in ("on_read", "on_stats"):
        if key in body:
            body[key] = staticmethod(body[key])
    return type(f"Fake_{name}", (FakeDriver,), body)


class FunctionTask(BlockingTask):
    """A blocking task that ends when it is signalled."""

    def __init__(self, config: TaskConfig, driver: FunctionDriver) -> None:
        super().__init__(config)
        self.driver = driver
        self.ended = threading.Event()
        self.end = Exit(exit_code=0)
        self.destroyed = 0

    def poll(self) -> Exit | None:
        return self.end if self.ended.is_set() else None

    def signal(self, signum: int) -> None:
        self.end = Exit(exit_code=128 + signum, signal=signum)
        self.ended.set()

    def read(self, tick: Tick) -> Counters:
        return counters(tick.at_ns, tick.at_ns // 2)

    def destroy(self, force: bool = False) -> None:
        self.destroyed += 1


class FunctionDriver(BlockingDriver):
    name = "function"
    task_type = FunctionTask

    def start(self, task: TaskConfig) -> BlockingTask:
        return FunctionTask(task, self)
