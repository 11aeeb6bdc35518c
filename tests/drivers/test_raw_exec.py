"""The driver for plain processes: readings from /proc, attached processes, capabilities, cost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from supervised import descriptors, handle_of, lives, raw_exec, running, shell, start, until

from cameleer.config import TaskConfig
from cameleer.driver import Tick, capabilities_of
from cameleer.drivers.raw_exec import RawExec
from cameleer.errors import ConfigError, NotSupported, TaskNotFound

# the processes of these tests block for a moment only


def tick(*, fresh: bool = True) -> Tick:
    return Tick(time.monotonic_ns(), extended=True, fresh=fresh)


def burn(seconds: float, then: str = "") -> TaskConfig:
    script = f"import time, os\nwhile time.process_time() < {seconds}: pass\n{then}"
    return TaskConfig(command=sys.executable, args=["-S", "-c", script])


def test_its_capabilities_follow_from_its_code() -> None:
    found = capabilities_of(RawExec)
    assert (found.stats, found.exec, found.recover, found.attach, found.network) == (True, True, True, True, False)
    assert found.honours == {"user", "oom_score_adj"}
    assert found.fs_isolation == "none"
    assert not RawExec.reads_never_block


async def test_nothing_is_opened_or_started_before_it_is_wanted(tmp_path: Path) -> None:
    before = descriptors()
    async with raw_exec(tmp_path) as driver:
        assert descriptors() <= before
        async with running(driver, shell("sleep 60")):
            opened = {each for each in descriptors() - before if "/proc" in each}
            assert opened == set(), "a task that nobody measures has files of /proc open"
    assert descriptors() <= before


async def test_readings_cover_the_tree_and_do_not_fall_at_the_end(tmp_path: Path) -> None:
    config = burn(0.3, "os.system('sleep 0.3')")
    async with raw_exec(tmp_path, accounting="procfs") as driver, running(driver, config) as task:
        readings = [task.read(tick())]
        while task.end is None:
            readings.append(task.read(tick()))
            await asyncio.sleep(0.02)
        readings += [task.read(tick()), task.read(tick())]
    totals = [each.cpu.total_ns or 0 for each in readings]
    assert totals == sorted(totals)
    assert totals[-1] >= 0.28e9
    assert readings[-1] == readings[-2], "after the end the totals stay"
    assert max(each.processes.processes or 0 for each in readings) >= 2
    assert all(each.memory.measure == "rss_sum" for each in readings[:-2])


async def test_memory_may_be_the_proportional_share(tmp_path: Path) -> None:
    script = "import os, time; x = bytearray(50_000_000); x[::4096] = b'x' * len(x[::4096])\n"
    forks = "for _ in range(4):\n    if os.fork() == 0: break\nelse: print(flush=True)\ntime.sleep(60)"
    config = TaskConfig(command=sys.executable, args=["-S", "-c", script + forks])
    settings = {"accounting": "procfs", "memory": "pss", "process_stats_ttl": "1s"}
    async with raw_exec(tmp_path, **settings) as driver, running(driver, config) as task:

        def forked() -> bool:
            return task.read(tick()).processes.processes == 5

        await until(forked, "it did not fork")
        memory = task.read(tick()).memory
    assert memory.measure == "pss"
    assert memory.pss_bytes is not None
    assert memory.rss_bytes is not None
    assert 50e6 < memory.pss_bytes < 75e6
    assert memory.rss_bytes > 3 * memory.pss_bytes


async def test_two_hosts_measure_one_task_after_another_without_a_step_back(tmp_path: Path) -> None:
    config = burn(0.2, "time.sleep(60)")
    async with raw_exec(tmp_path, recoverable=True) as first:
        task = await start(first, config)
        await until(lambda: (task.read(tick()).cpu.total_ns or 0) >= 0.18e9, "it did not burn")
        before, state = task.read(tick()).cpu.total_ns, task.driver_state
    async with raw_exec(tmp_path, recoverable=True) as second:
        found = await second.recover(handle_of(config, state))
        after = found.read(tick()).cpu.total_ns
        await found.destroy(force=True)
    assert before is not None
    assert after is not None
    assert after >= before


async def test_a_task_that_was_never_read_has_totals_after_its_end(tmp_path: Path) -> None:
    async with raw_exec(tmp_path) as driver, running(driver, burn(0.1)) as task:
        end = await task.wait()
        assert task.read(tick()) == end.counters


async def test_a_task_whose_supervisor_was_killed_keeps_its_last_reading(tmp_path: Path) -> None:
    async with (
        raw_exec(tmp_path, accounting="procfs") as driver,
        running(driver, shell("sleep 60")) as read,
        running(driver, shell("sleep 60")) as unread,
    ):
        last = read.read(tick())
        for task in (read, unread):
            os.kill(task.supervisor_pid, 9)
            await task.wait()
            folder = Path(f"/proc/{task.supervisor_pid}")  # its connection closes a moment before it is gone
            await until(lambda folder=folder: not folder.exists(), "the killed supervisor was not reaped")
        assert read.read(tick()).cpu == last.cpu
        with pytest.raises(TaskNotFound):
            unread.read(tick())


async def test_it_says_what_counts_its_tasks(tmp_path: Path) -> None:
    async with raw_exec(tmp_path, accounting="procfs") as driver:
        assert (await anext(driver.fingerprint())).attributes == {"accounting": ("procfs", "")}
    async with raw_exec(tmp_path) as driver:
        found = (await anext(driver.fingerprint())).attributes["accounting"]
        assert found == ("cgroup" if driver.mode.usable else "procfs", "")
    async with raw_exec(tmp_path, accounting="cgroup") as driver:
        assert ((await anext(driver.fingerprint())).health == "healthy") == driver.mode.usable


def test_a_wrong_duration_is_refused() -> None:
    from cameleer.drivers.raw_exec import RawExecConfig
    from cameleer.node import detect

    with pytest.raises(ConfigError, match="process_stats_ttl"):
        RawExec(RawExecConfig(process_stats_ttl="soon"), detect())


# what others run


async def test_a_foreign_process_is_measured_with_its_children_and_left_alone(tmp_path: Path) -> None:
    before = descriptors()
    foreign = subprocess.Popen(["sh", "-c", "sleep 60 & while :; do :; done"], start_new_session=True)
    try:
        async with raw_exec(tmp_path) as driver:
            task = await driver.attach(str(foreign.pid))
            assert task.config.name == "sh"
            waiting = asyncio.create_task(task.wait())

            def counted() -> bool:
                found = task.read(tick())
                return found.processes.processes == 2 and (found.cpu.total_ns or 0) > 0

            await until(counted, "it was not counted")
            for refused in (task.signal(15), task.stop(1, 15)):
                with pytest.raises(NotSupported):
                    await refused
            assert foreign.poll() is None
            os.killpg(foreign.pid, 9)
            end = await waiting
            assert end.exit_code is None
            assert end.error
            assert (task.read(tick()).cpu.total_ns or 0) > 0
            await task.destroy()
            await task.destroy()
        assert foreign.wait() == -9, "the exit code is the parent's"
    finally:
        foreign.poll() is None and os.killpg(foreign.pid, 9)
        foreign.wait()
    assert descriptors() <= before


async def test_attaching_to_what_is_not_there_is_task_not_found(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    before = descriptors()
    async with raw_exec(tmp_path) as driver:
        for ref in ("no-pid", "", "-1", "99999999999999999999", str(gone.pid)):
            with pytest.raises(TaskNotFound):
                await driver.attach(ref)
    assert descriptors() <= before


# cost


async def test_a_supervisor_costs_little_memory_beside_the_others(tmp_path: Path) -> None:
    async with raw_exec(tmp_path) as driver:
        tasks = [await start(driver, shell("sleep 60"))]

        def total_kib() -> int:
            launcher = driver.supervisors.launcher_pid
            assert launcher is not None
            return pss_kib(launcher) + sum(pss_kib(task.supervisor_pid) for task in tasks)

        one = total_kib()
        tasks += [await start(driver, shell("sleep 60")) for _ in range(30)]
        each_kib = (total_kib() - one) / 30
        await asyncio.gather(*(task.destroy(force=True) for task in tasks))
    assert each_kib < 1024


def pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("no Pss")


async def test_a_start_costs_little_processor_time(tmp_path: Path) -> None:
    """The host's own, and the launcher's; loose, since others work on this machine too."""
    async with raw_exec(tmp_path) as driver:
        async with running(driver, shell("true")) as task:
            await task.wait()
        launcher = driver.supervisors.launcher_pid
        assert launcher is not None
        own, theirs = time.process_time(), cpu_s(launcher)
        tasks = [await start(driver, shell("true")) for _ in range(50)]
        own, theirs = time.process_time() - own, cpu_s(launcher) - theirs
        await asyncio.gather(*(task.wait() for task in tasks))
        await asyncio.gather(*(task.destroy() for task in tasks))
    assert (own + theirs) / 50 < 0.01
    await until(lambda: not any(lives(task.supervisor_pid) for task in tasks), "supervisors live on")


def cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
