"""Checks of what is left behind, and of the process that a driver is a guest in."""

# ruff: noqa: D102 # each check is named by its sentence
from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cameleer.config import Stdio
from cameleer.testing.base import SuiteBase, check

if TYPE_CHECKING:
    from cameleer.host import Host

_PR_GET_CHILD_SUBREAPER = 37
_HELD = "held the event loop"


class LeakChecks(SuiteBase):
    """Once the host has closed, nothing is left, and the process is as it was."""

    async def busy_life(self, host: Host) -> None:
        """A bit of everything: an end, a stop, a failed start, readings, a further command, a task left running."""
        ended = await self.start(host, self.commands.ends())
        stopped = await self.start(host, self.commands.lasts())
        await self.start(host, self.commands.lasts())
        if self.offers("stats"):
            await self.soon(stopped.sample(0.05), "sample did not return")
            async for _ in stopped.readings(self.interval_s):
                break
        if self.offers("exec"):
            async with await stopped.exec(self.commands.exec_argv("exit 0") or ["true"]) as session:
                await self.soon(session.wait(), "the further command did not end")
        if self.offers("refused"):
            with suppress(Exception):  # what it raises is another check's business
                await self.start(host, self.commands.refused())
        await self.soon(stopped.stop(), "stop did not return")
        await self.soon(asyncio.gather(ended.wait(), stopped.wait()), "the tasks did not end")

    async def _compared(self, snapshot: Callable[[], frozenset[object]], what: str) -> None:
        """Nothing may be left that was not there before; a first life warms up what a process makes once."""
        async with self.host() as host:
            await self.busy_life(host)
        before = snapshot()
        async with self.host() as host:
            await self.busy_life(host)
        left: frozenset[object] = frozenset()

        def gone() -> bool:
            nonlocal left
            left = snapshot() - before
            return not left

        try:
            await self.until(gone, "")
        except BaseException:
            assert not left, f"the closed host left {what}"
            raise

    @check()
    async def test_no_asyncio_task_is_left(self) -> None:
        async with self.host() as host:
            await self.busy_life(host)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, "the closed host left asyncio tasks"

    @check()
    async def test_no_thread_is_left(self) -> None:
        await self._compared(lambda: frozenset(threading.enumerate()), "threads")

    @check()
    async def test_no_descriptor_is_left(self) -> None:
        await self._compared(_descriptors, "descriptors")

    @check()
    async def test_no_process_is_left(self) -> None:
        before = _descendants()  # the embedder's own
        async with self.host() as host:
            await self.busy_life(host)
            seen = _descendants() - before
        left: set[tuple[int, str]] = set()

        def gone() -> bool:
            nonlocal left
            left = seen & _all_processes()
            return not left

        try:
            await self.until(gone, "")
        except BaseException:
            names = [_name(pid) for pid, _ in left]
            for pid, _ in left:
                os.kill(pid, signal.SIGKILL)
            assert not names, "the closed host left processes"
            raise

    @check()
    async def test_nothing_of_the_process_is_changed(self) -> None:
        before = _process_state()
        async with self.host() as host:
            await self.busy_life(host)
            during = _process_state()
        changed = [name for name, value in before.items() if during[name] != value]
        assert not changed, "while the host was open, the embedder's process was changed"
        changed = [name for name, value in before.items() if _process_state()[name] != value]
        assert not changed, "the closed host left the embedder's process changed"

    @check()
    async def test_the_embedders_own_processes_keep_their_exit_codes(self) -> None:
        codes = [3, 4, 5]
        long = _shell("exec sleep 3600")
        try:
            async with self.host() as host:
                own = [_shell(f"exit {code}") for code in codes]
                await self.busy_life(host)
                own += [_shell(f"exit {code}") for code in codes]
                ended = [process.wait(self.patience_s) for process in own]
                assert ended == codes * 2, "the host or driver collected processes that are not its own"
            assert long.poll() is None, "the host's close ended a process of the embedder's"
        finally:
            long.kill()
            long.wait()

    @check()
    async def test_the_event_loop_is_not_held(self) -> None:
        complaints: list[str] = []
        for _ in range(3):  # on a loaded machine one may come by chance, three do not
            with _warnings() as records:
                async with self.host() as host:
                    await self.busy_life(host)
            complaints = [
                record.getMessage()
                for record in records
                if _HELD in record.getMessage() and getattr(record, "driver", "") == self.driver.name
            ]
            if not complaints:
                return
        assert not complaints

    @check("shell")
    async def test_outputs_are_closed_when_the_host_has(self) -> None:
        path = self.folder / "out"
        async with self.host() as host:
            task = await self.start(host, self.shell("echo x"), stdout=Stdio.file(path))
            await self.soon(task.wait(), "the task did not end")
        held = [link for link in _descriptors() if str(path) in str(link)]
        assert not held, "the output of a task is still open in the host's process"


def _shell(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/sh", "-c", script])


def _descriptors() -> frozenset[object]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add((int(fd), os.readlink(f"/proc/self/fd/{fd}")))
        except OSError:  # the listing's own
            continue
    return frozenset(found)


def _stat(pid: str) -> list[str]:
    """Fields of ``/proc/PID/stat`` after the name: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _processes() -> Iterator[tuple[int, str, int]]:
    """Pid, start time and parent of each process."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = _stat(pid)
        except OSError:
            continue
        yield int(pid), fields[19], int(fields[1])


def _all_processes() -> set[tuple[int, str]]:
    return {(pid, started) for pid, started, _ in _processes()}


def _descendants() -> set[tuple[int, str]]:
    """All processes below ours."""
    rows = list(_processes())
    ours = {os.getpid()}
    while True:
        more = {pid for pid, _, parent in rows if parent in ours} - ours
        if not more:
            break
        ours |= more
    return {(pid, started) for pid, started, _ in rows if pid in ours and pid != os.getpid()}


def _name(pid: int) -> str:
    try:
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_text().replace(chr(0), ' ').strip() or _stat(str(pid))[0]}"
    except OSError:
        return str(pid)


def _process_state() -> dict[str, object]:
    """What an embedder may have set for its whole process."""
    umask = os.umask(0o077)
    os.umask(umask)
    subreaper = ctypes.c_int()
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(subreaper))
    return {
        "signal handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "signal mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "umask": umask,
        "limits": [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name[:7] == "RLIMIT_"],
        "working directory": os.getcwd(),
        "environment": dict(os.environ),
        "child subreaper": subreaper.value,
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "event loop policy": type(asyncio.get_event_loop_policy()),
    }


@contextmanager
def _warnings() -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep(logging.WARNING)
    logger = logging.getLogger("cameleer")
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
