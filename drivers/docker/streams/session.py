"""A further command inside a container, by the engine's exec.

The engine has no way to end such a command. Where its processes are on this machine (proved by the container's id in
their control group) and we may, they are killed directly. Else another command in the container does it, which finds
them by a variable in their environment, ``CAMELEER_EXEC``; it needs ``sh``, ``cat`` and ``kill`` in the image, and
cannot find a process that cleared its environment. Where neither works a warning names the command: it goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cameleer.driver import ExecSession
from cameleer.drivers.docker.client.frames import Frames, merged
from cameleer.drivers.docker.streams.intake import CHUNK, Intake
from cameleer.drivers.docker.streams.output import NO_DETACHING
from cameleer.errors import (
    CommandNotExecutable,
    CommandNotFound,
    DriverError,
    PluginShutdown,
    RecoverableError,
    StartError,
    StartRecoverable,
    UnrecoverableError,
)
from cameleer.log import fields, log
from cameleer.status import Exit

if TYPE_CHECKING:
    from cameleer.drivers.docker.client.http import Client, Hijacked

T = TypeVar("T")

MARK: Final = "CAMELEER_EXEC"
"""Variable in the command's environment by which its processes are found."""
_END_OF_INPUT: Final = b"\x04"
_ASK_S: Final = 10.0
_UNKNOWN_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 1.0
_LAST_LOOK_S: Final = 5.0
_SIZE_AT_START: Final = (1, 42)
_ROUNDS: Final = 20
_KILL: Final = (
    "for round in 1 2 3; do for p in /proc/[0-9]*; do"
    ' case "$(cat $p/environ 2>/dev/null)" in *"$0"*) kill -9 ${p#/proc/} 2>/dev/null;; esac; done; done'
)


class DockerExecSession(ExecSession):
    """Made by :meth:`start`."""

    def __init__(self, client: Client, container: str, *, tty: bool) -> None:
        self._client = client
        self._container = container
        self._tty = tty
        self._id = ""
        self._mark = os.urandom(8).hex()
        self._pid = 0
        self._connection: Hijacked | None = None
        self._frames = Frames()
        self._intake = Intake(f"a command in the container {container[:12]}")
        self._read: deque[tuple[int, bytes]] = deque()
        self._news = asyncio.Event()
        self._output_ended = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._end: Exit | None = None
        self._asked = False
        self._refusal: StartError | None = None
        self._closing: asyncio.Task[None] | None = None
        self._stdin_open = True

    @classmethod
    async def start(
        cls,
        client: Client,
        container: str,
        command: Sequence[str],
        *,
        tty: bool = False,
        size: tuple[int, int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> DockerExecSession:
        """Run a command.

        :param size: rows and columns of its terminal.
        :param env: added to the container's own.
        :raises StartError: it cannot be started.
        :raises UnrecoverableError: the container does not run.
        :raises RecoverableError: the engine has gone.
        """
        if not command:
            raise StartError("exec needs a command")
        session = cls(client, container, tty=tty)
        try:
            await session._create(command, size, env or {})
            await session._begin(size)
        except BaseException:
            with suppress(DriverError):
                await session.aclose()
            raise
        return session

    async def _create(self, command: Sequence[str], size: tuple[int, int] | None, env: Mapping[str, str]) -> None:
        body: dict[str, object] = {
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": self._tty,
            "DetachKeys": NO_DETACHING,
            "Cmd": list(command),
            "Env": [*(f"{name}={value}" for name, value in env.items()), f"{MARK}={self._mark}"],
        }
        made = await self._client.request(
            "POST",
            f"/containers/{self._container}/exec",
            body={**body, **self._size(size)},
            timeout_s=_ASK_S,
            what=f"run a command in the container {self._container[:12]}",
        )
        found = made.json()
        if not isinstance(found, dict) or not isinstance(found.get("Id"), str):
            raise RecoverableError("the engine's answer about a new command has no Id")
        self._id = found["Id"]

    def _size(self, size: tuple[int, int] | None) -> dict[str, object]:
        """A terminal's size for a request, where the engine knows that."""
        if size is None or not self._tty or _version(self._client.api_version) < _SIZE_AT_START:
            return {}
        return {"ConsoleSize": list(size)}

    async def _begin(self, size: tuple[int, int] | None) -> None:
        sized = self._size(size)
        sizing: asyncio.Task[None] | None = None
        if self._tty and size is not None and not sized:  # it waits in the engine for the command's start
            sizing = asyncio.get_running_loop().create_task(self._resize(*size))
        self._asked = True
        try:
            self._connection = await self._client.hijack(
                f"/exec/{self._id}/start",
                body={"Detach": False, "Tty": self._tty, **sized},
                timeout_s=_ASK_S,
                what=f"start a command in the container {self._container[:12]}",
            )
            self._pump = asyncio.get_running_loop().create_task(self._follow())
            await self._until_started()
        finally:
            if sizing is not None:
                if self._pid == 0:
                    sizing.cancel()
                await asyncio.wait([sizing])

    async def _until_started(self, timeout_s: float = _ASK_S) -> None:
        """Wait until it runs; its pid is known then, by which it is killed.

        :raises StartError: it does not.
        """

        async def look() -> bool:
            found = await self._inspect()
            self._pid = int(found.get("Pid") or 0)
            if not self._pid and not found.get("Running") and found.get("ExitCode") is not None:
                self._refusal = await self._refused()
            return self._pid > 0 or self._refusal is not None

        try:
            async with asyncio.timeout(timeout_s):
                await _poll(look)
        except TimeoutError as exc:
            raise StartRecoverable(f"the engine did not start the command within {timeout_s:g} s") from exc
        if self._refusal is not None:
            raise self._refusal
        if _is_here(self._pid, self._container):
            self._intake.watch(self._pid)

    async def _refused(self) -> StartError:
        """Why it was not started: the engine writes that where the output would be."""
        if self._pump is not None:
            await self._output_ended.wait()
        text = b"".join(data for _, data in self._read).decode(errors="replace").strip()
        if "executable file not found" in text or "no such file or directory" in text:
            return CommandNotFound(text)
        if "permission denied" in text or "exec format error" in text or "is a directory" in text:
            return CommandNotExecutable(text)
        return StartError(text or "the engine did not start the command, and does not say why")

    # -- output --------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        assert self._connection is not None
        try:
            while chunk := await self._connection.read(CHUNK):
                for piece in [(1, chunk)] if self._tty else merged(self._frames.feed(chunk)):
                    self._read.append(piece)
                    self._intake.came(len(piece[1]))
                self._news.set()
                await self._intake.room()
        except DriverError as exc:
            log.debug("the output of a command has ended: %s", exc, extra=fields(driver="docker"))
        finally:
            self._output_ended.set()
            self._news.set()

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield what the command writes; ends with the last of it."""
        while True:
            while self._read:
                piece = self._read.popleft()
                self._intake.taken(len(piece[1]))
                yield piece
            if self._output_ended.is_set():
                return
            self._news.clear()
            await self._news.wait()

    # -- input ---------------------------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Write to the command's stdin.

        :raises UnrecoverableError: nobody reads it any more.
        """
        if self._connection is None or not self._stdin_open:
            raise UnrecoverableError("the command's stdin is closed")
        try:
            await self._connection.write(data)
        except DriverError as exc:
            raise UnrecoverableError(f"cannot write to the command's stdin: {exc}") from exc

    async def close_stdin(self) -> None:
        """Half-close the connection; on a terminal, type the end of input."""
        if self._connection is None or not self._stdin_open:
            return
        if self._tty:
            await self.write(_END_OF_INPUT)
            return
        self._stdin_open = False
        with suppress(DriverError):  # it has ended
            await self._connection.close_write()

    async def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; nothing happens without one, or after the end."""
        if self._tty and self._id and not self._output_ended.is_set():
            await self._resize(rows, columns)

    async def _resize(self, rows: int, columns: int) -> None:
        try:
            await self._client.request(
                "POST",
                f"/exec/{self._id}/resize",
                query={"h": str(rows), "w": str(columns)},
                timeout_s=_ASK_S,
                what="resize a command's terminal",
            )
        except DriverError as exc:
            if not self._output_ended.is_set():
                log.debug("%s", exc, extra=fields(driver="docker"))

    # -- the end -------------------------------------------------------------------------------------------------

    async def wait(self) -> Exit:
        """Wait for the command's end; asks the engine at the end of the output, and once a second."""

        async def look() -> bool:
            try:
                found = await self._inspect()
            except RecoverableError as exc:
                if self._closing is None or not self._closing.done():
                    raise
                self._end = self._end or Exit(error=f"nobody knows how the command ended: {exc}")
                return True
            if self._end is None and not found.get("Running"):
                self._end = _exit(found.get("ExitCode"))
            return self._end is not None

        try:
            await _poll(look, self._output_ended)
        except (UnrecoverableError, PluginShutdown) as exc:  # the container is gone, and the command with it, or we are
            self._end = self._end or Exit(error=f"nobody knows how the command ended: {exc}")
        assert self._end is not None
        return self._end

    async def _inspect(self) -> Mapping[str, Any]:
        response = await self._client.request(
            "GET", f"/exec/{self._id}/json", timeout_s=_ASK_S, what="ask for a command"
        )
        found = response.json()
        if not isinstance(found, dict):
            raise RecoverableError("the engine's answer about a command is no object")
        return found

    async def aclose(self) -> None:
        """Kill what is left of the command, then close everything; twice without error."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            if self._asked and self._refusal is None:
                await self._kill()
        except DriverError as exc:
            log.warning(
                "a command in the container %s may go on: %s",
                self._container[:12],
                exc,
                extra=fields(driver="docker"),
            )
        finally:
            self._intake.close()
            if self._pump is not None:
                self._pump.cancel()
                await asyncio.wait([self._pump])
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    async def _kill(self) -> None:
        """Kill the command and its descendants.

        :raises DriverError: it cannot be done, or nobody knows.
        """
        if not self._pid:  # given up half-way: it may start yet, or never
            with suppress(StartRecoverable, StartError):
                await self._until_started(_UNKNOWN_S)
            if not self._pid:
                return
        if not _kill_here(self._pid, self._container):
            await self._kill_there()
        if self._end is None:
            with suppress(TimeoutError, UnrecoverableError):
                async with asyncio.timeout(_LAST_LOOK_S):
                    await self.wait()
            if self._end is None:
                raise RecoverableError("the engine does not say that it has ended")

    async def _kill_there(self) -> None:
        """Have another command in the container kill it."""
        found = await self._inspect()
        body = {"Cmd": ["sh", "-c", _KILL, f"{MARK}={self._mark}"]}
        if not found.get("Running"):
            return
        made = (
            await self._client.request(
                "POST", f"/containers/{self._container}/exec", body=body, timeout_s=_ASK_S, what="kill a command"
            )
        ).json()
        killer = made.get("Id") if isinstance(made, dict) else None
        await self._client.request(
            "POST", f"/exec/{killer}/start", body={"Detach": True}, timeout_s=_ASK_S, what="kill a command"
        )


async def _poll(look: Callable[[], Awaitable[bool]], hint: asyncio.Event | None = None) -> None:
    """Look again and again, after longer and longer pauses; one that is hinted at is quick.

    :raises UnrecoverableError: (of ``look``)
    :raises PluginShutdown: the driver was closed.
    """
    pause_s = _FIRST_PAUSE_S
    hinted = False
    while True:
        try:
            if await look():
                return
        except PluginShutdown:
            raise
        except RecoverableError:
            pass
        if hint is not None and not hinted:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await hint.wait()
            if hint.is_set():
                hinted, pause_s = True, _FIRST_PAUSE_S
                continue
        else:
            await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def _exit(code: object) -> Exit:
    if not isinstance(code, int):
        return Exit(error="the engine does not say how the command ended")
    return Exit(exit_code=code)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _is_here(pid: int, container: str) -> bool:
    """Whether a process is one of the container's, on this machine."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="ascii", errors="replace") as file:
            return container in file.read()
    except OSError:
        return False


def _kill_here(pid: int, container: str) -> bool:
    """Kill a command's session and its descendants; False: none of them can be found or killed by us."""
    from cameleer.drivers.supervisor import proc

    found = False
    for _ in range(_ROUNDS):
        everyone = [each for each in proc.processes() if each.state != proc.ZOMBIE]
        first = [each for each in everyone if each.pid == pid]  # parents first: they would see their children's end
        rest = [*proc.below({pid}, everyone), *(each for each in everyone if each.session == pid)]
        ours = [each for each in dict.fromkeys(each.pid for each in (*first, *rest)) if _is_here(each, container)]
        if not ours:
            break
        found = True
        for each in ours:
            try:
                _kill_one(each, container)
            except ProcessLookupError:
                continue
            except PermissionError:
                return False
    return found


def _kill_one(pid: int, container: str) -> None:
    """Kill a process that is still the container's when it can no longer become another."""
    handle = os.pidfd_open(pid)
    try:
        if _is_here(pid, container):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)
