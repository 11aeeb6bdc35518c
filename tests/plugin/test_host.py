"""A task's life in a host: order, ends, cancellation, readings on demand, and what is left afterwards."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from fakes import FakeDriver, FakeTask, FunctionDriver, ReadTask, a_driver, counters
from virtual_clock import on_a_virtual_clock

from cameleer.config import Resources, TaskConfig
from cameleer.driver import Capabilities, RunningTask, Tick
from cameleer.errors import (
    ConfigError,
    NotSupported,
    PluginShutdown,
    RecoverableError,
    StatsNotImplemented,
    TaskFailed,
    TaskNotFound,
    UnrecoverableError,
)
from cameleer.hooks.specs import hookimpl
from cameleer.host import Host
from cameleer.node import NodeInfo
from cameleer.state import StateDir
from cameleer.status import Cause, Exit, FinalStatus
from cameleer.task import TaskHandle, TaskState
from cameleer.usage import Counters, CpuUsage

NODE = NodeInfo(total_mhz=4000, cores=2)


class Diary:
    """Writes down what happens, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @hookimpl
    async def poststart(self, request: Any) -> None:
        self.lines.append(f"poststart {request.task.info.state}{' again' if request.recovered else ''}")

    @hookimpl
    async def exited(self, request: Any) -> None:
        self.lines.append(f"exited {request.result.status}")

    @hookimpl
    async def shutdown(self) -> None:
        self.lines.append("shutdown")


def a_host(*plugins: object, **options: Any) -> Host:
    return Host(options.pop("config", None), plugins=plugins or (a_driver(),), node=NODE, **options)


def fake_of(task: Any) -> FakeTask:
    running = task._life.running
    assert isinstance(running, FakeTask)
    return running


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_the_order_of_a_life() -> None:
    diary = Diary()

    class Telling(FakeDriver):
        async def open(self) -> None:
            diary.lines.append("open")

        async def prepare(self, task: TaskConfig) -> None:
            diary.lines.append("prepare")

        async def start(self, task: TaskConfig) -> RunningTask:
            diary.lines.append("start")
            return await super().start(task)

        async def close(self) -> None:
            diary.lines.append("close")

    async with a_host(Telling, diary) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        diary.lines.append("started")
        fake_of(task).finish()
        await task.wait()
        diary.lines.append("waited")
        fake = fake_of(task)
    assert diary.lines == [
        "open", "prepare", "start", "poststart running", "started", "exited success", "waited", "shutdown", "close",
    ]  # fmt: skip
    assert fake.destroyed == 1


async def test_exited_never_comes_before_poststart_has_ended() -> None:
    release = asyncio.Event()
    lines: list[str] = []

    class Slow:
        @hookimpl
        async def poststart(self, request: Any) -> None:
            fake_of(request.task).finish()
            await release.wait()
            lines.append("poststart")

        @hookimpl
        async def exited(self, request: Any) -> None:
            lines.append("exited")

    async with a_host(a_driver(), Slow()) as host:
        starting = asyncio.create_task(host.start(TaskConfig(command="x"), "fake"))
        await asyncio.sleep(0.05)
        assert not lines
        release.set()
        await (await starting).wait()
        assert lines == ["poststart", "exited"]


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        (Exit(exit_code=0), FinalStatus.SUCCESS, None),
        (Exit(exit_code=0, oom_killed=True), FinalStatus.SUCCESS, None),
        (Exit(exit_code=3), FinalStatus.ERROR, "exit code 3"),
        (Exit(exit_code=137), FinalStatus.KILLED, "exit code 137"),
        (Exit(exit_code=139, signal=11), FinalStatus.ERROR, "SIGSEGV"),
        (Exit(exit_code=137, signal=9, oom_killed=True), FinalStatus.KILLED, "memory"),
        (Exit(), FinalStatus.ERROR, "nobody knows"),
    ],
)
async def test_the_result_says_how_it_ended(end: Exit, status: FinalStatus, error: str | None) -> None:
    async with a_host() as host:
        task = await host.start(TaskConfig(id="t", command="x"), "fake")
        fake_of(task).finish(end)
        result = await task.wait()
        assert result.status is status
        assert (result.error is None) == (error is None)
        assert error is None or error in str(result.error)
        assert task.info.result is result
        assert task.info.state is TaskState.EXITED
        if status is FinalStatus.SUCCESS:
            assert result.check() is result
        else:
            with pytest.raises(TaskFailed):
                result.check()


async def test_stop_uses_the_signal_of_the_call_the_task_or_the_driver_in_this_order() -> None:
    async with a_host() as host:
        for config, call, expected in [
            (TaskConfig(command="x"), None, signal.SIGINT),
            (TaskConfig(command="x", kill_signal=signal.SIGHUP), None, signal.SIGHUP),
            (TaskConfig(command="x", kill_signal=signal.SIGHUP), signal.SIGTERM, signal.SIGTERM),
        ]:
            task = await host.start(config, "fake")
            await task.stop(signum=call)
            assert fake_of(task).signals == [expected]
            assert (await task.wait()).status is FinalStatus.KILLED
            await task.stop()  # an ended one: nothing happens
            assert fake_of(task).signals == [expected]


@on_a_virtual_clock
async def test_stop_gives_time_to_react_and_then_kills() -> None:
    class Stubborn(ReadTask):
        async def signal(self, signum: int) -> None:
            self.signals.append(signum)
            if signum == signal.SIGKILL:
                self.finish(Exit(exit_code=137, signal=9))

    async with a_host(a_driver(task_type=Stubborn)) as host:
        loop = asyncio.get_running_loop()
        task = await host.start(TaskConfig(command="x", kill_timeout_s=3), "fake")
        before = loop.time()
        await task.stop()
        assert loop.time() - before == pytest.approx(3, abs=0.1)
        assert fake_of(task).signals == [signal.SIGINT, signal.SIGKILL]
        task = await host.start(TaskConfig(command="x"), "fake")
        await task.stop(0)
        assert fake_of(task).signals == [signal.SIGKILL]


@on_a_virtual_clock
async def test_a_timeout_counts_from_the_start_and_gives_its_own_status() -> None:
    async with a_host() as host:
        task = await host.start(TaskConfig(command="x", timeout_s=30), "fake")
        result = await task.wait()
        assert result.status is FinalStatus.TIMEOUT
        assert result.error == "the task ran longer than its timeout"


async def test_cancelling_a_wait_only_ends_the_waiting() -> None:
    async with a_host() as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        waiting = asyncio.create_task(task.wait())
        other = asyncio.create_task(task.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        fake_of(task).finish()
        assert (await other).status is FinalStatus.SUCCESS
        assert (await task.wait()).status is FinalStatus.SUCCESS


async def test_cancelling_run_stops_the_task_and_reports_it_as_cancelled() -> None:
    diary = Diary()
    async with a_host(a_driver(), diary) as host:
        running = asyncio.create_task(host.run(TaskConfig(id="t", command="x"), "fake"))
        while "t" not in host.tasks or host._starting:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        fake = fake_of(host.tasks["t"])
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert diary.lines[-1] == "exited cancelled"
        assert fake.destroyed == 1
        assert not host.tasks


async def test_cancelling_start_leaves_nothing(tmp_path: Path) -> None:
    started = asyncio.Event()

    class Slow(FakeDriver):
        async def start(self, task: TaskConfig) -> RunningTask:
            started.set()
            await asyncio.Event().wait()
            raise AssertionError

    async with a_host(Slow, state_dir=tmp_path / "s") as host:
        starting = asyncio.create_task(host.start(TaskConfig(command="x"), "fake"))
        await started.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await asyncio.sleep(0.01)
        assert not host.tasks
        assert not list((tmp_path / "s" / "handles").iterdir())


async def test_cancelling_start_during_poststart_ends_the_task_that_nobody_owns() -> None:
    class Slow:
        @hookimpl
        async def poststart(self, request: Any) -> None:
            await asyncio.sleep(3600)

    driver = a_driver()
    async with a_host(driver, Slow()) as host:
        starting = asyncio.create_task(host.start(TaskConfig(id="t", command="x"), "fake"))
        while "t" not in host.tasks or host.tasks["t"].info.state is not TaskState.RUNNING:
            await asyncio.sleep(0)
        fake = fake_of(host.tasks["t"])
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        async with asyncio.timeout(5):
            while host.tasks:
                await asyncio.sleep(0.005)
        assert fake.destroyed == 1


async def test_closing_the_host_while_a_task_starts_gives_its_starter_an_error() -> None:
    class Slow(FakeDriver):
        async def start(self, task: TaskConfig) -> RunningTask:
            await asyncio.Event().wait()
            raise AssertionError

    async with a_host(Slow) as host:
        starting = asyncio.create_task(host.start(TaskConfig(command="x"), "fake"))
        await asyncio.sleep(0.01)
    with pytest.raises(PluginShutdown):
        await starting
    with pytest.raises((PluginShutdown, UnrecoverableError)):
        await host.start(TaskConfig(command="x"), "fake")


@pytest.mark.parametrize("way", ["normally", "by an error", "by a cancellation"])
@pytest.mark.parametrize("driver", [a_driver(), a_driver("thread"), FunctionDriver])
async def test_leaving_the_host_leaves_nothing(
    way: str, driver: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    gc.collect()
    threads = set(threading.enumerate())
    tasks = asyncio.all_tasks()
    before = descriptors()
    ends: list[str] = []

    class Ends:
        @hookimpl
        def exited(self, request: Any) -> None:
            ends.append(request.result.status)

    async def body() -> None:
        config = {"telemetry": {"publish_allocation_metrics": True, "collection_interval": 0.02}}
        async with a_host(driver, Ends(), config=config) as host:
            for _ in range(5):
                await host.start(TaskConfig(command="x"), driver.name)
            await asyncio.sleep(0.1)
            if way == "by an error":
                raise ValueError("the body failed")
            if way == "by a cancellation":
                await asyncio.sleep(3600)

    if way == "by a cancellation":
        work = asyncio.create_task(body())
        await asyncio.sleep(0.2)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    elif way == "by an error":
        with pytest.raises(ValueError, match="the body failed"):
            await body()
    else:
        await body()
    assert ends == ["cancelled"] * 5
    assert {each for each in threading.enumerate() if each not in threads} == set()
    assert asyncio.all_tasks() == tasks
    assert descriptors() == before
    assert not list(tmp_path.iterdir())


async def test_a_task_that_asks_for_what_the_driver_cannot_give_is_refused() -> None:
    async with a_host() as host:
        for config, words in [
            (TaskConfig(command="x", resources=Resources(pids=5)), "pids is 5"),
            (TaskConfig(command="x", image="busybox"), "image is 'busybox'"),
            (TaskConfig(command="x", user="nobody"), "user is 'nobody'"),
            (TaskConfig(command="x", driver_config={"shell": 1}), "shell"),
        ]:
            with pytest.raises(ConfigError, match=words):
                await host.start(config, "fake")
        assert not host.tasks
        await host.start(TaskConfig(id="one", command="x", resources=Resources(memory_bytes=1 << 20)), "fake")
        with pytest.raises(ConfigError, match="'one'.*already known"):
            await host.start(TaskConfig(id="one", command="x"), "fake")


async def test_a_running_task_is_only_destroyed_by_force_and_twice_is_harmless() -> None:
    async with a_host() as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        fake = fake_of(task)
        with pytest.raises(UnrecoverableError, match="still runs"):
            await task.destroy()
        await task.destroy(force=True)
        await task.destroy()
        assert fake.destroyed == 1
        assert not host.tasks


async def test_an_attached_task_is_measured_and_never_touched() -> None:
    class Attaching(FakeDriver):
        async def attach(self, ref: str) -> RunningTask:
            return await self.start(TaskConfig(id=ref, command="theirs"))

    async with a_host(Attaching) as host:
        task = await host.attach("4711", "fake")
        assert task.info.attached
        for call in (task.stop(), task.signal(15), task.destroy(force=True)):
            with pytest.raises(NotSupported, match="somebody else runs it"):
                await call
        usage = await anext(task.readings())
        assert usage.memory.rss_bytes == 1
        fake = fake_of(task)
    assert not fake.signals


# -- readings on demand ---------------------------------------------------------------------------------------------


@on_a_virtual_clock
async def test_readings_begin_at_once_keep_their_grid_and_end_with_the_task() -> None:
    async with a_host() as host:
        loop = asyncio.get_running_loop()
        task = await host.start(TaskConfig(command="x"), "fake")
        begin = loop.time()
        times, percents = [], []
        async for usage in task.readings(0.5):
            times.append(loop.time() - begin)
            percents.append(usage.cpu.percent)
            if len(times) == 5:
                fake_of(task).finish()
        assert times[:5] == pytest.approx([0, 0.5, 1, 1.5, 2], abs=1e-3)
        assert percents[0] is None
        assert percents[1:5] == pytest.approx([50] * 4, rel=1e-3)
        assert len(times) in (5, 6)  # the last reading, if time has passed at all
        with pytest.raises(UnrecoverableError, match="has ended"):
            task.readings()


@pytest.mark.parametrize("kind", ["read", "thread"])
async def test_a_task_without_totals_of_the_kernel_is_read_once_more_at_its_end(kind: str) -> None:
    async with a_host(a_driver(kind)) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        reader = task.readings(3600)
        first = await anext(reader)
        fake_of(task).finish()
        last = await anext(reader)
        assert last.at_ns > first.at_ns
        assert fake_of(task).reads == 2
        with pytest.raises(StopAsyncIteration):
            await anext(reader)
        assert (await task.wait()).usage.cpu_total_ns == last.cpu.total_ns


@on_a_virtual_clock
async def test_a_reader_that_leaves_ends_the_measuring() -> None:
    async with a_host() as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        async for _ in task.readings(1):
            break
        gc.collect()
        await asyncio.sleep(0.1)
        assert host.figures.measured_tasks == 0
        before = fake_of(task).reads
        await asyncio.sleep(100)
        assert fake_of(task).reads == before


@on_a_virtual_clock
async def test_readers_with_the_same_interval_share_the_reads_and_each_has_its_own_rates() -> None:
    async with a_host() as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        one, two, slow = task.readings(1), task.readings(1), task.readings(4)
        for reader in (one, two, slow):
            assert (await anext(reader)).window_ns is None
        for _ in range(4):
            first, second = await anext(one), await anext(two)
            assert first is second
            assert first.window_ns == pytest.approx(1e9, rel=1e-3)
        assert (await anext(slow)).window_ns == pytest.approx(4e9, rel=1e-3)
        assert fake_of(task).reads == 2 + 4 + 1


@on_a_virtual_clock
async def test_a_slow_reader_gets_the_latest_and_its_losses_are_counted() -> None:
    async with a_host() as host:
        loop = asyncio.get_running_loop()
        task = await host.start(TaskConfig(command="x"), "fake")
        reader = task.readings(1)
        await anext(reader)
        await asyncio.sleep(10.5)
        assert loop.time() * 1e9 - (await anext(reader)).at_ns < 0.6e9
        assert host.figures.dropped == 9
        fake_of(task).finish()
        assert (await task.wait()).usage.readings_dropped >= 9


@on_a_virtual_clock
async def test_callers_of_sample_within_one_window_share_it() -> None:
    async with a_host() as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        samples = await asyncio.gather(*(task.sample(0.25) for _ in range(10)))
        assert len({id(each) for each in samples}) == 1
        assert samples[0].cpu.percent == pytest.approx(50, rel=1e-3)
        assert samples[0].cpu.ticks_mhz == pytest.approx(1000, rel=1e-3)
        assert fake_of(task).reads == 2


async def test_a_driver_without_statistics_says_so_to_who_asks() -> None:
    async with a_host(a_driver("none")) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        with pytest.raises(StatsNotImplemented):
            task.readings()
        with pytest.raises(StatsNotImplemented):
            await task.sample()


@on_a_virtual_clock
async def test_a_counter_that_goes_back_gives_no_rate_and_a_new_baseline() -> None:
    script = iter([0, 100, 20, 70, 120])

    def on_read(task: FakeTask, tick: Tick) -> Counters:
        return counters(tick.at_ns, next(script, 10**6) * 1_000_000)

    async with a_host(a_driver(on_read=on_read)) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        reader = task.readings(1)
        percents = [(await anext(reader)).cpu.percent for _ in range(5)]
        assert percents == [None, pytest.approx(10), None, pytest.approx(5), pytest.approx(5)]


@on_a_virtual_clock
async def test_the_kernels_totals_at_the_end_are_the_last_reading_and_the_summary() -> None:
    async with a_host() as host:
        loop = asyncio.get_running_loop()
        task = await host.start(TaskConfig(command="x"), "fake")
        reader = task.readings(1)
        await anext(reader)
        await anext(reader)
        at_ns = int(loop.time() * 1e9) + 5_000_000
        totals = Counters(at_ns=at_ns, taken_at_ns=0, cpu=CpuUsage(total_ns=at_ns // 2, user_ns=0, system_ns=0))
        fake_of(task).finish(Exit(exit_code=0, counters=totals))
        last = await anext(reader)
        assert last.cpu.total_ns == at_ns // 2
        assert last.memory.rss_bytes == 1  # not known at the end: handed over with its age
        assert last.memory_at_ns is not None
        assert last.memory_at_ns < last.at_ns
        with pytest.raises(StopAsyncIteration):
            await anext(reader)
        usage = (await task.wait()).usage
        assert usage.cpu_total_ns == at_ns // 2
        assert usage.cpu_percent_peak == pytest.approx(50, rel=0.01)
        assert usage.memory_peak_bytes == 1
        assert usage.readings == 3


# -- state and recovery ---------------------------------------------------------------------------------------------


class Lasting(FakeDriver):
    """Finds its tasks again by what a test left in ``known``."""

    known: dict[str, object] = {}

    async def recover(self, handle: TaskHandle) -> RunningTask:
        found = self.known.get(handle.config.id)
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise TaskNotFound(f"no task {handle.config.id}")
        task = ReadTask(handle.config, self)
        if isinstance(found, Exit):
            task.finish(found)
        return task


def keep(folder: Path, *handles: TaskHandle) -> None:
    state = StateDir(folder)
    for handle in handles:
        state.write(handle)
    state.close(remove=False)


def a_handle(task_id: str, **values: Any) -> TaskHandle:
    values = {"state": TaskState.RUNNING, "started_at_ns": 1, **values}
    return TaskHandle(driver="fake", config=TaskConfig(id=task_id, command="x", env={"TOKEN": "hunter2"}), **values)


async def test_recovery_gives_poststart_to_the_running_and_exited_to_the_ended(tmp_path: Path) -> None:
    diary = Diary()
    keep(tmp_path, a_handle("runs"), a_handle("ended"), a_handle("lost"))
    driver = type("Mine", (Lasting,), {"known": {"runs": True, "ended": Exit(exit_code=7)}})
    async with a_host(driver, diary, state_dir=tmp_path) as host:
        tasks = {task.id: task for task in await host.recover()}
        assert sorted(diary.lines) == ["exited error", "exited error", "poststart running again"]
        assert (await tasks["ended"].wait()).exit_code == 7
        lost = await tasks["lost"].wait()
        assert lost.exit_code is None
        assert "lost" in str(lost.error)
        assert tasks["runs"].info.state is TaskState.RUNNING
        assert await host.recover() == []
        await tasks["lost"].destroy()
    assert not list((tmp_path / "handles").iterdir())


async def test_a_task_whose_host_died_while_it_destroyed_it_is_forgotten(tmp_path: Path) -> None:
    keep(tmp_path, a_handle("done", state=TaskState.EXITED))
    diary = Diary()
    async with a_host(type("Mine", (Lasting,), {"known": {}}), diary, state_dir=tmp_path) as host:
        assert await host.recover() == []
        assert not host.tasks
    assert diary.lines == ["shutdown"]
    assert not list((tmp_path / "handles").iterdir())


async def test_a_task_that_is_out_of_reach_keeps_its_handle_and_is_tried_again(tmp_path: Path) -> None:
    keep(tmp_path, a_handle("away"))
    driver = type("Mine", (Lasting,), {"known": {"away": RecoverableError("the engine is down")}})
    async with a_host(driver, state_dir=tmp_path, on_exit="detach") as host:
        (task,) = await host.recover()
        assert task.info.state is TaskState.UNKNOWN
        with pytest.raises(RecoverableError, match="the engine is down"):
            await task.stop()
        with pytest.raises(RecoverableError):
            task.readings()
        driver.known["away"] = True
        async with asyncio.timeout(10):
            while task.info.state is not TaskState.RUNNING:
                await asyncio.sleep(0.02)
    assert len(list((tmp_path / "handles").iterdir())) == 1


async def test_a_handle_of_a_missing_plugin_is_kept_and_listed(tmp_path: Path) -> None:
    keep(tmp_path, a_handle("orphan"))
    async with a_host(a_driver(name="other"), state_dir=tmp_path) as host:
        assert await host.recover() == []
        assert "no driver 'fake'" in host.unrecovered["orphan"]
    assert len(list((tmp_path / "handles").iterdir())) == 1


async def test_a_cause_written_before_the_kill_decides_the_status(tmp_path: Path) -> None:
    keep(tmp_path, a_handle("t", cause=Cause.TIMEOUT))
    driver = type("Mine", (Lasting,), {"known": {"t": Exit(exit_code=137, signal=9)}})
    async with a_host(driver, state_dir=tmp_path) as host:
        (task,) = await host.recover()
        assert (await task.wait()).status is FinalStatus.TIMEOUT


async def test_a_handle_from_outside_is_recovered_without_a_state_folder() -> None:
    driver = type("Mine", (Lasting,), {"known": {"t": True}})
    async with a_host(driver) as host:
        (task,) = await host.recover(a_handle("t"))
        assert task.handle.config.env == {"TOKEN": "hunter2"}


async def test_handles_are_for_their_owner_alone_and_ids_become_no_paths(tmp_path: Path) -> None:
    async with a_host(state_dir=tmp_path / "s") as host:
        task = await host.start(TaskConfig(id="../../etc/passwd", command="x"), "fake")
        (file,) = (tmp_path / "s" / "handles").iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
        assert "hunter2" not in repr(a_handle("t"))
        await task.destroy(force=True)
        assert not list((tmp_path / "s" / "handles").iterdir())


async def test_one_state_folder_serves_one_host_at_a_time(tmp_path: Path) -> None:
    async with a_host(state_dir=tmp_path) as host:
        with pytest.raises(ConfigError, match="in use by another host"):
            async with a_host(state_dir=tmp_path):
                pass
        first = host.node.host_id
    async with a_host(state_dir=tmp_path) as host:
        assert host.node.host_id == first


async def test_what_a_killed_host_left_is_found_by_its_private_folder() -> None:
    async with a_host() as host:
        assert host.node.state_dir is not None
        folder, left_by = host.node.state_dir, host.node.host_id
    folder.mkdir(mode=0o700)  # as a kill would have left it
    async with a_host(state_dir=folder) as host:
        assert host.node.host_id == left_by
    shutil.rmtree(folder)


async def test_a_terminal_of_the_tasks_own_is_told_its_size() -> None:
    class Sized(ReadTask):
        size = (0, 0)

        async def resize(self, rows: int, columns: int) -> None:
            self.size = (rows, columns)

    async with a_host(a_driver(task_type=Sized), a_driver(name="plain")) as host:
        task = await host.start(TaskConfig(command="x"), "fake")
        await task.resize(24, 80)
        assert cast("Sized", fake_of(task)).size == (24, 80)
        with pytest.raises(NotSupported, match="no terminal of its own"):
            await (await host.start(TaskConfig(command="x"), "plain")).resize(24, 80)


def test_detach_without_a_state_folder_is_an_error() -> None:
    with pytest.raises(ConfigError, match="state_dir"):
        Host(on_exit="detach")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"telemetri": {}}, "did you mean 'telemetry'"),
        ({"telemetry": {"collection_intervall": 1}}, "did you mean 'collection_interval'"),
        ({"telemetry": {"collection_interval": "0s"}}, "collection_interval"),
        ({"telemetry": {"collection_interval": "soon"}}, "soon"),
        ({"telemetry": {"publish_allocation_metrics": "maybe"}}, "maybe"),
        ({"deadlines": {"begin": 1}}, "begin"),
        ({"plugins": {"hooks": "stats_hook"}}, "list of names"),
        ({"drivers": {"fake": 5}}, "drivers.fake"),
        ("/nonexistent/host.toml", "/nonexistent/host.toml"),
    ],
)
def test_a_wrong_setting_is_named(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Host(config)


async def test_the_configuration_comes_from_a_toml_file_with_nomads_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "host.toml"
    path.write_text(
        '[telemetry]\ncollection_interval = "2s"\npublish_allocation_metrics = true\nstatsd_address = "x"\n'
    )
    async with a_host(config=path) as host:
        assert host.telemetry.interval_s == 2
        assert host.telemetry.publish_allocation_metrics
    lines = [each.message for each in caplog.records if "statsd_address" in each.message]
    assert len(lines) == 1


async def test_every_record_has_the_task_and_the_driver_as_fields(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(FakeDriver):
        capabilities = Capabilities()

        async def start(self, task: TaskConfig) -> RunningTask:
            made = ReadTask(task, self)
            made.wait = lambda: 1 / 0  # type: ignore[assignment, method-assign]
            return made

    async with a_host(Bad) as host:
        await host.start(TaskConfig(id="t", command="x"), "fake")
        await asyncio.sleep(0.01)
    assert caplog.records
    for record in caplog.records:
        if record.name.startswith("cameleer"):
            assert {"task_id", "driver"} <= record.__dict__.keys()


async def test_a_node_that_cannot_be_kept_is_an_error_and_the_folder_is_free_again(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    with pytest.raises(ConfigError, match="cannot use the state folder"):
        async with Host({}, node=NodeInfo(node_id="n"), state_dir=tmp_path):
            pass
    (tmp_path / "node").rmdir()
    async with Host({}, node=NodeInfo(node_id="n", node_name="one"), state_dir=tmp_path):
        pass
    async with Host({}, state_dir=tmp_path) as host:
        assert (host.node.node_id, host.node.node_name) == ("n", "one")
