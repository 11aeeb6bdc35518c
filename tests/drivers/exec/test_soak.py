"""Five hundred tasks, measured ten times a second, a host that is killed in the middle and another one beside it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cameleer.config import TaskConfig
from cameleer.drivers.cgroup.mode import detect
from cameleer.host import Host
from cameleer.status import FinalStatus
from cameleer.task import TaskState

TASKS = 500
QUIET = {"plugins": {"hooks": []}}
ENV = {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}

FIRST_HOST = """
    import asyncio, os, sys, time
    from cameleer import Host, TaskConfig
    state, count = sys.argv[1], int(sys.argv[2])
    env = {"PATH": os.environ["PATH"]}

    async def main():
        config = {"plugins": {"hooks": []}}
        async with Host(config, state_dir=state, on_exit="detach") as host:
            tasks = [TaskConfig(id=f"t{n}", command="sleep", args=["1000"], env=env) for n in range(count)]
            began = time.monotonic()
            started = await asyncio.gather(*(host.start(task, "exec") for task in tasks))
            print(time.monotonic() - began, flush=True)

            async def measure(task):
                reader = task.readings(0.1)
                for _ in range(5):
                    await anext(reader)

            await asyncio.gather(*map(measure, started))
            print("measured", flush=True)
            for task in started[:100]:
                await task.stop(0)
                print("stopped", task.id, flush=True)
    asyncio.run(main())
"""


def folders(host_id: str) -> list[str]:
    """All folders of a host's groups."""
    mounts = set(detect().mounts.values())
    return [path for mount in mounts for path, _, _ in os.walk(mount) if host_id in path]


def running(mark: str) -> list[str]:
    """Processes that have this in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in words:
            found.append(words)
    return found


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not detect().usable, reason="needs root and writable cgroups")
@pytest.mark.skipif("CAMELEER_TEST_UML" in os.environ, reason="needs the memory of five hundred supervisors")
async def test_five_hundred_tasks_outlive_a_killed_host_and_nothing_is_left(tmp_path: Path) -> None:
    state = tmp_path / "first"
    script = [sys.executable, "-c", textwrap.dedent(FIRST_HOST), str(state), str(TASKS)]
    first = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    with first.stdout:
        async with Host(QUIET, state_dir=tmp_path / "second") as beside:
            ours = [await beside.start(TaskConfig(command="sleep", args=["1000"], env=ENV), "exec") for _ in range(10)]
            loop = asyncio.get_running_loop()
            seconds = float(await loop.run_in_executor(None, first.stdout.readline))
            assert seconds < 30  # 10 on two cores of their own; a figure for the log, not a timed test
            assert await loop.run_in_executor(None, first.stdout.readline) == "measured\n"
            await loop.run_in_executor(None, first.stdout.readline)
            first.kill()
            await loop.run_in_executor(None, first.wait)
            assert all(task.info.state is TaskState.RUNNING for task in ours)
            assert await beside.recover() == []
    async with Host(QUIET, state_dir=state) as host:
        tasks = await host.recover()
        assert len(tasks) == TASKS
        alive = [task for task in tasks if task.info.state is TaskState.RUNNING]
        assert len(alive) > TASKS - 100
        assert (await anext(alive[-1].readings())).cpu.total_ns is not None
        for begin in range(0, TASKS, 100):  # in waves
            await asyncio.gather(*(task.stop(0) for task in tasks[begin : begin + 100]))
        results = await asyncio.gather(*(task.wait() for task in tasks))
        assert {result.status for result in results} == {FinalStatus.KILLED}
        # the stop that the host died in is taken up again at the recovery, with the driver's own signal
        assert [result for result in results if result.signal not in (2, 9)] == []
        assert all(result.usage.cpu_total_ns is not None for result in results)
        assert await host.leftovers() == []
    assert not list((state / "handles").iterdir())
    for folder in (state, tmp_path / "second"):
        assert folders((folder / "host_id").read_text().strip()) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert running(str(tmp_path)) == []
