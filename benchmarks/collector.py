"""What the host costs per task-sample: scheduler, model, hook call and one consumer, with a driver whose read is free.

    python benchmarks/collector.py [--seconds 10] [--tasks 1000 10000]

CPU time of the whole process, all threads, on a real clock at an interval of 1 s, divided by the readings that
reached the consumer. The forms of driver: a plain ``read`` in the loop; a blocking one, read in its own thread, whose
tasks have a descriptor (``blocking``) or are asked ten times a second for their end (``polled``); an ``async`` stream
at the host's beat.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from cameleer.adapter import AdaptedTask
from cameleer.beat import ticks
from cameleer.blocking import BlockingDriver, BlockingTask
from cameleer.config import TaskConfig
from cameleer.driver import Driver, RunningTask, Tick
from cameleer.hooks.specs import hookimpl
from cameleer.host import Host
from cameleer.status import Exit
from cameleer.usage import Counters, CpuUsage, MemoryUsage

MEMORY = MemoryUsage(rss_bytes=1 << 20, usage_bytes=1 << 21, working_set_bytes=1 << 20, measure="cgroup")


class Free:
    """Counters made once a sweep: what a read costs is the driver's business and not measured here."""

    at_ns = 0
    counters: Counters

    @classmethod
    def count(cls, at_ns: int) -> Counters:
        if at_ns != cls.at_ns:
            cls.at_ns = at_ns
            cls.counters = Counters(
                at_ns=at_ns,
                taken_at_ns=at_ns,
                cpu=CpuUsage(total_ns=at_ns // 2, user_ns=at_ns // 4, system_ns=at_ns // 4),
                memory=MEMORY,
            )
        return cls.counters


class Endless(RunningTask):
    async def wait(self) -> Exit:
        await asyncio.Event().wait()
        raise AssertionError

    async def signal(self, signum: int) -> None: ...

    async def stop(self, timeout_s: float, signum: int) -> None: ...


class Read(Endless):
    def read(self, tick: Tick) -> Counters:
        return Free.count(tick.at_ns)


class Stream(Endless):
    async def stats(self, interval_s: float) -> AsyncGenerator[Counters, None]:
        async for tick in ticks(interval_s):
            yield Free.count(tick.at_ns)


class ReadDriver(Driver):
    name = "read"
    task_type: Any = Read
    reads_never_block = True

    async def start(self, task: TaskConfig) -> RunningTask:
        return self.task_type(task)  # type: ignore[no-any-return]


class StreamDriver(ReadDriver):
    name = "stream"
    task_type = Stream


class FunctionTask(BlockingTask):
    def poll(self) -> Exit | None:
        return None

    def signal(self, signum: int) -> None: ...

    def read(self, tick: Tick) -> Counters:
        return Free.count(tick.at_ns)


class DescriptorTask(FunctionTask):
    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config)
        self.fd = os.eventfd(0)

    def fileno(self) -> int | None:
        return self.fd

    def destroy(self, force: bool = False) -> None:
        os.close(self.fd)


class BlockingReadDriver(BlockingDriver):
    name = "blocking"
    task_type: Any = DescriptorTask

    def start(self, task: TaskConfig) -> BlockingTask:
        return self.task_type(task)  # type: ignore[no-any-return]


class PolledDriver(BlockingReadDriver):
    name = "polled"
    task_type = FunctionTask


class Consumer:
    def __init__(self) -> None:
        self.readings = 0

    @hookimpl
    def update_stats(self, readings: Sequence[Any]) -> None:
        for _task, usage in readings:
            if usage.cpu.percent is not None:
                self.readings += 1


async def measure(driver: type[Any], tasks: int, seconds: float) -> tuple[float, int, Any]:
    consumer = Consumer()
    config = {"telemetry": {"publish_allocation_metrics": True}, "plugins": {"hooks": ["stats_hook"]}}
    async with Host(config, plugins=[driver, consumer]) as host:
        for number in range(tasks):
            await host.start(TaskConfig(id=f"t{number}", command="x"), driver.name)
        await asyncio.sleep(3)
        gc.collect()
        gc.freeze()
        readings, cpu = consumer.readings, time.process_time()
        await asyncio.sleep(seconds)
        cpu, readings = time.process_time() - cpu, consumer.readings - readings
        figures = host.figures
        for life in list(host._lives.values()):  # these tasks never end: leave them
            await life.leave()
            if isinstance(life.running, AdaptedTask):
                life.running.inner.destroy()
            life.forget()
    gc.unfreeze()
    return cpu * 1e6 / readings, readings, figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--drivers", nargs="+", default=["read", "blocking", "polled", "stream"])
    options = parser.parse_args()
    drivers: dict[str, Any] = {each.name: each for each in (ReadDriver, BlockingReadDriver, PolledDriver, StreamDriver)}
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"Python {sys.version.split()[0]}, 1 s interval, {options.seconds:g} s each")
    print("    driver   tasks  µs/task-sample  readings  late  missed  own figure")
    for tasks in options.tasks:
        for name in options.drivers:
            cost, readings, figures = asyncio.run(measure(drivers[name], tasks, options.seconds))
            own = figures.cpu_ns / 1000 / max(figures.readings, 1)
            late, missed = figures.late_ticks, figures.missed_ticks
            print(f"{name:>10} {tasks:>7} {cost:>15.2f} {readings:>9} {late:>5} {missed:>7} {own:>11.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
