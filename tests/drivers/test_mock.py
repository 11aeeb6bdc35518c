"""The mock passes the conformance suite as far as it offers what is asked, and does what its settings say."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from cameleer import (
    ConfigError,
    DeadlineExceeded,
    FinalStatus,
    Host,
    RecoverableError,
    StartError,
    StartRecoverable,
    Task,
    TaskConfig,
    TaskEvent,
    TaskState,
    UnrecoverableError,
)
from cameleer.drivers import mock
from cameleer.drivers.mock import Mock, MockTasks
from cameleer.testing import Commands, DriverSuite

COMMANDS: Commands = MockTasks()


class TestMock(DriverSuite):
    driver = Mock
    commands = COMMANDS


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with Host({"plugins": {"hooks": []}, "deadlines": {"call": 0.5, "stop": 0.5}}) as host:
        yield host


async def start(host: Host, **options: Any) -> Task:
    return await host.start(TaskConfig(driver_config=options, kill_timeout_s=5.0), driver="mock")


# starts


async def test_a_start_error_is_raised_as_it_was_scripted(host: Host) -> None:
    with pytest.raises(StartError, match="no such thing"):
        await start(host, start_error="no such thing")
    with pytest.raises(StartRecoverable, match="registry is down"):
        await start(host, start_error="registry is down", start_error_recoverable=True)
    assert not host.tasks


async def test_a_start_blocks_for_as_long_as_it_was_told(host: Host) -> None:
    began = time.monotonic()
    await start(host, start_block_for="150ms")
    assert time.monotonic() - began >= 0.15


@pytest.mark.parametrize("option", ["run_for", "kill_after", "start_block_for", "stats_block_for"])
async def test_a_wrong_duration_is_refused_at_the_start(host: Host, option: str) -> None:
    with pytest.raises(ConfigError, match=f"driver_config.{option} is 'soon'"):
        await start(host, **{option: "soon"})


async def test_an_unknown_option_names_the_nearest(host: Host) -> None:
    with pytest.raises(ConfigError, match="run_for"):
        await start(host, run_four="1s")


# ends


async def test_a_task_runs_for_as_long_as_it_was_told(host: Host) -> None:
    result = await (await start(host, run_for="200ms", exit_code=7)).wait()
    assert (result.status, result.exit_code) == (FinalStatus.ERROR, 7)
    assert result.usage.wall_ns is not None
    assert 150_000_000 < result.usage.wall_ns < 5_000_000_000


async def test_a_task_ends_by_the_signal_it_was_told(host: Host) -> None:
    result = await (await start(host, exit_signal=11)).wait()
    assert (result.status, result.exit_code, result.signal) == (FinalStatus.ERROR, 139, 11)


async def test_a_task_says_that_it_ran_out_of_memory(host: Host) -> None:
    result = await (await start(host, exit_signal=9, oom_killed=True)).wait()
    assert (result.status, result.oom_killed) == (FinalStatus.KILLED, True)


async def test_the_drivers_own_error_is_handed_on(host: Host) -> None:
    result = await (await start(host, exit_code=1, exit_error="the engine went away")).wait()
    assert result.error == "the engine went away"


async def test_a_task_takes_its_time_to_end_after_a_signal(host: Host) -> None:
    task = await start(host, run_for="1h", kill_after="200ms")
    began = time.monotonic()
    await task.stop()
    assert time.monotonic() - began >= 0.2
    result = await task.wait()
    assert (result.status, result.signal) == (FinalStatus.KILLED, 2)


async def test_sigkill_ends_a_slow_task_at_once(host: Host) -> None:
    task = await start(host, run_for="1h", kill_after="1h")
    await task.stop(0.05)
    assert (await task.wait()).signal == 9


async def test_an_unkillable_task_outlasts_stop_and_is_ended_by_destroy(host: Host) -> None:
    task = await start(host, run_for="1h", unkillable=True)
    with pytest.raises(DeadlineExceeded):
        await task.stop(0)
    assert task.info.state is TaskState.RUNNING
    await task.destroy(force=True)
    assert task.id not in host.tasks


async def test_signals_are_noted_and_harmless_ones_end_nothing(host: Host) -> None:
    task = await start(host, run_for="1h")
    await task.signal(18)
    await task.signal(28)
    assert (await task.inspect())["signals"] == "18,28"
    assert task.info.state is TaskState.RUNNING
    await task.signal(15)
    assert (await task.wait()).signal == 15


async def test_a_signal_error_is_raised(host: Host) -> None:
    task = await start(host, run_for="1h", signal_error="no permission")
    with pytest.raises(UnrecoverableError, match="no permission"):
        await task.signal(15)
    await task.signal(9)
    assert (await task.wait()).signal == 9


# readings


async def test_counters_grow_at_the_speeds_that_were_told(host: Host) -> None:
    task = await start(host, run_for="1h", cpu_user_percent=120, cpu_system_percent=30, memory_bytes=1 << 20)
    usage = await task.sample(0.2)
    assert usage.cpu.percent == pytest.approx(150, rel=0.01)
    assert usage.cpu.user_percent == pytest.approx(120, rel=0.01)
    assert usage.memory.in_use_bytes == 1 << 20
    assert usage.missing["io"] == "unsupported"


async def test_memory_grows_and_its_peak_stays(host: Host) -> None:
    task = await start(host, run_for="200ms", memory_bytes=1000, memory_bytes_per_s=10_000)
    result = await task.wait()
    assert result.usage.memory_peak_bytes == pytest.approx(3000, rel=0.01)


async def test_the_end_has_the_totals_of_the_whole_run_without_a_single_reading(host: Host) -> None:
    result = await (await start(host, run_for="200ms", cpu_user_percent=50)).wait()
    assert result.usage.readings == 0
    assert result.usage.cpu_total_ns == pytest.approx(100_000_000, rel=0.01)


@pytest.mark.parametrize(("recoverable", "error"), [(True, RecoverableError), (False, UnrecoverableError)])
async def test_a_reading_fails_as_it_was_scripted(host: Host, recoverable: bool, error: type[Exception]) -> None:
    task = await start(host, run_for="1h", stats_error="cannot read", stats_error_recoverable=recoverable)
    with pytest.raises(error, match="cannot read"):
        await task.sample(0.05)


async def test_readings_fail_after_a_while_and_then_work_again(host: Host) -> None:
    task = await start(host, run_for="1h", stats_error="hiccup", stats_error_after=2, stats_error_times=1)
    found = []
    async with asyncio.timeout(10):
        async for usage in task.readings(0.05):
            found.append(usage)
            if len(found) == 4:
                break
    assert int((await task.inspect())["readings"]) >= 5
    assert host.figures.errors_by_driver["mock"] == 1


async def test_a_reading_that_hangs_holds_up_nobody_else_and_ends_with_its_task(host: Host) -> None:
    task = await start(host, run_for="1h", stats_block_for="1h")
    with pytest.raises(RecoverableError):
        await task.sample(0.05)
    other = await start(host, run_for="0s")
    assert (await other.wait()).status is FinalStatus.SUCCESS
    hanging = [thread for thread in threading.enumerate() if _reads_a_mock(thread)]
    assert hanging
    await task.destroy(force=True)
    for thread in hanging:
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()


def _reads_a_mock(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return any(each.filename == mock.__file__ for each in traceback.extract_stack(frame))


async def test_counters_begin_at_zero_again(host: Host) -> None:
    task = await start(host, run_for="1h", cpu_user_percent=100, stats_reset_after=3)
    found = []
    async for usage in task.readings(0.05):
        found.append(usage)
        if len(found) == 4:
            break
    assert (found[3].cpu.total_ns or 0) < (found[2].cpu.total_ns or 0)
    assert found[3].cpu.percent is None


# the rest


async def test_a_further_command_writes_what_it_was_told(host: Host) -> None:
    task = await start(host, run_for="1h", exec_stdout="out", exec_stderr="err", exec_exit_code=3)
    async with await task.exec(["anything"]) as session:
        await session.write(b"nobody reads it")
        await session.close_stdin()
        await session.resize(24, 80)
        assert [part async for part in session.output()] == [(1, b"out"), (2, b"err")]
        assert (await session.wait()).exit_code == 3


async def test_events_are_told_to_every_listener(host: Host) -> None:
    driver = await host.driver("mock")

    async def listen(count: int) -> list[TaskEvent]:
        found: list[TaskEvent] = []
        async with aclosing(driver.events()) as stream:
            async for event in stream:
                found.append(event)
                if len(found) == count:
                    return found
        return found

    listeners = [asyncio.create_task(listen(2)) for _ in range(2)]
    await asyncio.sleep(0)
    task = await start(host, events=["pulling", "pulled"])
    async with asyncio.timeout(5):
        heard = await asyncio.gather(*listeners)
    assert [event.message for event in heard[0]] == ["pulling", "pulled"]
    assert heard[0] == heard[1]
    assert {event.task_id for event in heard[0]} == {task.id}


async def test_a_task_says_where_it_is_reached(host: Host) -> None:
    task = await start(host, address="10.0.0.7", port_map={"http": 8080})
    assert task.network is not None
    assert (task.network.address, task.network.port_map) == ("10.0.0.7", {"http": 8080})
    assert (await start(host)).network is None


async def test_the_driver_is_as_healthy_as_it_was_told() -> None:
    config = {"drivers": {"mock": {"health": "unhealthy", "health_description": "no daemon"}}}
    async with Host({**config, "plugins": {"hooks": []}}) as host:
        (found,) = [info for info in await host.drivers() if info.name == "mock"]
    assert (found.health, found.health_description) == ("unhealthy", "no daemon")


async def test_a_lost_task_ends_and_nobody_knows_how(tmp_path: Path) -> None:
    async with Host(state_dir=tmp_path, on_exit="detach") as host:
        await start(host, run_for="1h", lost=True)
    async with Host(state_dir=tmp_path) as host:
        (task,) = await host.recover()
        assert (await task.wait()).exit_code is None


async def test_a_task_that_ended_while_no_host_was_there_tells_its_end(tmp_path: Path) -> None:
    async with Host(state_dir=tmp_path, on_exit="detach") as host:
        await start(host, run_for="50ms", exit_code=4)
    await asyncio.sleep(0.1)
    async with Host(state_dir=tmp_path) as host:
        (task,) = await host.recover()
        result = await task.wait()
        assert result.exit_code == 4
        assert result.usage.wall_ns is not None
        assert result.usage.wall_ns < 100_000_000  # its own end, not the moment in which it was found
    assert not (tmp_path / "mock").exists()


async def test_a_record_that_nobody_claims_is_left_over_and_can_be_removed(tmp_path: Path) -> None:
    async with Host(state_dir=tmp_path, on_exit="detach") as host:
        task = await start(host, run_for="1h")
        kept = dataclasses.replace(task.handle)
        host.state.remove(task.id)
    async with Host(state_dir=tmp_path) as host:
        ((driver, leftover),) = await host.leftovers()
        assert (driver, leftover.task_id) == ("mock", kept.config.id)
        await host.remove_leftover(driver, leftover)
        await host.remove_leftover(driver, leftover)
        assert await host.leftovers() == []
