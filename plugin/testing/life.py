"""Checks of a task's life: start, several at once, destroy, the host's close."""

# ruff: noqa: D102 # each check is named by its sentence
from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from cameleer.errors import StartError, UnrecoverableError
from cameleer.status import FinalStatus
from cameleer.task import TaskState
from cameleer.testing.base import SuiteBase, check

_CLOCK_SLACK_NS = 1_000_000_000


class LifeChecks(SuiteBase):
    """A task starts, runs, ends, and is forgotten."""

    @check()
    async def test_the_driver_says_that_it_is_healthy(self) -> None:
        async with self.host() as host:
            driver = await self.soon(host.driver(self.driver.name), "the driver did not open")
            async with aclosing(driver.fingerprint()) as health:
                first = await self.soon(anext(health), "the driver did not say how it is")
            assert first.health == "healthy", f"the driver says: {first.health}, {first.description}"

    @check()
    async def test_a_task_that_ends_well_is_a_success(self) -> None:
        before = time.time_ns()
        async with self.host() as host:
            task = await self.start(host, self.commands.ends())
            result = await self.soon(task.wait(), "the task did not end")
            assert (result.status, result.exit_code, result.signal) == (FinalStatus.SUCCESS, 0, None)
            assert result.error is None
            assert (result.task_id, result.driver) == (task.info.id, self.driver.name)
            assert task.info.state is TaskState.EXITED
            started, ended = result.started_at_ns, result.ended_at_ns
            assert started is not None
            assert ended is not None
            assert before - _CLOCK_SLACK_NS <= started <= ended <= time.time_ns() + _CLOCK_SLACK_NS, (
                "the times of start and end are not Unix times in nanoseconds, in this order"
            )

    @check()
    async def test_a_started_task_runs_until_it_is_stopped(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            assert task.info.state is TaskState.RUNNING
            waiter = asyncio.create_task(task.wait())
            await asyncio.wait([waiter], timeout=0.3)
            assert not waiter.done(), "the task ended by itself"
            await self.soon(task.stop(), "stop did not return")
            await self.soon(waiter, "wait did not return after stop")

    @check()
    async def test_tasks_at_the_same_time_end_each_for_itself(self) -> None:
        async with self.host() as host:
            stopped = await self.start(host, self.commands.lasts())
            left = await self.start(host, self.commands.lasts())
            await self.soon(stopped.stop(), "stop did not return")
            assert left.info.state is TaskState.RUNNING, "stopping one task ended another"
            waiter = asyncio.create_task(left.wait())
            await asyncio.wait([waiter], timeout=0.2)
            assert not waiter.done(), "stopping one task ended another"
            await self.soon(left.stop(), "the second stop did not return")
            await waiter

    @check()
    async def test_twenty_tasks_started_at_once_all_end(self) -> None:
        async with self.host() as host:
            tasks = await self.soon(
                asyncio.gather(*(self.start(host, self.commands.ends()) for _ in range(20))), "20 starts did not return"
            )
            results = await self.soon(asyncio.gather(*(task.wait() for task in tasks)), "20 tasks did not end")
            assert {result.status for result in results} == {FinalStatus.SUCCESS}
            assert len({result.task_id for result in results}) == len(tasks)

    @check()
    async def test_a_start_that_is_cancelled_leaves_no_task(self) -> None:
        async with self.host() as host:
            await host.driver(self.driver.name)
            for steps in (1, 3, 10, 30):  # at different moments of the start
                starting = asyncio.create_task(self.start(host, self.commands.lasts()))
                for _ in range(steps):
                    await asyncio.sleep(0)
                starting.cancel()
                await self.soon(asyncio.wait([starting]), "a cancelled start did not return")
                if not starting.cancelled():  # it was quicker
                    await self.soon(starting.result().destroy(force=True), "destroy did not return")
            await self.until(lambda: not host.tasks, "a cancelled start left its task")
            again = await self.soon(self.start(host, self.commands.ends()), "the next start did not return")
            await self.soon(again.wait(), "the next task did not end")

    @check()
    async def test_an_ended_task_can_be_destroyed_twice(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.ends())
            await self.soon(task.wait(), "the task did not end")
            await self.soon(task.destroy(), "destroy did not return")
            await self.soon(task.destroy(), "the second destroy did not return")
            assert task.info.id not in host.tasks

    @check()
    async def test_destroying_a_running_task_ends_it(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            with pytest.raises(UnrecoverableError):
                await self.soon(task.destroy(), "the refusal did not return")
            await self.soon(task.destroy(force=True), "destroy did not return")
            result = await self.soon(task.wait(), "wait did not return after destroy")
            assert result.status is FinalStatus.KILLED
            assert task.info.id not in host.tasks

    @check()
    async def test_an_id_is_free_again_after_destroy(self) -> None:
        async with self.host() as host:
            for _ in range(2):
                task = await self.start(host, self.commands.ends(), id="conformance-same-id")
                result = await self.soon(task.wait(), "the task did not end")
                assert result.status is FinalStatus.SUCCESS
                await self.soon(task.destroy(), "destroy did not return")

    @check()
    async def test_closing_the_host_ends_what_still_runs(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            waiter = asyncio.create_task(task.wait())
            await asyncio.sleep(0)
        result = await self.soon(waiter, "wait did not return after the host closed")
        assert result.status is FinalStatus.CANCELLED

    @check()
    async def test_a_second_host_leaves_the_tasks_of_the_first_alone(self) -> None:
        async with self.host() as first:
            task = await self.start(first, self.commands.lasts())
            async with self.host() as second:
                other = await self.start(second, self.commands.ends())
                await self.soon(other.wait(), "the second host's task did not end")
            waiter = asyncio.create_task(task.wait())
            await asyncio.wait([waiter], timeout=0.3)
            assert not waiter.done(), "closing one host ended the task of another"
            await self.soon(task.stop(), "stop did not return")
            await waiter

    @check()
    async def test_inspect_gives_text(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            attributes = await self.soon(task.inspect(), "inspect did not return")
            assert all(isinstance(key, str) and isinstance(value, str) for key, value in attributes.items())

    @check("refused")
    async def test_a_task_that_cannot_start_raises_and_leaves_nothing(self) -> None:
        async with self.host() as host:
            for _ in range(2):  # the first must not leave its id behind
                with pytest.raises(StartError):
                    await self.soon(
                        self.start(host, self.commands.refused(), id="conformance-refused"), "start did not return"
                    )
            assert "conformance-refused" not in host.tasks
