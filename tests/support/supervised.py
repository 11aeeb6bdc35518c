"""Plain processes under supervisors, for tests that provoke what happens to them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from cameleer.config import TaskConfig
from cameleer.drivers.raw_exec import RawExec, RawExecConfig, RawExecTask
from cameleer.drivers.supervisor import proc
from cameleer.node import detect
from cameleer.task import TaskHandle

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE_S = 60.0 if "CAMELEER_TEST_UML" in os.environ else 20.0

HOST = (
    """
import asyncio, sys
from hashlib import sha256
from pathlib import Path
from cameleer.config import Stdio, TaskConfig
from cameleer.drivers.raw_exec import RawExec, RawExecConfig
from cameleer.node import detect

async def main(state, recoverable, terminal, leave_rest, script, mark):
    host_id = sha256(state.encode()).hexdigest()[:16]
    node = detect(state_dir=Path(state), recoverable=recoverable == "True", host_id=host_id)
    driver = RawExec(RawExecConfig(), node)
    task = await driver.start(TaskConfig(
        id="the task", command="/bin/sh", args=["-c", script, mark], env={"PATH": "%s"}, terminal=terminal,
        leave_rest=leave_rest == "True",
    ))
    print(driver.supervisors.launcher_pid, task.supervisor_pid, task.pid, task.driver_state.hex(), flush=True)
    await task.wait()
    print("ended", flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""
    % PATH
)


def shell(script: str, *args: str, **fields: Any) -> TaskConfig:
    """A task of a shell; ``args`` are ``$0``, ``$1``…"""
    return TaskConfig(command="/bin/sh", args=["-c", script, *(args or ["sh"])], **{"env": {"PATH": PATH}, **fields})


def make(folder: Path | None, *, recoverable: bool = False, **settings: Any) -> RawExec:
    """A driver of one host: those of the same folder find each other's tasks."""
    host_id = sha256(os.fsencode(folder or os.urandom(8))).hexdigest()[:16]
    return RawExec(RawExecConfig(**settings), detect(state_dir=folder, recoverable=recoverable, host_id=host_id))


def remove_groups(folder: Path) -> None:
    """Remove what a host that was killed left."""
    driver = make(folder)
    if driver.mode.usable:
        for group in driver.groups.cgroups.all():
            group.remove()


@asynccontextmanager
async def raw_exec(folder: Path | None, *, recoverable: bool = False, **settings: Any) -> AsyncIterator[RawExec]:
    """An opened driver."""
    driver = make(folder, recoverable=recoverable, **settings)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


async def start(driver: RawExec, config: TaskConfig) -> RawExecTask:
    """Start a task, as what it is."""
    return cast("RawExecTask", await driver.start(config))


@asynccontextmanager
async def running(driver: RawExec, config: TaskConfig) -> AsyncIterator[RawExecTask]:
    """A task that is removed afterwards, whatever happens."""
    task = await start(driver, config)
    try:
        yield task
    finally:
        await task.destroy(force=True)


def handle_of(config: TaskConfig, driver_state: bytes = b"") -> TaskHandle:
    """A handle as a host keeps it."""
    return TaskHandle(driver="raw_exec", config=config, driver_state=driver_state)


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"within {PATIENCE_S:g} s: {what}"
        await asyncio.sleep(0.01)
    return found


async def text_of(path: Path) -> str:
    """What a task writes to a file, as soon as it is a line."""
    await until(lambda: path.exists() and path.read_bytes().endswith(b"\n"), f"nothing was written to {path}")
    return path.read_text()


def marked(mark: str) -> list[proc.Process]:
    """Living processes that have this word among their arguments."""
    return [each for each in proc.processes() if each.state != proc.ZOMBIE and mark.encode() in _arguments(each.pid)]


def _arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    found = proc.process(pid)
    return found is not None and found.state != proc.ZOMBIE


class ForeignHost:
    """A process that holds a driver and one task, to be killed.

    :ivar launcher_pid: the process that starts its supervisors.
    """

    def __init__(
        self,
        folder: Path,
        script: str,
        mark: str,
        *,
        recoverable: bool = False,
        terminal: str = "none",
        leave_rest: bool = False,
    ) -> None:
        words = [str(folder), str(recoverable), terminal, str(leave_rest), script, mark]
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOST, *words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        launcher, supervisor, pid, state = self.output.readline().split()
        self.launcher_pid, self.supervisor_pid, self.pid = int(launcher), int(supervisor), int(pid)
        self.driver_state = bytes.fromhex(state)

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def foreign_host(folder: Path, script: str, mark: str, **options: Any) -> Iterator[ForeignHost]:
    """Such a process; what is marked is killed at the end, whatever happened."""
    host = ForeignHost(folder, script, mark, **options)
    try:
        yield host
    finally:
        host.kill()
        host.output.close()
        for each in marked(mark):
            with suppress(ProcessLookupError):
                os.kill(each.pid, 9)


def descriptors() -> set[str]:
    """What this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found
