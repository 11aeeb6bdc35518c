"""Checks of what not every driver has: further commands in a task, events, and measuring what others run."""

# ruff: noqa: D102 # each check is named by its sentence
from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from cameleer.driver import ExecSession, TaskEvent
from cameleer.errors import DriverError, NotSupported, TaskNotFound
from cameleer.status import FinalStatus
from cameleer.task import TaskState
from cameleer.testing.base import SuiteBase, check

if TYPE_CHECKING:
    from cameleer.host import Host
    from cameleer.task import Task


class ExtraChecks(SuiteBase):
    """Exec, events, attach."""

    # exec

    async def session(
        self, task: Task, script: str, *, tty: bool = False, size: tuple[int, int] | None = None, **env: str
    ) -> ExecSession:
        """Run a script inside a task."""
        argv = self.commands.exec_argv(script)
        assert argv is not None, "`commands.exec_argv` made no command"
        return await self.soon(task.exec(argv, tty=tty, size=size, env=env or None), "exec did not return")

    async def all_output(self, session: ExecSession) -> dict[int, bytes]:
        """What a command wrote, by stream, when it has ended."""
        found = {1: b"", 2: b""}

        async def collect() -> None:
            async for stream, data in session.output():
                found[stream] += data

        await self.soon(collect(), "the output of a command did not end")
        return found

    @check("exec", "exec of a shell")
    async def test_exec_gives_output_and_exit_code(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            async with await self.session(task, "echo out; echo err >&2; exit 5") as session:
                assert await self.all_output(session) == {1: b"out\n", 2: b"err\n"}
                assert (await self.soon(session.wait(), "the command did not end")).exit_code == 5
            assert task.info.state is TaskState.RUNNING, "the end of a further command ended its task"

    @check("exec", "exec of a shell")
    async def test_exec_takes_stdin(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            async with await self.session(task, "cat") as session:
                await self.soon(session.write(b"to and "), "write did not return")
                await self.soon(session.write(b"fro"), "write did not return")
                await self.soon(session.close_stdin(), "close_stdin did not return")
                assert (await self.all_output(session))[1] == b"to and fro"
                assert (await self.soon(session.wait(), "the command did not see the end of stdin")).exit_code == 0

    @check("exec", "exec of a shell")
    async def test_exec_adds_to_the_environment(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            async with await self.session(task, 'echo "$ADDED"', ADDED="a value") as session:
                assert (await self.all_output(session))[1] == b"a value\n"

    @check("exec", "exec of a shell")
    async def test_exec_has_a_terminal_of_the_size_that_was_asked_for(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            # an engine may only be able to tell the size once the command runs
            known = "until case $(stty size 2>&1) in *[1-9]*) true;; *) false;; esac; do sleep 0.02; done; stty size"
            script = f"{known}; echo err >&2; read line; stty size"
            async with await self.session(task, script, tty=True, size=(33, 77)) as session:
                received = b""

                async def converse() -> None:
                    nonlocal received
                    async for stream, data in session.output():
                        assert stream == 1, "with a terminal all output is stream 1"
                        received += data
                        if b"err" in received and b"44 88" not in received and b"next" not in received:
                            await session.resize(44, 88)
                            await session.write(b"next\n")

                await self.soon(converse(), "the command did not end")
                assert b"33 77" in received
                assert b"44 88" in received

    @check("exec", "exec of a shell")
    async def test_closing_an_exec_kills_its_command_and_not_the_task(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.lasts())
            session = await self.session(task, "sleep 3600 & sleep 3600")
            waiter = asyncio.create_task(session.wait())
            await asyncio.sleep(0)
            await self.soon(session.aclose(), "aclose did not return")
            await self.soon(asyncio.wait([waiter]), "the command outlived its session")
            assert waiter.cancelled() or waiter.exception() is not None or waiter.result().exit_code != 0
            assert task.info.state is TaskState.RUNNING

    @check("exec")
    async def test_exec_in_a_task_that_has_ended_is_an_error(self) -> None:
        async with self.host() as host:
            task = await self.start(host, self.commands.ends())
            await self.soon(task.wait(), "the task did not end")
            with pytest.raises(DriverError):
                await self.soon(task.exec(self.commands.exec_argv("exit 0") or ["true"]), "exec did not return")

    # events

    @check("events")
    async def test_every_listener_gets_all_events(self) -> None:
        async with self.host() as host:
            first: list[TaskEvent] = []
            second: list[TaskEvent] = []
            listeners = [asyncio.create_task(self._events(host, heard)) for heard in (first, second)]
            await asyncio.sleep(0.05)
            task = await self.start(host, self.commands.ends())
            await self.soon(task.wait(), "the task did not end")
            await asyncio.sleep(0.2)  # nothing says that a driver must have told anything
            for listener in listeners:
                listener.cancel()
            await self.soon(asyncio.wait(listeners), "a listener that was cancelled did not end")
            assert first == second, "two listeners heard different events"
            for event in first:
                assert isinstance(event, TaskEvent)

    async def _events(self, host: Host, heard: list[TaskEvent]) -> None:
        driver = await host.driver(self.driver.name)
        async with aclosing(driver.events()) as stream:
            async for event in stream:
                heard.append(event)

    # attach

    @check("attach", "foreign")
    async def test_what_others_run_is_measured_and_left_alone(self) -> None:
        foreign = self.commands.foreign()
        assert foreign is not None
        with foreign as ref:
            async with self.host() as host:
                task = await self.soon(host.attach(ref, self.driver.name), "attach did not return")
                assert task.info.attached
                usage = await self.soon(task.sample(0.2), "sample did not return")
                assert usage.cpu.total_ns is not None or usage.memory.in_use_bytes is not None
                for end in (task.stop(), task.signal(15), task.destroy()):
                    with pytest.raises(NotSupported):
                        await self.soon(end, "the refusal did not return")
            async with self.host() as host:
                task = await self.soon(host.attach(ref, self.driver.name), "the host's close ended what others run")
                await self.soon(task.sample(0.1), "sample did not return")

    @check("attach", "foreign")
    async def test_the_end_of_what_others_run_is_seen(self) -> None:
        foreign = self.commands.foreign()
        assert foreign is not None
        async with self.host() as host:
            with foreign as ref:
                task = await self.soon(host.attach(ref, self.driver.name), "attach did not return")
            result = await self.soon(task.wait(), "the end of what others run was not seen")
            assert result.status in (FinalStatus.ERROR, FinalStatus.KILLED, FinalStatus.SUCCESS)

    @check("attach")
    async def test_attaching_to_nothing_is_task_not_found(self) -> None:
        async with self.host() as host:
            with pytest.raises(TaskNotFound):
                await self.soon(host.attach("no-such-thing", self.driver.name), "attach did not return")
