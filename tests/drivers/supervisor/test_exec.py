"""Further commands in a task."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from supervised import PATH, descriptors, handle_of, lives, marked, raw_exec, running, shell, start, until

from cameleer.config import Stdio
from cameleer.driver import ExecSession
from cameleer.drivers.raw_exec import RawExec
from cameleer.errors import CommandNotFound, StartError, UnrecoverableError

LASTS = "sleep 60; :"


async def all_of(session: ExecSession) -> dict[int, bytes]:
    found = {1: b"", 2: b""}
    async for stream, data in session.output():
        found[stream] += data
    return found


async def test_a_further_command_has_the_tasks_folder_and_environment(driver: RawExec, tmp_path: Path) -> None:
    async with running(
        driver, shell(LASTS, env={"PATH": PATH, "OF_TASK": "1", "BOTH": "task"}, cwd=str(tmp_path))
    ) as task:
        words = ["sh", "-c", "pwd; echo $OF_TASK $BOTH $OWN; echo err >&2; exit 5"]
        async with await task.exec(words, env={"BOTH": "exec", "OWN": "2"}) as session:
            assert await all_of(session) == {1: f"{tmp_path}\n1 exec 2\n".encode(), 2: b"err\n"}
            assert (await session.wait()).exit_code == 5


async def test_much_goes_in_and_out_at_once(driver: RawExec) -> None:
    data = os.urandom(1 << 20)
    async with running(driver, shell(LASTS)) as task, await task.exec(["cat"]) as session:

        async def feed() -> None:
            await session.write(data)
            await session.close_stdin()
            await session.close_stdin()

        feeding = asyncio.create_task(feed())
        assert (await all_of(session))[1] == data
        await feeding
        assert (await session.wait()).exit_code == 0
        with pytest.raises(UnrecoverableError, match="closed"):
            await session.write(b"x")


async def test_a_terminal_has_a_size_and_controls_its_session(driver: RawExec) -> None:
    async with running(driver, shell(LASTS)) as task:
        words = ["sh", "-c", "stty size; echo err >&2; trap 'stty size' WINCH; echo ready; cat; tty"]
        async with await task.exec(words, tty=True, size=(33, 77)) as session:
            output = session.output()
            text = b""
            while b"ready" not in text:
                text += (await anext(output))[1]
            assert b"33 77" in text
            assert b"err" in text
            await session.resize(44, 88)
            await session.close_stdin()
            async for stream, data in output:
                assert stream == 1
                text += data
            assert b"44 88" in text
            assert b"/dev/pts/" in text
            assert (await session.wait()).exit_code == 0


async def test_closing_kills_its_tree_and_not_the_task(driver: RawExec, mark: str) -> None:
    before = descriptors()
    async with running(driver, shell(LASTS)) as task:
        session = await task.exec(["sh", "-c", "sh -c 'sleep 60; :' $0 & (sleep 60; :) & sleep 60; :", mark])
        await until(lambda: len(marked(mark)) >= 3, "it did not come up")
        await session.aclose()
        await session.aclose()
        assert not marked(mark)
        assert (await session.wait()).signal == signal.SIGKILL
        assert lives(task.pid)
    assert {each for each in descriptors() if "pipe" in each} <= before


async def test_what_cannot_be_executed_is_told_and_leaves_nothing(driver: RawExec) -> None:
    async with running(driver, shell(LASTS)) as task:
        before = descriptors()
        with pytest.raises(CommandNotFound, match="no-such-command"):
            await task.exec(["no-such-command"])
        with pytest.raises(StartError):
            await task.exec([])
        assert descriptors() == before


async def test_further_commands_end_with_the_task(driver: RawExec, mark: str) -> None:
    async with running(driver, shell("read line; exit 3", stdin=Stdio.fd((pipe := os.pipe())[0]))) as task:
        os.close(pipe[0])
        session = await task.exec(["sh", "-c", "sleep 60; :", mark])
        os.close(pipe[1])
        end = await task.wait()
        assert (end.exit_code, end.left_running) == (3, ())
        await session.wait()
        await until(lambda: not marked(mark), "it outlived the task")
        await session.aclose()
        with pytest.raises(UnrecoverableError, match="has ended"):
            await task.exec(["true"])


async def test_an_exec_that_is_cancelled_at_any_moment_leaves_nothing(driver: RawExec, mark: str) -> None:
    async with running(driver, shell(LASTS)) as task:
        before = descriptors()
        for steps in range(12):
            opening = asyncio.create_task(task.exec(["sh", "-c", "sleep 60; :", mark]))
            for _ in range(steps):
                await asyncio.sleep(0)
            opening.cancel()
            try:
                await (await opening).aclose()
            except asyncio.CancelledError:
                continue
        await until(lambda: not marked(mark), "a command of a cancelled exec lives on")
        assert descriptors() == before


async def test_a_later_host_can_run_commands_too_and_they_end_with_it(tmp_path: Path, mark: str) -> None:
    config = shell(LASTS)
    async with raw_exec(tmp_path, recoverable=True) as first:
        state = (await start(first, config)).driver_state
    async with raw_exec(tmp_path, recoverable=True) as second:
        task = await second.recover(handle_of(config, state))
        session = await task.exec(["sh", "-c", "echo here; sleep 60; :", mark])
        assert await anext(session.output()) == (1, b"here\n")  # type: ignore[call-overload]
    await until(lambda: not marked(mark), "the command outlived its host")
    async with raw_exec(tmp_path, recoverable=True) as third:
        task = await third.recover(handle_of(config, state))
        await task.destroy(force=True)
    await session.aclose()


async def test_two_hundred_short_commands_are_counted_to_the_task_and_leave_nothing(driver: RawExec) -> None:
    async with running(driver, shell(LASTS)) as task:
        before = descriptors()
        for _ in range(10):
            sessions = await asyncio.gather(*(task.exec(["true"]) for _ in range(20)))
            ends = await asyncio.gather(*(session.wait() for session in sessions))
            assert [end.exit_code for end in ends] == [0] * 20
            await asyncio.gather(*(session.aclose() for session in sessions))
        assert descriptors() == before
        assert len(os.listdir(f"/proc/{task.supervisor_pid}/fd")) < 12
