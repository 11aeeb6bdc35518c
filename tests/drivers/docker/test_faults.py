"""Engines that are killed, frozen and started again while tasks run. They have engines of their own."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
from containers import hosting, shell, traces, until, written
from engine import Engine, needs_engine
from engine import running as running_engine
from fakes import a_driver

from cameleer.config import Stdio, TaskConfig
from cameleer.errors import RecoverableError
from cameleer.host import Host
from cameleer.status import FinalStatus
from cameleer.task import Task, TaskState
from cameleer.usage import TaskResourceUsage

pytestmark = [pytest.mark.root, needs_engine]

SOON_S = 60.0
TASKS = 20
FOREVER = "trap exit TERM; while :; do sleep 0.1; done"
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


@pytest.fixture(scope="module")
def own() -> Iterator[Engine]:
    """An engine that may be harmed; each test leaves it running."""
    with running_engine() as engine:
        yield engine


async def pids_of(engine: Engine, tasks: Sequence[Task]) -> list[int]:
    """Their first processes."""
    ids = [(await task.inspect())["container_id"] for task in tasks]
    return [int(pid) for pid in engine.out("inspect", "--format={{.State.Pid}}", *ids).split()]


async def wait_for_health(host: Host, health: str) -> str:
    """Wait until the driver says that it is so; its description."""
    driver = (await host.driver("docker"))._driver
    async with asyncio.timeout(SOON_S), aclosing(driver.fingerprint()) as source:
        async for found in source:
            if found.health == health:
                return found.description
    raise AssertionError("the fingerprint ended")


async def test_an_engine_killed_and_started_again_costs_no_task_its_end(tmp_path: Path) -> None:
    with running_engine("--live-restore") as engine:
        await killed_while_twenty_tasks_run(engine, tmp_path)


async def killed_while_twenty_tasks_run(engine: Engine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.mkdir()
    waiting = "while [ ! -e /go/ahead ]; do sleep 0.05; done; exit 7"
    mount = {"volumes": [f"{go}:/go:ro"]}
    async with hosting(engine, call_timeout="5s") as host:
        ends_meanwhile = [shell(waiting, driver_config=mount) for _ in range(5)]
        lives_on = [
            shell(COUNTING, stdout=Stdio.file(tmp_path / f"on-{number}"))
            for number in range(TASKS - len(ends_meanwhile))
        ]
        tasks = await started(host, *ends_meanwhile, *lives_on)
        meanwhile, on = tasks[: len(ends_meanwhile)], tasks[len(ends_meanwhile) :]
        for number in range(len(on)):
            await written(tmp_path / f"on-{number}")
        readers = [Reader(task, 0.5) for task in on]
        waits = [asyncio.ensure_future(task.wait()) for task in tasks]
        try:
            await readers[0].more()
            pids = await pids_of(engine, meanwhile)
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
            await asyncio.gather(*(reader.more() for reader in readers))
            await asyncio.gather(*(task.signal(10) for task in on))
            async with asyncio.timeout(SOON_S):
                ended = await asyncio.gather(*waits[len(meanwhile) :])
            assert [result.exit_code for result in ended] == [5] * len(on)
        finally:
            for reader in readers:
                await reader.close()
        host_id = host.node.host_id
    assert traces(engine, host_id) == []


async def test_an_engine_that_takes_its_containers_with_it_tells_how_they_ended(own: Engine, tmp_path: Path) -> None:
    engine = own
    async with hosting(engine, call_timeout="5s") as host:
        script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done"
        outputs = [tmp_path / f"out-{number}" for number in range(3)]
        tasks = await started(host, *(shell(script, stdout=Stdio.file(each)) for each in outputs))
        for each in outputs:
            await written(each)
        engine.kill()
        await wait_for_health(host, "unhealthy")
        engine.start()
        async with asyncio.timeout(SOON_S):
            results = await asyncio.gather(*(task.wait() for task in tasks))
        told = [(await task.inspect())["container_id"] for task in tasks]
        codes = engine.out("inspect", "--format={{.State.ExitCode}}", *told).split()
        assert [str(result.exit_code) for result in results] == codes
        assert set(codes) <= {"9", "137"}
        assert not any(result.oom_killed for result in results)
        host_id = host.node.host_id
    assert traces(engine, host_id) == []


async def test_a_frozen_engine_holds_up_nobody_else(own: Engine) -> None:
    engine = own
    other = a_driver("thread", name="other")
    async with hosting(engine, other, call_timeout="1s", deadlines={"stop": 1.5, "start": 3.0, "call": 3.0}) as host:
        task, spare = await started(host, shell("while :; do :; done"), shell(FOREVER))
        neighbour = await host.start(TaskConfig(command="x"), "other")
        local, others = Reader(task, 0.2), Reader(neighbour, 0.1)
        try:
            await local.more()
            engine.freeze()
            try:
                began = time.monotonic()
                with pytest.raises(RecoverableError):
                    await spare.signal(1)
                assert time.monotonic() - began < 5
                began = time.monotonic()
                with pytest.raises(RecoverableError):
                    await host.start(shell("true"), "docker")
                assert time.monotonic() - began < 8
                with pytest.raises(RecoverableError):
                    await spare.stop(0)
                assert "has not answered" in await wait_for_health(host, "unhealthy")
                await local.more(5)
                await others.more(5)
                assert neighbour.info.state is task.info.state is spare.info.state is TaskState.RUNNING
                assert others.longest_gap_s() < 1
                assert local.longest_gap_s() < 2
            finally:
                engine.thaw()
            await wait_for_health(host, "healthy")
            assert (await host.run(shell("exit 3"), "docker")).exit_code == 3
            assert {each.health for each in await host.drivers() if each.name == "docker"} == {"healthy"}
            async with asyncio.timeout(SOON_S):
                await spare.stop(0)
                assert (await spare.wait()).status is FinalStatus.KILLED
        finally:
            await local.close()
            await others.close()
        await until(lambda: len(engine.containers()) == 2, "what was given up has been left")
        host_id = host.node.host_id
    assert traces(engine, host_id) == []


@pytest.mark.parametrize(("call_timeout", "recoverable"), [("500ms", False), ("20s", True), ("500ms", True)])
async def test_what_the_engine_makes_too_late_is_removed(
    own: Engine, tmp_path: Path, call_timeout: str, recoverable: bool
) -> None:
    """Its call has failed by then, or was given up while it still waits."""
    engine = own
    state = tmp_path if recoverable else None
    async with hosting(engine, state_dir=state, call_timeout=call_timeout, deadlines={"start": 1.5}) as host:
        await host.run(shell("true"), "docker")
        driver, late = await host.driver("docker"), shell("sleep 1000", id="late")
        await driver.prepare(late)
        engine.freeze()
        try:
            with pytest.raises(RecoverableError):
                await driver.start(late)
        finally:
            engine.thaw()
        await until(lambda: traces(engine, host.node.host_id, state) == [], "something was left", SOON_S)
        await asyncio.sleep(0.3)
        assert traces(engine, host.node.host_id, state) == []
        assert (await host.run(shell("exit 3", id="late"), "docker")).exit_code == 3


async def test_a_driver_closed_while_its_engine_hangs_keeps_nothing_and_its_reaper_does_the_rest(own: Engine) -> None:
    engine = own
    before = {thread.name for thread in threading.enumerate()}
    async with hosting(engine) as host:
        await host.run(shell("true"), "docker")
        starting = asyncio.ensure_future(host.start(shell("sleep 1000"), "docker"))
        await until(lambda: "created" in states(engine) or "running" in states(engine), "none was created")
        engine.freeze()
        starting.cancel()
        await asyncio.wait([starting])
        host_id = host.node.host_id
        descriptors = len(os.listdir("/proc/self/fd"))
    try:
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(os.listdir("/proc/self/fd")) < descriptors
    finally:
        engine.thaw()
    await until(lambda: traces(engine, host_id) == [], "something was left", SOON_S)
    await until(lambda: {each.name for each in threading.enumerate()} <= before, "a thread was left", SOON_S)


def states(engine: Engine) -> list[str]:
    return engine.out("ps", "--all", "--format={{.State}}").split()


async def test_an_engine_killed_within_a_start_leaves_nothing_when_it_is_back(own: Engine, tmp_path: Path) -> None:
    engine = own
    async with hosting(engine, state_dir=tmp_path, call_timeout="5s") as host:
        await host.run(shell("true"), "docker")
        work = [asyncio.ensure_future(host.start(shell(FOREVER), "docker")) for _ in range(8)]
        await until(lambda: "created" in states(engine) or "running" in states(engine), "none was created")
        engine.kill()
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        assert all(isinstance(each, Task | RecoverableError) for each in outcomes), outcomes
        engine.start()
        await wait_for_health(host, "healthy")
        begun = [each for each in outcomes if isinstance(each, Task)]
        await until(
            lambda: len(engine.containers()) == len(begun) == len(list((tmp_path / "docker").iterdir())),
            "what could not be started has been left",
            SOON_S,
        )
        assert (await host.run(shell("exit 4"), "docker")).exit_code == 4
        host_id = host.node.host_id
    assert traces(engine, host_id, tmp_path) == []
