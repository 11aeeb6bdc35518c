"""A further command inside a supervised task: pipes or a terminal to it, and its end."""

from __future__ import annotations

import asyncio
import errno
import os
import termios
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

from cameleer.driver import ExecSession
from cameleer.errors import DriverError, UnrecoverableError
from cameleer.status import Exit

if TYPE_CHECKING:
    from cameleer.drivers.supervisor.task import SupervisedTask

_CHUNK = 65536
_END_OF_INPUT = b"\x04"


class Session(ExecSession):
    """Made by ``SupervisedTask.exec``.

    :ivar theirs: the command's ends of stdin, stdout and stderr, until it has them.
    :ivar job: the supervisor's number for it.
    """

    def __init__(self, task: SupervisedTask, tty: bool, size: tuple[int, int] | None) -> None:
        self.job = 0
        self._task = task
        self._tty = tty
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[Exit] = self._loop.create_future()
        self._closed = False
        if tty:
            terminal, slave = os.openpty()
            self.theirs = [slave, slave, slave]
            self._input: int | None = terminal
            self._outputs = {terminal: 1}
            if size is not None:
                termios.tcsetwinsize(terminal, size)
        else:
            self.theirs, self._input, self._outputs = _pipes()
        for fd in {*self._outputs, self._input}:
            if fd is not None:
                os.set_blocking(fd, False)

    def close_theirs(self) -> None:
        """Close our copies of the command's descriptors."""
        for fd in set(self.theirs):
            os.close(fd)
        self.theirs = []

    def close_all(self) -> None:
        """Close our ends."""
        self._closed = True
        for fd in {*self._outputs, self._input} - {None}:
            assert fd is not None
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            os.close(fd)
        self._outputs, self._input = {}, None

    def ended(self, end: Exit) -> None:
        """Take note of the end; for the task."""
        if not self._end.done():
            self._end.set_result(end)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield what the command writes; ends when all that hold its outputs have closed them."""
        while self._outputs:
            for fd in await self._readable():
                stream = self._outputs.get(fd)
                if stream is None:
                    continue
                try:
                    data = os.read(fd, _CHUNK)
                except BlockingIOError:
                    continue
                except OSError as exc:
                    if exc.errno != errno.EIO:  # what a terminal says when nobody is left at its other side
                        raise UnrecoverableError(f"cannot read the command's output: {exc.strerror}") from exc
                    data = b""
                if data:
                    yield stream, data
                else:
                    self._output_ended(fd)

    def _output_ended(self, fd: int) -> None:
        del self._outputs[fd]
        if fd != self._input:
            os.close(fd)

    async def _readable(self) -> list[int]:
        found: list[int] = []
        woken: asyncio.Future[None] = self._loop.create_future()

        def note(fd: int) -> None:
            found.append(fd)
            self._loop.remove_reader(fd)
            if not woken.done():
                woken.set_result(None)

        watched = list(self._outputs)
        for fd in watched:
            self._loop.add_reader(fd, note, fd)
        try:
            await woken
        finally:
            for fd in watched:
                if fd in self._outputs and fd not in found:
                    self._loop.remove_reader(fd)
        return found

    async def write(self, data: bytes) -> None:
        """Write to the command's stdin.

        :raises UnrecoverableError: nobody reads it any more.
        """
        rest = memoryview(data)
        while rest:
            if self._input is None:
                raise UnrecoverableError("the command's stdin is closed")
            try:
                rest = rest[os.write(self._input, rest) :]
            except BlockingIOError:
                await self._writable(self._input)
            except OSError as exc:
                raise UnrecoverableError(f"cannot write to the command's stdin: {exc.strerror}") from exc

    async def _writable(self, fd: int) -> None:
        woken: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(fd, _wake, woken)
        try:
            await woken
        finally:
            if fd == self._input:
                self._loop.remove_writer(fd)

    async def close_stdin(self) -> None:
        """Close the pipe; on a terminal, type the end of input."""
        if self._input is None:
            return
        if self._tty:
            await self.write(_END_OF_INPUT)
            return
        os.close(self._input)
        self._input = None

    async def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; the kernel sends SIGWINCH."""
        if self._tty and self._input is not None:
            termios.tcsetwinsize(self._input, (rows, columns))

    async def wait(self) -> Exit:
        """Wait for the command's end; its exit code says how."""
        return await asyncio.shield(self._end)

    async def aclose(self) -> None:
        """Kill what is left of the command's session, then close everything; twice without error."""
        if self._closed:
            return
        self._closed = True
        killed = self._task.ask(op="kill_job", job=self.job)
        try:
            with suppress(DriverError):
                await asyncio.shield(killed)
        finally:
            self.close_all()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _pipes() -> tuple[list[int], int, dict[int, int]]:
    opened: list[int] = []
    try:
        for _ in range(3):
            opened += os.pipe()
    except OSError as exc:
        for fd in opened:
            os.close(fd)
        raise UnrecoverableError(f"cannot make pipes for the command: {exc.strerror}") from exc
    stdin, ours_in, ours_out, stdout, ours_err, stderr = opened
    return [stdin, stdout, stderr], ours_in, {ours_out: 1, ours_err: 2}
