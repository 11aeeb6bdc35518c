"""The smallest driver in both forms, and an embedder: they work, and mypy strict has nothing against them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cameleer import Capabilities, Host, Resources, TaskConfig
from cameleer.driver import capabilities_of
from cameleer.plugins import what_is_wrong

ASYNC = """
import asyncio
import time

from cameleer import Counters, CpuUsage, Driver, Exit, RunningTask, TaskConfig, Tick


class Sleeper(RunningTask):
    process: asyncio.subprocess.Process

    async def wait(self) -> Exit:
        code = await self.process.wait()
        return Exit(exit_code=code if code >= 0 else 128 - code, signal=-code if code < 0 else None)

    async def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def read(self, tick: Tick) -> Counters:
        return Counters(at_ns=tick.at_ns, taken_at_ns=time.time_ns(), cpu=CpuUsage(total_ns=0))


class Sleep(Driver):
    name = "sleep"
    task_type = Sleeper

    async def start(self, task: TaskConfig) -> Sleeper:
        sleeper = Sleeper(task)
        sleeper.process = await asyncio.create_subprocess_exec("sleep", *task.args)
        return sleeper
"""

BLOCKING = """
import subprocess
import time

from cameleer import BlockingDriver, BlockingTask, Counters, CpuUsage, Exit, TaskConfig, Tick


class Sleeper(BlockingTask):
    process: subprocess.Popen[bytes]

    def poll(self) -> Exit | None:
        code = self.process.poll()
        if code is None:
            return None
        return Exit(exit_code=code if code >= 0 else 128 - code, signal=-code if code < 0 else None)

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def read(self, tick: Tick) -> Counters:
        return Counters(at_ns=tick.at_ns, taken_at_ns=time.time_ns(), cpu=CpuUsage(total_ns=0))


class Sleep(BlockingDriver):
    name = "sleep"
    task_type = Sleeper

    def start(self, task: TaskConfig) -> Sleeper:
        sleeper = Sleeper(task)
        sleeper.process = subprocess.Popen(["sleep", *task.args])
        return sleeper
"""

EMBEDDER = """
import asyncio

from cameleer import Host, TaskConfig


async def main() -> None:
    async with Host() as host:
        task = await host.start(TaskConfig(command="sleep", args=["0.1"]))
        async for usage in task.readings(interval_s=0.05):
            if usage.cpu.percent is not None and usage.memory.in_use_bytes is not None:
                print(f"{usage.cpu.percent:.1f} % {usage.memory.in_use_bytes} bytes")
        result = await task.wait()
        print(result.check().usage.memory_peak_bytes)


asyncio.run(main())
"""

STREAM = """
import time
from collections.abc import AsyncGenerator

import msgspec
from cameleer import Counters, CpuUsage, Driver, Exit, RunningTask, TaskConfig, ticks


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    endpoint: str = "unix:///run/engine"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    image: str


class RemoteTask(RunningTask):
    async def wait(self) -> Exit:
        return Exit(exit_code=0)

    async def signal(self, signum: int) -> None: ...

    async def stats(self, interval_s: float) -> AsyncGenerator[Counters, None]:
        async for tick in ticks(interval_s):
            yield Counters(at_ns=tick.at_ns, taken_at_ns=time.time_ns(), cpu=CpuUsage(total_ns=1))


class Remote(Driver):
    name = "remote"
    task_type = RemoteTask
    config_schema = Settings
    task_schema = Options
    config: Settings

    async def start(self, task: TaskConfig) -> RemoteTask:
        options = task.settings(Options)
        return RemoteTask(task, f"{self.config.endpoint} {options.image}".encode())
"""

HOOKS = """
from collections.abc import Sequence

from cameleer import ExitedRequest, Host, PoststartRequest, TaskInfo, TaskResourceUsage, hookimpl


class Watcher:
    def __init__(self, host: Host) -> None:
        self.seen: list[str] = []

    @hookimpl
    async def poststart(self, request: PoststartRequest) -> None:
        self.seen.append(request.task.id)

    @hookimpl
    def exited(self, request: ExitedRequest) -> None:
        self.seen.append(request.result.status)

    @hookimpl
    def update_stats(self, readings: Sequence[tuple[TaskInfo, TaskResourceUsage]]) -> None:
        for task, usage in readings:
            if usage.cpu.percent is not None:
                print(f"{task.job_name}.{task.name} {usage.cpu.percent:.1f}")
"""

WRONG_COLOUR = """
from cameleer import BlockingDriver, BlockingTask, TaskConfig


class Sleep(BlockingDriver):
    name = "sleep"
    task_type = BlockingTask

    async def start(self, task: TaskConfig) -> BlockingTask:
        raise NotImplementedError
"""

SOURCES = {
    "async": ASYNC,
    "blocking": BLOCKING,
    "embedder": EMBEDDER,
    "stream": STREAM,
    "hooks": HOOKS,
}


@pytest.fixture(scope="module")
def mypy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all examples and what mypy says of them, in ``report``."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    folder = tmp_path_factory.mktemp("typed")
    files = []
    for name, source in {**SOURCES, "wrong": WRONG_COLOUR}.items():
        file = folder / f"{name}_example.py"
        file.write_text(source.lstrip())
        files.append(file.name)
    options = ["--strict", "--config-file=", "--no-error-summary", f"--cache-dir={folder / 'cache'}"]
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *files], cwd=folder, capture_output=True, text=True, check=False
    )
    assert found.returncode in (0, 1), found.stderr
    (folder / "report").write_text(found.stdout)
    return folder


@pytest.mark.parametrize("name", SOURCES)
def test_mypy_strict_accepts_the_example(name: str, mypy: Path) -> None:
    lines = (mypy / "report").read_text().splitlines()
    assert [line for line in lines if line.startswith(f"{name}_example.py")] == []


def test_mypy_strict_refuses_an_async_method_in_a_blocking_driver(mypy: Path) -> None:
    report = (mypy / "report").read_text()
    assert "wrong_example.py" in report
    assert "[override]" in report


@pytest.mark.parametrize("name", ["async", "blocking"])
def test_the_smallest_driver_has_less_than_40_lines(name: str) -> None:
    assert len(SOURCES[name].strip().splitlines()) < 40


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModuleType]:
    name = f"{request.param}_example"
    file = tmp_path / f"{name}.py"
    file.write_text(SOURCES[request.param])
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.mark.parametrize("example", ["async", "blocking"], indirect=True)
def test_both_forms_of_the_smallest_driver_show_the_same_capabilities(example: ModuleType) -> None:
    assert what_is_wrong(example.Sleep) is None
    assert capabilities_of(example.Sleep) == Capabilities(stats=True)


@pytest.mark.parametrize("example", ["async", "blocking"], indirect=True)
async def test_both_forms_of_the_smallest_driver_run_a_task(example: ModuleType) -> None:
    async with Host(plugins=[example.Sleep]) as host:
        result = await host.run(TaskConfig(args=["0.05"]), driver="sleep")
        assert (result.status, result.exit_code, result.error) == ("success", 0, None)
        task = await host.start(TaskConfig(args=["60"]), driver="sleep")
        await task.stop(timeout_s=0)
        result = await task.wait()
        assert (result.status, result.exit_code, result.signal) == ("killed", 137, 9)


@pytest.mark.parametrize("example", ["stream"], indirect=True)
async def test_a_driver_reads_its_own_and_its_tasks_settings(example: ModuleType) -> None:
    config = {"drivers": {"remote": {"endpoint": "tcp://elsewhere"}}}
    async with Host(config, plugins=[example.Remote]) as host:
        task = await host.start(TaskConfig(driver_config={"image": "x"}), driver="remote")
        assert task.handle.driver_state == b"tcp://elsewhere x"


@pytest.mark.parametrize("example", ["async"], indirect=True)
async def test_a_task_that_asks_for_what_the_driver_cannot_hold_is_refused(example: ModuleType) -> None:
    async with Host(plugins=[example.Sleep]) as host:
        with pytest.raises(ValueError, match=r"Resources\.pids is 4: the driver sleep cannot hold it"):
            await host.start(TaskConfig(args=["60"], resources=Resources(pids=4)), driver="sleep")
        assert not host.tasks
