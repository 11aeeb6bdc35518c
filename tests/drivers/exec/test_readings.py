"""What a task's readings hold beside its group's own figures."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confined import executing, make, needs_groups, needs_root, running, shell

from cameleer.driver import Tick
from cameleer.drivers.exec.task import ExecTask
from cameleer.errors import ConfigError
from cameleer.usage import NO_NETWORK, ProcessRow

pytestmark = needs_groups
IDLE = shell("exec sleep 60", driver_config={"pid_mode": "host"})


def tick(*, per_process: bool = False) -> Tick:
    return Tick(time.monotonic_ns(), extended=True, fresh=True, per_process=per_process)


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        os.sched_yield()


def age_ns(task: ExecTask) -> int:
    """How old the memory figures of a reading are that is handed out now."""
    counters = task.read(Tick(time.monotonic_ns()))
    return 0 if counters.memory_at_ns is None else counters.at_ns - counters.memory_at_ns


async def test_there_is_a_row_for_each_process_when_it_is_asked_for(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver, running(driver, shell("sleep 60 & sleep 60 & wait")) as task:

        def seen() -> tuple[ProcessRow, ...]:
            """Those that are past their exec."""
            return tuple(row for row in task.read(tick(per_process=True)).per_process or () if row.rss_bytes)

        until(lambda: sorted(row.name for row in seen()) == ["sh", "sleep", "sleep"])
        rows = seen()
        assert task.pid in {row.pid for row in rows}
        assert task.supervisor_pid not in {row.pid for row in rows}
        assert all(row.threads == 1 for row in rows)
        assert task.read(tick()).per_process is None


async def test_an_ended_task_has_no_rows_and_its_totals_stay(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver, running(driver, shell("exit 3")) as task:
        await task.wait()
        counters = task.read(tick(per_process=True))
        assert counters.per_process == ()
        assert counters.cpu.total_ns


async def test_rows_of_somebody_elses_group(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver, running(driver, IDLE) as task:
        mount = next(
            point for point in driver.groups.cgroups.mode.mounts.values() if task.group.folder.startswith(point)
        )
        attached = await driver.attach(f"cgroup:{task.group.folder.removeprefix(mount)}")
        assert [row.pid for row in attached.read(tick(per_process=True)).per_process or ()] == [task.pid]
        await attached.destroy()


@pytest.mark.parametrize("name", ["idle_after", "refresh"])
def test_a_setting_that_is_no_duration_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 'soon'"):
        make(tmp_path, **{name: "soon"})


async def test_how_old_the_figures_of_an_idle_task_may_get_can_be_set(tmp_path: Path) -> None:
    async with executing(tmp_path, idle_after="0s", refresh="1h") as driver, running(driver, IDLE) as task:
        until(lambda: age_ns(task) > 0)
    async with executing(tmp_path, idle_after="1h", refresh="1h") as driver, running(driver, IDLE) as task:
        assert {age_ns(task) for _ in range(50)} == {0}


@pytest.mark.root
@needs_root
@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-n", "true"], check=False).returncode != 0,
    reason="no network namespace can be made",
)
async def test_a_task_in_a_network_of_its_own_has_its_figures_and_another_none(tmp_path: Path) -> None:
    alone = shell("exec unshare -n sleep 60", driver_config={"pid_mode": "host"})
    ours = os.readlink("/proc/self/ns/net")
    async with executing(tmp_path) as driver:
        async with running(driver, alone) as task:
            until(lambda: os.readlink(f"/proc/{task.pid}/ns/net") != ours)
            counters = task.read(tick())
            assert counters.network.rx_bytes == 0
            assert "network" not in counters.missing
        async with running(driver, IDLE) as task:
            counters = task.read(tick())
            assert counters.network == NO_NETWORK
            assert counters.missing["network"] == "unsupported"
