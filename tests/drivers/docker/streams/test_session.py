"""Further commands in real containers."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
from engine import Engine, needs_engine

from cameleer.drivers.docker.client.endpoint import Endpoint
from cameleer.drivers.docker.client.http import Client
from cameleer.drivers.docker.streams import session as session_module
from cameleer.drivers.docker.streams.intake import REST
from cameleer.drivers.docker.streams.session import DockerExecSession
from cameleer.errors import CommandNotExecutable, CommandNotFound, DriverError, StartError

pytestmark = [pytest.mark.root, needs_engine]

PATIENCE_S = 60.0


class Box:
    """A container that runs, and what is seen of it from outside."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.client = Client(Endpoint(url=engine.address, source="test"))
        self.id = engine.out("run", "--detach", "--network=none", "busybox:test", "sleep", "3600")

    async def exec(self, *command: str, **options: object) -> DockerExecSession:
        async with asyncio.timeout(PATIENCE_S):
            return await DockerExecSession.start(self.client, self.id, command, **options)  # type: ignore[arg-type]

    def commands(self) -> list[str]:
        """Command lines of the processes in the container."""
        found = []
        for each in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                if int(each.name) and self.id in (each / "cgroup").read_text():
                    words = (each / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
                    found.append(words.decode())
        return [each for each in found if each]

    def written(self) -> int:
        """Bytes that the processes in the container have written so far."""
        total = 0
        for each in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                if int(each.name) and self.id in (each / "cgroup").read_text():
                    total += int((each / "io").read_text().split()[3])
        return total

    async def close(self) -> None:
        await self.client.close()
        self.engine.cli("rm", "--force", self.id)


@pytest.fixture
async def box(engine: Engine) -> AsyncIterator[Box]:
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    made = Box(engine)
    yield made
    await until(lambda: made.commands() == ["sleep 3600"])
    await made.close()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert threading.active_count() == threads


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.01)


async def everything(session: DockerExecSession) -> dict[int, bytes]:
    found = {1: b"", 2: b""}
    async with asyncio.timeout(PATIENCE_S):
        async for stream, data in session.output():
            found[stream] += data
    return found


async def code(session: DockerExecSession) -> int | None:
    async with asyncio.timeout(PATIENCE_S):
        return (await session.wait()).exit_code


async def test_output_comes_apart_and_exact_with_the_exit_code(box: Box) -> None:
    async with await box.exec("sh", "-c", r"printf 'a\377\0'; printf err >&2; exit 5") as session:
        assert await everything(session) == {1: b"a\xff\x00", 2: b"err"}
        assert await code(session) == 5


async def test_an_end_is_seen_by_who_reads_no_output(box: Box) -> None:
    async with await box.exec("sh", "-c", "echo unread; exit 3") as session:
        first, second = await asyncio.gather(code(session), code(session))
        assert (first, second) == (3, 3)
        assert (await everything(session))[1] == b"unread\n"


async def test_stdin_is_written_and_ended(box: Box) -> None:
    data = bytes(range(256)) * 4000
    async with await box.exec("cat") as session:
        reading = asyncio.create_task(everything(session))
        await session.write(data)
        await session.close_stdin()
        assert (await reading)[1] == data
        assert await code(session) == 0
        with pytest.raises(DriverError, match="stdin is closed"):
            await session.write(b"more")


async def test_env_is_added(box: Box) -> None:
    async with await box.exec("sh", "-c", 'echo "$ADDED$HOME"', env={"ADDED": "a value of "}) as session:
        assert (await everything(session))[1] == b"a value of /\n"


async def test_a_terminal_has_its_size_from_the_start_and_a_new_one_later(box: Box) -> None:
    async with await box.exec(
        "sh", "-c", "sleep 0.1; stty size; read x; stty size", tty=True, size=(33, 77)
    ) as session:
        received = b""
        async with asyncio.timeout(PATIENCE_S):
            async for stream, data in session.output():
                assert stream == 1
                received += data
                if received == b"33 77\r\n":
                    await session.resize(44, 88)
                    await session.write(b"\n")
        assert received.endswith(b"44 88\r\n")


async def test_a_terminal_takes_every_byte_and_the_end_of_input(box: Box) -> None:
    async with await box.exec(
        "sh", "-c", "stty -echo -icanon -isig -ixon; echo ready; od -An -tx1 -N4; cat", tty=True
    ) as session:
        received = b""
        async with asyncio.timeout(PATIENCE_S):
            async for _, data in session.output():
                received += data
                if received == b"ready\r\n":
                    await session.write(b"\x10\x11\x1e\xff")
                if received.endswith(b"ff\r\n"):
                    await session.aclose()
        assert b" 10 11 1e ff\r\n" in received


@pytest.mark.parametrize(
    ("command", "error"),
    [("nonesuch", CommandNotFound), ("/etc/passwd", CommandNotExecutable)],
)
async def test_a_command_that_cannot_be_started_raises(box: Box, command: str, error: type[StartError]) -> None:
    with pytest.raises(error, match=command):
        await box.exec(command)


async def test_no_command_and_no_container_are_errors(box: Box) -> None:
    with pytest.raises(StartError):
        await box.exec()
    with pytest.raises(DriverError):
        await DockerExecSession.start(box.client, "nonesuch", ["true"])


@pytest.mark.parametrize("here", [True, False], ids=["here", "by the engine alone"])
async def test_closing_kills_the_command_and_its_children_and_nothing_else(
    box: Box, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    other = await box.exec("sleep", "1111")
    session = await box.exec("sh", "-c", "sleep 2222 & sleep 3333 & (sleep 4444 &) ; wait")
    await until(lambda: len(box.commands()) == 6)
    if not here:
        monkeypatch.setattr(session_module, "_is_here", lambda pid, container: False)
    waiting = asyncio.create_task(session.wait())
    await session.aclose()
    await session.aclose()
    async with asyncio.timeout(PATIENCE_S):
        assert (await waiting).exit_code == 137 or not here  # there, a shell may see its children die first
    await until(lambda: sorted(box.commands()) == ["sleep 1111", "sleep 3600"])
    await other.aclose()


async def test_a_holder_that_is_cancelled_closes_its_session(box: Box) -> None:
    started = asyncio.Event()

    async def hold() -> None:
        async with await box.exec("sleep", "2222") as session:
            started.set()
            await session.wait()

    holder = asyncio.create_task(hold())
    await started.wait()
    holder.cancel()
    await asyncio.wait([holder])
    assert holder.cancelled()


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.003, 0.01, 0.03, 0.06])
async def test_a_start_that_is_cancelled_leaves_no_command(box: Box, after_s: float) -> None:
    starting = asyncio.create_task(box.exec("sleep", "2222"))
    await asyncio.sleep(after_s)
    starting.cancel()
    with suppress(asyncio.CancelledError):
        await (await starting).aclose()


async def test_unread_output_holds_up_the_command_and_is_complete_when_read(box: Box) -> None:
    async with await box.exec("sh", "-c", "head -c 4000000 /dev/zero; echo end") as session:
        await asyncio.sleep(0.5)
        assert any("head" in each for each in box.commands()), "the command was not held up"
        assert (await everything(session))[1] == bytes(4_000_000) + b"end\n"


async def test_children_who_write_on_after_the_command_ended_are_held_up(box: Box) -> None:
    async with await box.exec("sh", "-c", "yes & sleep 0.2") as session:
        before, written = -1, 0
        async with asyncio.timeout(PATIENCE_S):
            while written != before or written < REST:
                before, written = written, box.written()
                await asyncio.sleep(0.5)
                assert written < 3 * REST, "nobody holds it up"
        found = 0
        async with aclosing(session.output()) as output:
            async for _, data in output:
                found += len(data)
                if found > 2 * REST:
                    break


async def test_wait_returns_when_the_driver_is_closed(box: Box) -> None:
    client = Client(Endpoint(url=box.engine.address, source="test"))
    session = await DockerExecSession.start(client, box.id, ["sleep", "2222"])
    waiting = asyncio.create_task(session.wait())
    await asyncio.sleep(0.1)
    await client.close()
    async with asyncio.timeout(PATIENCE_S):
        end = await waiting
    assert end.exit_code is None
    assert end.error is not None
    assert "closed" in end.error
    await session.aclose()


async def test_the_container_may_end_under_a_session(box: Box) -> None:
    async with await box.exec("sleep", "2222") as session:
        box.engine.cli("kill", box.id)
        async with asyncio.timeout(PATIENCE_S):
            assert (await session.wait()).exit_code in (137, None)
    box.engine.cli("start", box.id)


async def test_twenty_sessions_at_once_are_apart(box: Box) -> None:
    async def one(number: int) -> None:
        async with await box.exec("sh", "-c", f"echo {number}; exit {number}") as session:
            assert (await everything(session))[1] == b"%d\n" % number
            assert await code(session) == number

    await asyncio.gather(*(one(number) for number in range(20)))
    assert box.client.open_connections <= 16
