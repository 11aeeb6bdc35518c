"""Checks of tasks that outlive their host: a later host with the same state folder finds them again."""

# ruff: noqa: D102 # each check is named by its sentence
from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from cameleer.config import Stdio
from cameleer.errors import DriverError
from cameleer.status import FinalStatus
from cameleer.task import TaskState
from cameleer.testing.base import SuiteBase, check

if TYPE_CHECKING:
    from cameleer.config import TaskConfig
    from cameleer.host import Host
    from cameleer.task import Task, TaskHandle
    from cameleer.usage import TaskResourceUsage

_UNSEEN_S = 0.5
"""How long a task runs that sees none of our files, and is to end while no host lives."""


class RecoveryChecks(SuiteBase):
    """Tasks are found again, with their result and their counters."""

    before: TaskResourceUsage | None = None

    @asynccontextmanager
    async def left_running(
        self, config: TaskConfig | None, *, measure: bool = False, **changes: Any
    ) -> AsyncIterator[TaskHandle]:
        """Start a task and leave its host; whatever happens, nothing of it is left at the end."""
        state_dir = self.folder / "state"
        try:
            async with self.host(state_dir=state_dir, detach=True) as host:
                task = await self.start(host, config, **changes)
                handle = task.handle
                if measure:
                    self.before = await self.soon(task.sample(0.5), "sample did not return")
            yield handle
        finally:
            async with self.host(state_dir=state_dir) as host:
                for left in await host.recover():
                    with suppress(DriverError):  # a check that failed has said it already
                        await left.stop(0)
                    with suppress(DriverError):
                        await left.destroy(force=True)

    def later_host(self) -> AbstractAsyncContextManager[Host]:
        """A host on the same state folder, which leaves its tasks alone when it closes."""
        return self.host(state_dir=self.folder / "state", detach=True)

    async def recovered(self, host: Host, handle: TaskHandle) -> Task:
        """Recover everything; the one task that there is."""
        found = await self.soon(host.recover(), "recover did not return")
        assert [task.info.id for task in found] == [handle.config.id], "the task was not found again"
        return found[0]

    @check("recover")
    async def test_a_task_outlives_its_host_and_is_found_again(self) -> None:
        async with self.left_running(self.commands.lasts()) as handle:
            for _ in range(2):  # and may be left again
                async with self.later_host() as host:
                    task = await self.recovered(host, handle)
                    assert task.info.state is TaskState.RUNNING
                    assert task.info.started_at_ns == handle.started_at_ns
                    waiter = asyncio.create_task(task.wait())
                    await asyncio.wait([waiter], timeout=0.2)
                    assert not waiter.done(), "the task did not outlive its host"
                    waiter.cancel()

    @check("recover")
    async def test_a_task_that_was_found_again_can_be_stopped(self) -> None:
        async with (
            self.left_running(self.commands.lasts()) as handle,
            self.later_host() as host,
        ):
            task = await self.recovered(host, handle)
            await self.soon(task.stop(), "stop did not return")
            result = await self.soon(task.wait(), "wait did not return after stop")
            assert result.status is FinalStatus.KILLED
            await self.soon(task.destroy(), "destroy did not return")

    @check("recover", "send_signals")
    async def test_a_task_that_was_found_again_tells_its_end(self) -> None:
        async with (
            self.left_running(self.commands.lasts()) as handle,
            self.later_host() as host,
        ):
            task = await self.recovered(host, handle)
            waiters = [asyncio.create_task(task.wait()) for _ in range(3)]
            await self.soon(task.signal(15), "signal did not return")
            results = await self.soon(asyncio.gather(*waiters), "wait did not return")
            assert results[0].status is FinalStatus.ERROR
            assert all(result == results[0] for result in results)

    @check("recover", "shell")
    async def test_a_task_that_ended_meanwhile_is_found_with_its_exit_code(self) -> None:
        go, done = self.folder / "go", self.folder / "done"
        sees_files = self.offers("host files")
        until = 'while [ ! -e "$1" ]; do sleep 0.02; done' if sees_files else f"sleep {_UNSEEN_S}"
        script = f"{until}; echo done; exit 23"
        async with self.left_running(self.shell(script, str(go)), stdout=Stdio.file(done)) as handle:
            if sees_files:
                go.touch()
                await self.ready(done)
            else:  # nothing tells of its end while no host lives
                await asyncio.sleep(2 * _UNSEEN_S)
            async with self.later_host() as host:
                task = await self.recovered(host, handle)
                result = await self.soon(task.wait(), "wait did not return for a task that had ended")
                assert (result.exit_code, result.status) == (23, FinalStatus.ERROR)
                assert done.read_text() == "done\n", "its output is not complete"
                await self.soon(task.destroy(), "destroy did not return")

    @check("recover", "stats", "busy")
    async def test_counters_go_on_where_they_were(self) -> None:
        async with self.left_running(self.busy(), measure=True) as handle, self.later_host() as host:
            task = await self.recovered(host, handle)
            after = await self.soon(task.sample(0.2), "sample did not return")
            if self.before is not None and self.before.cpu.total_ns is not None:
                assert after.cpu.total_ns is not None
                assert after.cpu.total_ns >= self.before.cpu.total_ns, "CPU time fell when the task was found again"

    @check("recover")
    async def test_a_destroyed_task_is_not_found_again(self) -> None:
        async with self.left_running(self.commands.lasts()) as handle:
            async with self.later_host() as host:
                task = await self.recovered(host, handle)
                await self.soon(task.stop(0), "stop did not return")
                await self.soon(task.destroy(), "destroy did not return")
            async with self.later_host() as host:
                assert await self.soon(host.recover(), "recover did not return") == []
                await self._is_lost(host, handle)

    @check("recover")
    async def test_a_task_that_never_was_is_not_found(self) -> None:
        async with self.left_running(self.commands.lasts()) as handle:
            config = dataclasses.replace(handle.config, id="conformance-never-was")
            stranger = dataclasses.replace(handle, config=config, driver_state=b"")
            async with self.later_host() as host:
                await self._is_lost(host, stranger)

    async def _is_lost(self, host: Host, handle: TaskHandle) -> None:
        """A lost task ends, and nobody knows how; a driver says so with TaskNotFound and nothing else."""
        (task,) = await self.soon(host.recover(handle), "recover did not return")
        assert task.info.state is not TaskState.UNKNOWN, "for a task that is gone the driver must raise TaskNotFound"
        result = await self.soon(task.wait(), "a lost task did not end")
        assert (result.exit_code, result.status) == (None, FinalStatus.ERROR)
        await self.soon(task.destroy(), "destroy did not return")
