"""The host's side of the launcher: started at the first task, started anew if it died, reaped at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from cameleer.bare import start_bare
from cameleer.errors import StartRecoverable

PLAIN, OWN_PROCESSES = b"\0", b"p"
_PATIENCE_S = 5.0


class Launcher:
    """Forks supervisors. The host's own process is never forked but by ``subprocess``, once per launcher."""

    def __init__(self) -> None:
        self._protected = False
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Its process; None before the first task."""
        return None if self._process is None else self._process.pid

    async def fork(self, descriptors: Sequence[int], kind: bytes = PLAIN, *, own_root: bool = False) -> None:
        """Ask for a supervisor; whether it comes is told by its connection, the first of the descriptors.

        :param kind: ``PLAIN``, or ``OWN_PROCESSES``: the first process of a namespace.
        :param own_root: its task must not be able to change the program that it was forked from; a launcher of the
            ordinary kind is replaced.
        :raises StartRecoverable: no process can be started now.
        """
        async with self._turn:
            if own_root and not self._protected:
                await self._end()
                self._protected = True
            for _ in range(2):
                if self._socket is None:
                    self._start()
                assert self._socket is not None
                try:
                    while not self._send(self._socket, descriptors, kind):
                        await _writable(self._socket)
                    return
                except (BrokenPipeError, ConnectionError):
                    await self._end()
            raise StartRecoverable("the process that starts supervisors died twice")

    def _send(self, sock: socket.socket, descriptors: Sequence[int], kind: bytes) -> bool:
        try:
            socket.send_fds(sock, [kind], list(descriptors))
        except BlockingIOError:
            return False
        return True

    def _start(self) -> None:
        folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        if not self._protected:
            self._process, self._socket = start_bare("supervisor.launcher", folder)
            return
        from cameleer.drivers.supervisor import readonly

        try:
            descriptor, path = readonly.program(sys.executable)
        except OSError as exc:
            raise StartRecoverable(f"cannot protect {sys.executable} from tasks: {exc.strerror}") from exc
        try:
            self._process, self._socket = start_bare("supervisor.launcher", folder, program=(descriptor, path))
        finally:
            os.close(descriptor)

    async def close(self) -> None:
        """End the launcher; its supervisors go on."""
        async with self._turn:
            await self._end()

    async def _end(self) -> None:
        sock, self._socket = self._socket, None
        process, self._process = self._process, None
        if sock is not None:
            sock.close()
        if process is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await _ended(process.pid)
        if process.poll() is None:
            process.kill()
            process.wait()


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(sock.fileno(), _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock.fileno())


async def _ended(pid: int) -> None:
    """Wait for a process without reaping it."""
    loop = asyncio.get_running_loop()
    try:
        fd = os.pidfd_open(pid)
    except OSError:  # ended, or the kernel has no pidfd: then it is waited for
        return
    ready = loop.create_future()
    loop.add_reader(fd, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
