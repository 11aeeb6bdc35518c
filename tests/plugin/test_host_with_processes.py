"""The host with real processes: living on without it, kill -9 at any moment, and an embedder that notices nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cameleer.config import Stdio, TaskConfig
from cameleer.errors import CommandNotFound, DriverError
from cameleer.hooks.specs import hookimpl
from cameleer.host import Host
from cameleer.status import FinalStatus
from cameleer.task import TaskState

ENV = {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}
QUIET = {"plugins": {"hooks": []}}


def sh(script: str, *args: str, **fields: Any) -> TaskConfig:
    return TaskConfig(command="/bin/sh", args=["-c", script, "sh", *args], env=ENV, **fields)


def python(script: str, *args: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(script), *args]


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """What a task waits for: it reads a line."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def open_gate(path: Path) -> None:
    with path.open("w") as file:
        file.write("go\n")


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            found += [child, *descendants(child)]
    return found


async def until(condition: Any, what: str) -> None:
    try:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(what) from None


FIRST_HOST = """
    import asyncio, os, sys
    from cameleer import Host, TaskConfig
    state, gate, detach = sys.argv[1:4]
    env = {"PATH": os.environ["PATH"]}
    async def main():
        async with Host({"plugins": {"hooks": []}}, state_dir=state, on_exit="detach") as host:
            busy = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; "

            def shell(task_id, script):
                return TaskConfig(id=task_id, command="/bin/sh", args=["-c", busy + script], env=env)

            runs = await host.start(shell("runs", "read x <" + gate + "; exit 5"))
            ends = await host.start(shell("ends", "exit 7"))
            async for usage in runs.readings(0.05):
                if usage.cpu.total_ns:
                    break
            print(usage.cpu.total_ns, flush=True)
            if detach == "no":
                await asyncio.sleep(3600)
    asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["detach", "kill -9"])
async def test_tasks_live_on_and_a_new_process_finds_them(tmp_path: Path, fifo: Path, end: str) -> None:
    state = tmp_path / "state"
    first = subprocess.Popen(
        python(FIRST_HOST, str(state), str(fifo), "yes" if end == "detach" else "no"), stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    with first.stdout:
        used_ns = int(first.stdout.readline())
        if end == "kill -9":
            first.kill()
        first.wait(20)
    async with Host(QUIET, state_dir=state) as host:
        tasks = {task.id: task for task in await host.recover()}
        ended = await tasks["ends"].wait()
        assert (ended.status, ended.exit_code) == (FinalStatus.ERROR, 7)
        assert ended.usage.cpu_total_ns is not None
        assert ended.usage.cpu_total_ns > 0
        assert ended.usage.since_recovery
        assert tasks["runs"].info.state is TaskState.RUNNING
        usage = await anext(tasks["runs"].readings())
        assert usage.cpu.total_ns is not None
        assert usage.cpu.total_ns >= used_ns  # continuous
        open_gate(fifo)
        result = await tasks["runs"].wait()
        assert result.exit_code == 5
        assert result.usage.cpu_total_ns is not None
        assert result.usage.cpu_total_ns >= used_ns
        assert result.usage.wall_ns is not None
        assert result.usage.wall_ns > 0
    assert not list((state / "handles").iterdir())


KILLED_HOST = """
    import asyncio, os, sys
    from cameleer import Host, TaskConfig
    async def main():
        async with Host({"plugins": {"hooks": []}}, state_dir=sys.argv[1], on_exit="detach") as host:
            print("open", flush=True)
            number = 0
            while True:
                number += 1
                task = await host.start(TaskConfig(id=f"t{number}", command="/bin/sleep", args=["0.05"], env={}))
                print("started", number, flush=True)
                if number % 3 == 0:
                    await task.stop()
                    print("stopped", number, flush=True)
                if number % 4 == 0:
                    await task.wait()
                    await task.destroy()
                    print("destroyed", number, flush=True)
    asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(5))
async def test_a_kill_at_any_moment_loses_no_task(tmp_path: Path, seed: int) -> None:
    state = tmp_path / "state"
    first = subprocess.Popen(python(KILLED_HOST, str(state)), stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    with first.stdout:
        assert first.stdout.readline() == "open\n"
        await asyncio.sleep(random.Random(seed).uniform(0.02, 0.4))  # the moment is the point
        first.kill()
        words = [line.split() for line in first.stdout.read().splitlines()]
    first.wait(20)
    started = {f"t{word[1]}" for word in words if word[0] == "started"}
    destroyed = {f"t{word[1]}" for word in words if word[0] == "destroyed"}
    async with Host(QUIET, state_dir=state) as host:
        tasks = {task.id: task for task in await host.recover()}
        # the last one may have been destroyed without having said so
        assert len(started - destroyed - tasks.keys()) <= 1
        for task in tasks.values():
            async with asyncio.timeout(20):
                result = await task.wait()
            assert result.exit_code is not None or "lost" in str(result.error) or "never started" in str(result.error)
            assert result.exit_code is not None or task.id not in started
            await task.destroy()
        assert await host.leftovers() == []
    assert not list((state / "handles").iterdir())


async def test_two_hosts_side_by_side_leave_each_others_tasks_alone(tmp_path: Path, fifo: Path) -> None:
    async with (
        Host(QUIET, state_dir=tmp_path / "hosts" / "one") as one,
        Host(QUIET, state_dir=tmp_path / "hosts" / "two") as two,
    ):
        task = await one.start(sh('read x <"$1"', str(fifo), id="t"))
        assert await two.recover() == []
        assert await two.leftovers() == []
        assert one.node.host_id != two.node.host_id
        await two.start(sh("exit 0", id="t"))  # the same id is another task there
        assert task.info.state is TaskState.RUNNING
        open_gate(fifo)
        assert (await task.wait()).exit_code == 0


async def test_the_tasks_of_a_host_without_a_state_folder_end_when_it_is_killed(tmp_path: Path) -> None:
    script = """
        import asyncio, os
        from cameleer import Host, Stdio, TaskConfig
        async def main():
            async with Host({"plugins": {"hooks": []}}) as host:
                await host.run(TaskConfig(
                    command="/bin/sh", args=["-c", "echo $$; sleep 1000 & wait"],
                    env={"PATH": os.environ["PATH"]}, stdout=Stdio.inherit(),
                ))
        asyncio.run(main())
    """
    first = subprocess.Popen(
        python(script), stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert first.stdout is not None
    with first.stdout:
        pid = int(first.stdout.readline())
        first.kill()
        first.wait(20)
        await until(lambda: not Path(f"/proc/{pid}").exists(), "the task outlived its host")
        first.stdout.read()  # ends only when nobody holds it any more


@pytest.fixture
def handlers() -> Iterator[list[int]]:
    """Signal handlers of the embedder's own."""
    seen: list[int] = []
    old = {n: signal.signal(n, lambda number, _: seen.append(number)) for n in (signal.SIGCHLD, signal.SIGUSR1)}
    yield seen
    for number, handler in old.items():
        signal.signal(number, handler)


def children() -> set[str]:
    """Ids of our child processes, also of those that have ended and wait to be reaped."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(folder.name)
    return found


async def test_an_embedder_notices_nothing_of_us(handlers: list[int]) -> None:
    import resource

    before = (os.getpgrp(), os.getsid(0), os.umask(0o22), resource.getrlimit(resource.RLIMIT_NOFILE))
    os.umask(before[2])
    mine = [signal.getsignal(n) for n in range(1, 32) if n not in (9, 19)]
    those_before = children()
    codes: dict[str, list[int]] = {"thread": [], "loop": [], "tasks": []}
    stop = threading.Event()

    def own_processes() -> None:
        while not stop.is_set():
            codes["thread"].append(subprocess.run(["/bin/sh", "-c", "exit 42"], check=False).returncode)

    thread = threading.Thread(target=own_processes)
    thread.start()
    try:
        async with Host(QUIET) as host:

            async def ours(number: int) -> None:
                result = await host.run(sh(f"exit {number}"))
                codes["tasks"].append((result.exit_code or 0) - number)

            async def theirs() -> None:
                process = await asyncio.create_subprocess_exec("/bin/sh", "-c", "exit 17")
                codes["loop"].append(await process.wait())

            for round_ in range(5):
                await asyncio.gather(*(ours(10 * round_ + n) for n in range(8)), *(theirs() for _ in range(4)))
    finally:
        stop.set()
        thread.join()
    assert set(codes["thread"]) == {42}
    assert codes["loop"] == [17] * 20
    assert codes["tasks"] == [0] * 40
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.SIGUSR1 in handlers
    assert [signal.getsignal(n) for n in range(1, 32) if n not in (9, 19)] == mine
    mask = os.umask(0o22)
    os.umask(mask)
    assert (os.getpgrp(), os.getsid(0), mask, resource.getrlimit(resource.RLIMIT_NOFILE)) == before
    status = Path("/proc/self/status").read_text()
    assert "SigBlk:\t0000000000000000" in status
    assert children() <= those_before  # nothing of ours is left to reap


async def test_leaving_the_host_leaves_no_process_file_or_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    threads, fds = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    mine = set(descendants(os.getpid()))
    tasks = asyncio.all_tasks()

    async def body() -> None:
        async with Host(QUIET) as host:
            for _ in range(5):
                task = await host.start(sh("sleep 1000 & sleep 1000", kill_timeout_s=0.2))
            await anext(task.readings())
            raise ValueError("body")

    with pytest.raises(ValueError, match="body"):
        await body()
    assert set(descendants(os.getpid())) == mine
    assert set(threading.enumerate()) == threads
    assert len(os.listdir("/proc/self/fd")) == fds
    assert asyncio.all_tasks() == tasks
    assert not list(tmp_path.iterdir())


async def test_with_publishing_off_no_file_is_opened_and_no_process_listed(tmp_path: Path) -> None:
    trace: list[str] = []

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and recording and str(args[0]).startswith("/proc"):
            trace.append(f"{event} {args[0]}")

    recording = False
    sys.addaudithook(audit)
    async with Host(None) as host:
        task = await host.start(sh("sleep 0.3"))
        recording = True
        result = await task.wait()
        recording = False
        assert trace == []
        assert task.latest is None
        assert result.usage.readings == 0
        assert result.usage.cpu_total_ns is not None  # the kernel's own totals stay
        recording = True
        task = await host.start(sh("sleep 0.3"))
        await anext(task.readings())
        assert trace != []  # the proof that this test can see it
        recording = False


async def test_a_busy_loop_is_measured_truly() -> None:
    burn = "import time\nend = time.process_time() + 1.0\nwhile time.process_time() < end: pass"
    async with Host(QUIET) as host:
        result = await host.run(TaskConfig(command=sys.executable, args=["-c", burn], env=ENV))
        assert result.check().usage.cpu_total_ns == pytest.approx(1.0e9, rel=0.15)  # and the interpreter's start


async def test_a_command_that_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    async with Host(QUIET, state_dir=tmp_path) as host:
        with pytest.raises(CommandNotFound, match="nosuch"):
            await host.start(TaskConfig(command="nosuch", env=ENV))
        assert not host.tasks
        assert not list((tmp_path / "handles").iterdir())


async def test_output_goes_to_files_and_events_come_in_order(tmp_path: Path) -> None:
    order: list[str] = []

    class Diary:
        @hookimpl
        async def poststart(self, request: Any) -> None:
            order.append("poststart")

        @hookimpl
        async def exited(self, request: Any) -> None:
            order.append(f"exited {request.result.exit_code}")

    async with Host(QUIET, plugins=[Diary()]) as host:
        out = tmp_path / "out"
        result = await host.run(sh("echo hello; exit 4", stdout=Stdio.file(out)))
        assert out.read_text() == "hello\n"
        assert order == ["poststart", "exited 4"]
        assert json.dumps(result.usage.readings) == "0"
        assert time.time_ns() > (result.ended_at_ns or 0) >= (result.started_at_ns or 0) > 0


async def test_a_supervisor_that_is_killed_is_an_error_and_never_success() -> None:
    async with Host(QUIET) as host:
        task = await host.start(sh("sleep 1000"))
        pid = int((await task.inspect())["supervisor_pid"])
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            result = await task.wait()
        assert (result.status, result.exit_code) == (FinalStatus.ERROR, None)
        try:
            await task.destroy()
        except DriverError as exc:
            pytest.fail(f"destroy failed: {exc}")
