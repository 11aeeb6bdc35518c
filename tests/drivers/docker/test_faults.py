"""Engines that are killed, frozen and started again while tasks run. Each test has an engine of its own."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from containers import hosting, shell, traces, until, written
from engine import Engine, needs_engine
from engine import running as running_engine
from fakes import a_driver

from cameleer.config import Stdio, TaskConfig
from cameleer.driver import RunningTask
from cameleer.drivers.docker import Docker
from cameleer.errors import DeadlineExceeded, DriverError, RecoverableError
from cameleer.host import Host
from cameleer.status import ExitResult, FinalStatus
from cameleer.task import Task, TaskState
from cameleer.usage import TaskResourceUsage

pytestmark = [pytest.mark.root, needs_engine]

SOON_S = 60.0
TASKS = 20
COUNTING = "trap 'exit 5' USR1; echo up; while :; do sleep 0.2; done"


async def started(host: Host, *configs: TaskConfig) -> list[Task]:
    return list(await asyncio.gather(*(host.start(config, "docker") for config in configs)))


class Reader:
    """Reads a task in the background.

    :ivar found: its readings.
    """

    def __init__(self, task: Task, interval_s: float) -> None:
        self.found: list[TaskResourceUsage] = []
        self._work = asyncio.get_running_loop().create_task(self._read(task, interval_s))

    async def _read(self, task: Task, interval_s: float) -> None:
        async for usage in task.readings(interval_s):
            self.found.append(usage)

    async def more(self, count: int = 2) -> None:
        """Wait for further readings."""
        wanted = len(self.found) + count
        await until(lambda: len(self.found) >= wanted, "no more readings came", SOON_S)

    async def close(self) -> None:
        self._work.cancel()
        with suppress(asyncio.CancelledError):
            await self._work

    def longest_gap_s(self) -> float:
        times = [usage.at_ns for usage in self.found]
        return max(later - earlier for earlier, later in itertools.pairwise(times)) / 1e9


@pytest.fixture
async def kept_alive() -> AsyncIterator[Engine]:
    """An engine whose containers live on without it."""
    with running_engine("--live-restore") as engine:
        yield engine


@pytest.fixture
async def own() -> AsyncIterator[Engine]:
    """An engine that may be harmed."""
    with running_engine() as engine:
        yield engine


async def wait_for_health(host: Host, health: str) -> str:
    """Wait until the driver says that it is so; its description."""
    driver = await host.driver("docker")
    async with asyncio.timeout(SOON_S):
        async for found in driver.fingerprint():
            if found.health == health:
                return found.description
    raise AssertionError("the fingerprint ended")


async def test_an_engine_killed_and_started_again_costs_no_task_its_end(kept_alive: Engine, tmp_path: Path) -> None:
    engine = kept_alive
    go = tmp_path / "go"
    go.mkdir()
    waiting = "while [ ! -e /go/ahead ]; do sleep 0.05; done; echo last; exit 7"
    mount = {"volumes": [f"{go}:/go:ro"]}
    async with hosting(engine, call_timeout="5s") as host:
        ends_meanwhile = [
            shell(waiting, stdout=Stdio.file(tmp_path / f"meanwhile-{number}"), driver_config=mount)
            for number in range(5)
        ]
        lives_on = [
            shell(COUNTING, stdout=Stdio.file(tmp_path / f"on-{number}")) for number in range(TASKS - len(ends_meanwhile))
        ]
        tasks = await started(host, *ends_meanwhile, *lives_on)
        meanwhile, on = tasks[: len(ends_meanwhile)], tasks[len(ends_meanwhile) :]
        for number in range(len(on)):
            await written(tmp_path / f"on-{number}")
        readers = [Reader(task, 0.5) for task in on]
        waits = [asyncio.ensure_future(task.wait()) for task in tasks]
        try:
            await readers[0].more()
            pids = {running_of(task).pid for task in meanwhile}
            engine.kill()
            assert "engine" in await wait_for_health(host, "unhealthy")
            (go / "ahead").touch()
            await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the tasks did not end")
            await readers[0].more()  # where the engine is away, the groups are still here
            assert not any(wait.done() for wait in waits)
            engine.start()
            await wait_for_health(host, "healthy")
            async with asyncio.timeout(SOON_S):
                ended = await asyncio.gather(*waits[: len(meanwhile)])
            assert [result.exit_code for result in ended] == [7] * len(meanwhile)
            assert [result.status for result in ended] == [FinalStatus.ERROR] * len(meanwhile)
            assert all(task.info.state is TaskState.RUNNING for task in on)
            for number in range(len(meanwhile)):
                assert (tmp_path / f"meanwhile-{number}").read_text() == "last\n"
            for reader in readers:
                await reader.more()
            await asyncio.gather(*(task.signal(10) for task in on))
            async with asyncio.timeout(SOON_S):
                ended = await asyncio.gather(*waits[len(meanwhile) :])
            assert [result.exit_code for result in ended] == [5] * len(on)
        finally:
            for reader in readers:
                await reader.close()
        host_id = host.node.host_id
    assert traces(engine, host_id) == []


def running_of(task: Task) -> Docker.task_type:  # type: ignore[name-defined]
    raise NotImplementedError
