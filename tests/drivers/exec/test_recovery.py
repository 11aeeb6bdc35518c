"""A task that outlives its host."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from confined import executing, needs_groups, remove_groups, running, shell

from cameleer.config import Resources, Stdio, TaskConfig
from cameleer.driver import Tick
from cameleer.drivers.cgroup import kernel
from cameleer.drivers.cgroup.group import Cgroups
from cameleer.drivers.exec import Exec
from cameleer.drivers.exec.task import ExecTask
from cameleer.drivers.supervisor import proc
from cameleer.errors import TaskNotFound, UnrecoverableError
from cameleer.task import TaskHandle

pytestmark = needs_groups


def tick() -> Tick:
    return Tick(time.monotonic_ns(), extended=True, fresh=True)


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path) -> Iterator[None]:
    yield
    for folder in (tmp_path, tmp_path / "state"):
        remove_groups(folder)


def handle_of(config: TaskConfig, state: bytes = b"") -> TaskHandle:
    return TaskHandle(driver="exec", config=config, driver_state=state)


async def start(driver: Exec, config: TaskConfig) -> ExecTask:
    return cast("ExecTask", await driver.start(config))


async def recover(driver: Exec, handle: TaskHandle) -> ExecTask:
    return cast("ExecTask", await driver.recover(handle))


async def burnt_ns(task: ExecTask, at_least_ns: int) -> int:
    while (total := task.read(tick()).cpu.total_ns or 0) < at_least_ns:
        os.sched_yield()
    return total


async def test_the_same_counters_go_on(tmp_path: Path) -> None:
    config = shell("while :; do :; done")
    async with executing(tmp_path, recoverable=True) as first:
        task = await start(first, config)
        before = await burnt_ns(task, 50_000_000)
    async with executing(tmp_path, recoverable=True) as second:
        found = await recover(second, handle_of(config, task.driver_state))
        assert (found.pid, found.supervisor_pid) == (task.pid, task.supervisor_pid)
        assert (found.read(tick()).cpu.total_ns or 0) >= before
        await found.stop(0, signal.SIGKILL)
        assert (await found.wait()).signal == signal.SIGKILL
        await found.destroy()


async def test_a_task_that_ended_meanwhile_has_its_result_and_its_totals(tmp_path: Path) -> None:
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    script = f"read x <{fifo}; exec python3 -c 'x = bytearray(200 << 20)'"
    config = shell(script, resources=Resources(memory_bytes=64 << 20))
    async with executing(tmp_path / "state", recoverable=True) as first:
        task = await start(first, config)
    fifo.write_text("go\n")
    while Path(f"/proc/{task.supervisor_pid}").exists():
        os.sched_yield()
    async with executing(tmp_path / "state", recoverable=True) as second:
        found = await recover(second, handle_of(config, task.driver_state))
        end = await found.wait()
        assert (end.exit_code, end.oom_killed) == (137, True)
        assert end.counters is not None
        assert (end.counters.memory.peak_bytes or 0) > 32 << 20
        await found.destroy()
        assert not second.groups.cgroups.all()


async def test_a_task_is_found_by_its_name_when_its_host_did_not_know_it_yet(tmp_path: Path) -> None:
    config = shell("sleep 60")
    async with executing(tmp_path, recoverable=True) as first:
        await start(first, config)
    async with executing(tmp_path, recoverable=True) as second:
        found = await recover(second, handle_of(config))
        assert found.read(tick()).memory.usage_bytes
        await found.destroy(force=True)
        assert not second.groups.cgroups.all()


async def test_further_commands_run_in_a_task_that_was_found_again(tmp_path: Path) -> None:
    config = shell("exec sleep 60")
    async with executing(tmp_path, recoverable=True) as first:
        task = await start(first, config)
    async with executing(tmp_path, recoverable=True) as second:
        found = await recover(second, handle_of(config, task.driver_state))
        async with await found.exec(["/bin/cat", "/proc/self/cgroup"]) as session:
            text = b"".join([data async for _, data in session.output()]).decode()
            assert (await session.wait()).exit_code == 0
        assert config.id in text
        await found.destroy(force=True)


async def test_a_task_whose_record_is_gone_is_not_found_and_its_group_goes(tmp_path: Path) -> None:
    config = shell("sleep 60", driver_config={"pid_mode": "host"})
    async with executing(tmp_path, recoverable=True) as first:
        task = await start(first, config)
    os.kill(task.supervisor_pid, signal.SIGKILL)
    for name in ("record", "control"):
        os.unlink(os.path.join(task.folder, name))
    async with executing(tmp_path, recoverable=True) as second:
        with pytest.raises(TaskNotFound):
            await recover(second, handle_of(config, task.driver_state))
        assert not second.groups.cgroups.all()


async def test_what_a_killed_supervisor_left_is_found_and_removed(tmp_path: Path) -> None:
    config = shell("sleep 60", driver_config={"pid_mode": "host"})
    async with executing(tmp_path, recoverable=True) as first:
        task = await start(first, config)
        lasting = await start(first, shell("sleep 60"))
        os.kill(task.supervisor_pid, signal.SIGKILL)
        await task.wait()
    async with executing(tmp_path, recoverable=True) as second:
        assert not await second.leftovers([config.id, lasting.config.id])
        found = await second.leftovers([lasting.config.id])
        assert [each for each in found if each.description.startswith("group ")]
        for each in found:
            await second.remove_leftover(each)
        assert not await second.leftovers([lasting.config.id])
        left = proc.process(task.pid)
        assert left is None or left.state == proc.ZOMBIE
        again = await recover(second, handle_of(lasting.config, lasting.driver_state))
        await again.destroy(force=True)
        assert not second.groups.cgroups.all()


async def test_output_goes_on_without_a_host(tmp_path: Path) -> None:
    fifo, out = tmp_path / "go", tmp_path / "out"
    os.mkfifo(fifo)
    config = shell(f"read x <{fifo}; echo $x", stdout=Stdio.file(out))
    async with executing(tmp_path / "state", recoverable=True) as first:
        task = await start(first, config)
    fifo.write_text("words\n")
    async with executing(tmp_path / "state", recoverable=True) as second:
        found = await recover(second, handle_of(config, task.driver_state))
        assert (await found.wait()).exit_code == 0
        await found.destroy()
    assert out.read_text() == "words\n"


async def test_a_group_that_was_handed_over_is_joined_measured_and_never_removed(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver:
        mode = driver.groups.cgroups.mode
        base = mode.bases.get("cpuset") or mode.bases["unified"]
        handed = Path(base, f"cameleer-test-{os.getpid()}-{os.urandom(4).hex()}")
        handed.mkdir()
        try:
            for name in ("cpuset.cpus", "cpuset.mems"):
                if mode.version == 1:
                    (handed / name).write_text(Path(base, name).read_text())
            async with running(driver, shell("sleep 60", cgroup_path=str(handed))) as task:
                assert str(task.pid) in (handed / "cgroup.procs").read_text().split()
                assert task.read(tick()).cpu.total_ns
            assert handed.exists()
        finally:
            handed.rmdir()


async def test_another_run_of_a_lost_task_is_left_alone(tmp_path: Path) -> None:
    config = shell("sleep 60", id="again")
    async with executing(tmp_path, recoverable=True) as first:
        task = await start(first, config)
        old = task.driver_state
        await task.destroy(force=True)
        again = await start(first, config)
    async with executing(tmp_path, recoverable=True) as second:
        with pytest.raises(TaskNotFound, match="another run"):
            await recover(second, handle_of(config, old))
        found = await recover(second, handle_of(config, again.driver_state))
        assert found.end is None
        await found.destroy(force=True)


async def test_a_group_goes_although_a_later_host_names_another_parent(tmp_path: Path) -> None:
    config = shell("sleep 60")
    async with executing(tmp_path, recoverable=True) as first:
        task = await start(first, config)
        os.kill(task.supervisor_pid, signal.SIGKILL)  # which else removes it
        await task.wait()
    async with executing(tmp_path, recoverable=True, parent=f"cameleer-test-{os.getpid()}") as second:
        found = await recover(second, handle_of(config, task.driver_state))
        await found.destroy()
        assert not first.groups.cgroups.all()
        await found.destroy()


async def test_a_group_that_could_not_be_removed_is_removed_by_the_next_attempt(tmp_path: Path) -> None:
    config = shell("sleep 60")
    async with executing(tmp_path, recoverable=True) as driver:
        task = await start(driver, config)
        os.kill(task.supervisor_pid, signal.SIGKILL)
        await task.wait()
        assert task.group.paths is not None
        key = "freezer" if task.group.paths.version == 1 else "unified"
        ours = Cgroups(driver.groups.cgroups.mode, node=driver.groups.cgroups.node)
        group = ours.restore(task.group.paths)
        group.enter(os.getpid())  # nobody kills itself
        try:
            with pytest.raises(UnrecoverableError, match="this process"):
                await task.destroy()
        finally:
            for each in group.entry.procs:
                mount = next(point for point in ours.mode.mounts.values() if each.startswith(f"{point}/"))
                Path(mount, "cgroup.procs").write_text(str(os.getpid()))
        assert os.path.isdir(task.group.paths.folders[key])
        await task.destroy()
        assert not driver.groups.cgroups.all()


@contextmanager
def handed_over(driver: Exec, name: str, controllers: Collection[str] = ()) -> Iterator[Path]:
    """A group as an orchestrator makes it for a task; of version 1, of one controller."""
    mode = driver.groups.cgroups.mode
    base = mode.bases.get("unified") or next(mode.bases[each] for each in controllers)
    folder = Path(base, name)
    folder.mkdir()
    for file in ("cpuset.cpus", "cpuset.mems"):
        if mode.version == 1 and (folder / file).exists():
            (folder / file).write_text(Path(base, file).read_text())
    try:
        yield folder
    finally:
        for each in [*reversed(kernel.nested(str(folder))), str(folder)]:
            assert kernel.remove(each)


@pytest.mark.parametrize("controller", ["cpuacct", "memory"])
async def test_a_joined_groups_figures_of_before_are_not_the_tasks(tmp_path: Path, controller: str) -> None:
    async with executing(tmp_path) as driver:
        with handed_over(driver, f"cameleer-test-{os.urandom(6).hex()}", [controller]) as folder:
            burn = "import time\nwhile time.process_time() < 0.5: bytearray(32 << 20)"
            hungry = shell(f"exec {sys.executable} -S -c '{burn}'", cgroup_path=str(folder))
            async with running(driver, hungry) as task:
                first = (await task.wait()).counters
            async with running(driver, shell("exit 3", cgroup_path=str(folder))) as task:
                before = task.read(tick())
                second = (await task.wait()).counters
    assert first is not None
    assert second is not None
    half_ns = (first.cpu.total_ns or 0) / 2
    assert half_ns >= 200e6
    assert (before.cpu.total_ns or 0) <= (second.cpu.total_ns or 0) < half_ns
    assert (second.cpu.user_ns or 0) + (second.cpu.system_ns or 0) < half_ns
    assert (first.memory.minor_faults or 0) > 5000
    assert 0 < (second.memory.minor_faults or 0) < 5000
    assert (first.memory.peak_bytes or 0) > 32 << 20
    if controller == "memory":
        assert second.memory.peak_bytes is None, "it is not known"


async def test_a_joined_groups_kills_of_before_are_not_the_tasks_also_after_a_recovery(tmp_path: Path) -> None:
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    async with executing(tmp_path / "state", recoverable=True) as driver:
        with handed_over(driver, "again.task", ["memory"]) as folder:
            fields = {"alloc_id": "again", "name": "task", "cgroup_path": str(folder)}
            script = "exec python3 -c 'x = bytearray(200 << 20)'"
            async with running(driver, shell(script, resources=Resources(memory_bytes=64 << 20), **fields)) as task:
                end = await task.wait()
                assert end.oom_killed is True
                assert end.counters is not None
                first_faults = end.counters.memory.minor_faults or 0
            async with running(driver, shell("exit 3", **fields)) as task:
                end = await task.wait()
                assert (end.exit_code, end.oom_killed) == (3, False)
            config = shell(f"read x <{fifo}; exit 3", **fields)
            lasting = await start(driver, config)
            async with executing(tmp_path / "state", recoverable=True) as second:
                found = await recover(second, handle_of(config, lasting.driver_state))
                lasting.let_go()
                fifo.write_text("go\n")
                end = await found.wait()
                assert (end.exit_code, end.oom_killed) == (3, False)
                assert end.counters is not None
                assert 0 < (end.counters.memory.minor_faults or 0) < first_faults / 2
                await found.destroy()


async def test_groups_that_a_task_made_in_one_that_it_was_handed_are_removed_and_that_one_stays(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver:
        with handed_over(driver, "inside.task", ["pids"]) as folder:
            config = shell(f"mkdir -p {folder}/own/deep", alloc_id="inside", name="task", cgroup_path=str(folder))
            async with running(driver, config) as task:
                assert (await task.wait()).exit_code == 0
                assert (folder / "own/deep").is_dir()
            assert kernel.nested(str(folder)) == []
            (folder / "theirs").mkdir()
            async with running(driver, config) as task:
                await task.wait()
            assert (folder / "theirs").is_dir()
