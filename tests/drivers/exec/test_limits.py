"""Whether limits hold, and what is left of a task."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from confined import executing, needs_groups, output_of, running, shell

from cameleer.config import Resources, Stdio, TaskConfig
from cameleer.driver import Tick
from cameleer.drivers.exec.task import ExecTask
from cameleer.errors import ConfigError, NotSupported, StartError

pytestmark = needs_groups


def tick() -> Tick:
    return Tick(time.monotonic_ns(), extended=True, fresh=True)


def group_folders(task: ExecTask) -> list[str]:
    assert task.group.paths is not None
    return list(task.group.paths.folders.values())


def groups_of(driver_node: str) -> list[str]:
    return [path for path, _, _ in os.walk("/sys/fs/cgroup") if driver_node in path]


async def test_a_task_over_its_memory_is_killed_and_says_so(tmp_path: Path) -> None:
    script = "exec python3 -c 'x = bytearray(200 << 20)'"
    async with (
        executing(tmp_path) as driver,
        running(driver, shell(script, resources=Resources(memory_bytes=64 << 20))) as task,
    ):
        end = await task.wait()
        assert (end.exit_code, end.signal, end.oom_killed) == (137, 9, True)
        assert end.counters is not None
        assert end.counters.memory.peak_bytes is not None
        assert end.counters.memory.peak_bytes <= 64 << 20


async def test_a_task_that_ended_by_itself_was_not_killed_for_lack_of_memory(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver, running(driver, shell("exit 3")) as task:
        end = await task.wait()
        assert (end.exit_code, end.oom_killed) == (3, False)


async def test_half_a_core_throttles(tmp_path: Path) -> None:
    resources = Resources(cpu_quota_cores=0.5)
    async with (
        executing(tmp_path) as driver,
        running(driver, shell("while :; do :; done", resources=resources)) as task,
    ):
        while (task.read(tick()).cpu.throttled_periods or 0) < 3:  # only its counter tells
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("pid_mode", ["", "host"])
async def test_a_fork_bomb_stops_at_its_limit_and_dies_with_the_task(tmp_path: Path, pid_mode: str) -> None:
    bomb = "while :; do setsid sh -c 'while :; do (sleep 60 &) ; done' 2>/dev/null & done 2>/dev/null"
    async with executing(tmp_path) as driver:
        async with running(
            driver, shell(bomb, resources=Resources(pids=30), driver_config={"pid_mode": pid_mode})
        ) as task:
            while (task.read(tick()).processes.processes or 0) < 25:
                await asyncio.sleep(0.02)
            folders = group_folders(task)
        assert not any(os.path.exists(folder) for folder in folders)


async def test_what_is_ours_before_the_exec_is_little_of_the_tasks(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver, running(driver, TaskConfig(command="/bin/true")) as task:
        end = await task.wait()
        assert end.counters is not None
        assert end.counters.memory.peak_bytes is not None
        assert end.counters.memory.peak_bytes <= 2 << 20, "with all of /bin/true itself"


async def test_the_task_is_in_its_group_and_its_supervisor_is_not(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver, running(driver, shell("sleep 60")) as task:
        for folder in group_folders(task):
            inside = Path(folder, "cgroup.procs").read_text().split()
            assert str(task.pid) in inside
            assert str(task.supervisor_pid) not in inside


async def test_nothing_is_left_of_a_launch_that_fails(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver:
        for config in (
            TaskConfig(command="/no/such/command"),
            shell("true", cwd="/no/such/folder"),
            shell("true", resources=Resources(memory_bytes=64 << 20, cpuset_cpus="4000")),
        ):
            with pytest.raises((StartError, ConfigError, NotSupported)):
                await driver.start(config)
        assert not groups_of(driver.groups.cgroups.node)
        assert not list((tmp_path / "tasks").iterdir())


async def test_an_unknown_user_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver:
        with pytest.raises(StartError, match="no user nobody-of-this-name"):
            await driver.start(shell("true", user="nobody-of-this-name"))
        assert driver.supervisors.launcher_pid is None


async def test_a_group_goes_with_its_host_when_no_later_one_could_find_it(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver:
        ended = await driver.start(shell("exit 0"))
        await ended.wait()
        lasting = await driver.start(shell("sleep 60"))
        assert isinstance(ended, ExecTask)
        assert isinstance(lasting, ExecTask)
        folders = group_folders(ended) + group_folders(lasting)
        assert all(os.path.exists(folder) for folder in folders)
    while any(os.path.exists(folder) for folder in folders):  # the supervisors go on their own
        await asyncio.sleep(0.01)


async def test_nothing_is_left_when_a_supervisor_is_killed(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver:
        async with running(driver, shell("sleep 60 & sleep 60", driver_config={"pid_mode": "host"})) as task:
            os.kill(task.supervisor_pid, 9)
            end = await task.wait()
            assert end.exit_code is None
            folders = group_folders(task)
        assert not any(os.path.exists(folder) for folder in folders)


async def test_the_output_of_a_task_says_where_its_folders_are(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    async with executing(tmp_path / "state") as driver:
        text = await output_of(driver, tmp_path, 'echo "$NOMAD_TASK_DIR"; ls', task_dir=str(own))
    assert text.split() == [f"{own}/local", "alloc", "local", "secrets", "tmp"]


async def test_a_group_goes_when_the_rest_that_a_task_left_has_ended(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = shell("sleep 60 & echo $!", stdout=Stdio.file(out), leave_rest=True, driver_config={"pid_mode": "host"})
    async with executing(tmp_path) as driver:
        async with running(driver, config) as task:
            end = await task.wait()
            assert [row.name for row in end.left_running] == ["sleep"]
            folders = group_folders(task)
        assert all(os.path.exists(folder) for folder in folders)
        os.kill(int(out.read_text()), 9)
        while any(os.path.exists(folder) for folder in folders):
            await asyncio.sleep(0.01)


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver:
        await (await driver.start(shell("true"))).destroy(force=True)
        for steps in range(12):
            starting = asyncio.ensure_future(driver.start(shell("sleep 60")))
            for _ in range(steps * 4):
                await asyncio.sleep(0.0005)
            starting.cancel()
            try:
                await (await starting).destroy(force=True)
            except asyncio.CancelledError:
                continue
    assert not groups_of(driver.groups.cgroups.node)
