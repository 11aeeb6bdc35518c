"""Checks of how tasks end: waiting, exit codes and signals, stop, timeouts, and the whole tree."""

# ruff: noqa: D102 # each check is named by its sentence
from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from cameleer.config import Stdio
from cameleer.errors import TaskFailed
from cameleer.status import FinalStatus
from cameleer.testing.base import SuiteBase, check

_STUBBORN = "trap '' INT TERM; echo ready; while :; do sleep 0.05; done"
_TREE = """
(sleep 3600 & sleep 3600) &
(setsid sleep 3600 >&1 &)
(trap '' HUP INT TERM; sleep 3600; sleep 3600) &
echo ready >&2
"""


class EndChecks(SuiteBase):
    """A task ends once, for everybody, and entirely."""

    # waiting

    @check()
    async def test_any_number_of_waiters_get_the_same_result(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            waiters = [asyncio.create_task(task.wait()) for _ in range(10)]
            await asyncio.sleep(0)
            await self.soon(task.stop(), "stop did not return")
            results = await self.soon(asyncio.gather(*waiters), "not every waiter was told")
            assert all(result == results[0] for result in results)

    @check()
    async def test_waiting_for_a_task_that_has_ended_answers_at_once(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.ends())
            first = await self.soon(task.wait(), "the task did not end")
            assert await self.soon(task.wait(), "the second wait did not return") == first
            await self.soon(task.stop(), "stop of a task that has ended did not return")

    @check()
    async def test_a_waiter_that_is_cancelled_harms_no_other(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            given_up, other = asyncio.create_task(task.wait()), asyncio.create_task(task.wait())
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.wait([given_up])
            assert given_up.cancelled()
            await asyncio.wait([other], timeout=0.2)
            assert not other.done(), "cancelling one waiter ended the task or another waiter"
            await self.soon(task.stop(), "stop did not return")
            await self.soon(other, "the other waiter was not told")

    @check("shell", "send_signals")
    async def test_a_stop_whose_grace_passes_still_ends_in_one_result(self) -> None:
        path = self.folder / "ready"
        async with self.host() as host:
            task = await self.start(host, self.shell(_STUBBORN), stdout=Stdio.file(path))
            await self.ready(path)
            waiter = asyncio.create_task(task.wait())
            await self.soon(task.stop(0.2), "stop did not return")  # the driver's own wait is given up here
            result = await self.soon(waiter, "the waiter was not told after a stop that had to use SIGKILL")
            assert result.status is FinalStatus.KILLED
            assert result.signal in (signal.SIGKILL, None)

    # statuses

    @check("exit codes")
    async def test_exit_codes_are_handed_on(self) -> None:
        async with self.host() as host:
            for code in (1, 42, 255):
                task = await self.start(host, self.commands.ends(code))
                result = await self.soon(task.wait(), "the task did not end")
                assert (result.exit_code, result.signal, result.status) == (code, None, FinalStatus.ERROR)
                assert result.error
                with pytest.raises(TaskFailed):
                    result.check()

    @check("shell")
    async def test_a_signal_that_ends_a_task_is_told(self) -> None:
        async with self.host() as host:
            for name, number, status in (("TERM", 15, FinalStatus.ERROR), ("KILL", 9, FinalStatus.KILLED)):
                task = await self.start(host, self.shell(f"kill -{name} $$; sleep 60"))
                result = await self.soon(task.wait(), "the task did not end")
                assert result.exit_code == 128 + number
                assert result.signal in (number, None)  # an engine may give a code only
                assert result.status is status

    @check()
    async def test_a_task_that_was_stopped_is_killed(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            await self.soon(task.stop(), "stop did not return")
            result = await self.soon(task.wait(), "wait did not return after stop")
            assert result.status is FinalStatus.KILLED
            assert result.error

    @check()
    async def test_a_run_whose_owner_is_cancelled_ends_its_task(self) -> None:
        config = self.commands.lasts()
        async with self.host() as host:
            running = asyncio.create_task(host.run(config, driver=self.driver.name))
            await self.until(lambda: config.id in host.tasks, "the task did not start")
            running.cancel()
            await self.soon(asyncio.wait([running]), "a cancelled run did not return")
            assert running.cancelled()
            await self.until(lambda: config.id not in host.tasks, "the task of a cancelled run was not removed")

    # signals and stop

    @check("send_signals")
    async def test_a_signal_ends_a_task(self) -> None:
        async with self.host() as host:
            for number in (signal.SIGTERM, signal.SIGKILL):
                task = await self.start(host, self.commands.lasts())
                await self.soon(task.signal(number), "signal did not return")
                result = await self.soon(task.wait(), f"{number.name} did not end the task")
                assert result.status in (FinalStatus.ERROR, FinalStatus.KILLED)

    @check("send_signals", "shell")
    async def test_a_signal_reaches_the_command(self) -> None:
        path = self.folder / "ready"
        script = "trap 'exit 7' USR1; echo ready; while :; do sleep 0.05; done"
        async with self.host() as host:
            task = await self.start(host, self.shell(script), stdout=Stdio.file(path))
            await self.ready(path)
            await self.soon(task.signal(signal.SIGUSR1), "signal did not return")
            result = await self.soon(task.wait(), "the signal did not reach the command")
            assert result.exit_code == 7

    @check("send_signals", "shell")
    async def test_stop_sends_the_tasks_own_signal_and_waits_for_its_grace(self) -> None:
        path = self.folder / "ready"
        script = "trap 'sleep 0.3; exit 9' USR2; echo ready; while :; do sleep 0.05; done"
        async with self.host() as host:
            task = await self.start(
                host, self.shell(script), stdout=Stdio.file(path), kill_signal=signal.SIGUSR2, kill_timeout_s=30.0
            )
            await self.ready(path)
            await self.soon(task.stop(), "stop did not return when the task had ended")
            result = await self.soon(task.wait(), "wait did not return after stop")
            assert result.exit_code == 9, "the task was not given its grace after its kill_signal"
            assert result.status is FinalStatus.KILLED

    @check("shell")
    async def test_stop_kills_a_task_that_ignores_its_signal(self) -> None:
        path = self.folder / "ready"
        async with self.host() as host:
            task = await self.start(host, self.shell(_STUBBORN), stdout=Stdio.file(path), kill_timeout_s=0.2)
            await self.ready(path)
            began = time.monotonic()
            await self.soon(task.stop(), "stop did not return")
            assert time.monotonic() - began >= 0.15, "the task was killed before its grace had passed"
            result = await self.soon(task.wait(), "wait did not return after stop")
            assert result.exit_code == 137

    @check()
    async def test_stop_without_grace_kills_at_once(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts(), kill_timeout_s=3600.0)
            await self.soon(task.stop(0), "stop without grace did not return")
            result = await self.soon(task.wait(), "wait did not return after stop")
            assert result.status is FinalStatus.KILLED

    # timeouts

    @check()
    async def test_a_timeout_ends_the_task(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts(), timeout_s=0.3, kill_timeout_s=5.0)
            result = await self.soon(task.wait(), "the timeout did not end the task")
            assert result.status is FinalStatus.TIMEOUT
            assert result.started_at_ns is not None
            assert result.ended_at_ns is not None
            assert result.ended_at_ns - result.started_at_ns >= 250_000_000, "it was ended before its timeout"

    @check()
    async def test_a_task_that_ends_in_time_knows_no_timeout(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.ends(), timeout_s=60.0)
            result = await self.soon(task.wait(), "the task did not end")
            assert result.status is FinalStatus.SUCCESS

    # the whole tree

    @check("shell")
    async def test_stop_kills_the_whole_tree(self) -> None:
        await self._tree_is_gone(_TREE + "sleep 3600")

    @check("shell")
    async def test_a_timeout_kills_the_whole_tree(self) -> None:
        await self._tree_is_gone(_TREE + "sleep 3600", timeout_s=0.5)

    @check("shell")
    async def test_destroy_kills_what_outlived_the_command(self) -> None:
        await self._tree_is_gone(_TREE)

    async def _tree_is_gone(self, script: str, timeout_s: float | None = None) -> None:
        """Every process of the tree holds the FIFO open: its end is the end of them all."""
        ready, fifo = self.folder / "ready", self.folder / "alive"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            async with self.host() as host:
                config = self.shell(script)
                task = await self.start(
                    host,
                    config,
                    stdout=Stdio.fifo(fifo),
                    stderr=Stdio.file(ready),
                    timeout_s=timeout_s,
                    kill_timeout_s=0.2,
                )
                await self.ready(ready)
                if script.endswith("sleep 3600"):
                    assert not _at_end(reader), "the task's processes do not have the stdout that was asked for"
                    if timeout_s is None:
                        await self.soon(task.stop(), "stop did not return")
                await self.soon(task.wait(), "the task did not end")
                await self.soon(task.destroy(), "destroy did not return")
                await self.until(lambda: _at_end(reader), "processes of the tree are still alive")
        finally:
            os.close(reader)
            _kill_holders(fifo)


def _at_end(reader: int) -> bool:
    """Whether nobody holds the write end of this FIFO."""
    try:
        while os.read(reader, 4096):
            pass
    except BlockingIOError:
        return False
    return True


def _kill_holders(path: Path) -> None:
    """After a check that failed: end the processes that it left, by what they hold open."""
    target = str(path)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            held = any(os.readlink(fd) == target for fd in (entry / "fd").iterdir())
            if held:
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:  # ended meanwhile, or not ours
            continue
