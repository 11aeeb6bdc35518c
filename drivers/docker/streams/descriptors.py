"""The ends of a task's standard streams in this process: opened, read and written without ever blocking the loop.

Others share a caller's descriptors, so their flags are not touched. A pipe or terminal is opened a second time through
``/proc``, which gives a description of our own that can be told not to block. Where the kernel refuses that (the pipe
was made by another user), it is polled first and written at most :data:`PIPE_BUF` bytes at a time; only then could
somebody else, who fills the same pipe in that very moment, hold us up. Sockets are told at each call. Regular files are
read and written directly.

Opened as ``raw_exec`` opens them, with one difference: nobody waits for the other end of a FIFO. One that is written to
is held open for reading too, so its reader may come later (:meth:`Descriptor.unread`), and its going away is not
noticed.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import socket
import stat
import sys
import termios
from select import PIPE_BUF
from typing import TYPE_CHECKING, Final

from cameleer.errors import ConfigError, StartError

if TYPE_CHECKING:
    from cameleer.config import Stdio

_FLAGS: Final = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_MASTER: Final = os.makedev(5, 2)
_STANDARD: Final = {"stdin": 0, "stdout": 1, "stderr": 2}


class Descriptor:
    """A descriptor of our own.

    :ivar fd: its number.
    :ivar regular: it is a regular file, which is always ready.
    """

    def __init__(self, fd: int, *, alone: bool = False) -> None:
        """Take over a descriptor, and close it in :meth:`close`.

        :param alone: a FIFO that is open for reading too, because nobody else reads it yet.
        """
        mode = os.fstat(fd).st_mode
        self.fd = fd
        self.regular = stat.S_ISREG(mode)
        self._alone = alone
        self._socket = socket.socket(fileno=fd) if stat.S_ISSOCK(mode) else None
        self._always_ready = self.regular or not (self._socket or _can_be_watched(fd))
        self._may_block = not (self._always_ready or self._socket) and os.get_blocking(fd)

    def read(self, size: int) -> bytes:
        """Read what is there; empty at the end.

        :raises BlockingIOError: nothing is there yet; wait for :meth:`readable`.
        """
        if self._socket is not None:
            return self._socket.recv(size, socket.MSG_DONTWAIT)
        if self._may_block and not self._polled(select.POLLIN):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.read(self.fd, size)

    def write(self, data: memoryview) -> int:
        """Write as much as is taken at once.

        :raises BlockingIOError: nothing is; wait for :meth:`writable`.
        """
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._may_block:
            if not self._polled(select.POLLOUT):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            data = data[:PIPE_BUF]
        return os.write(self.fd, data)

    def _polled(self, event: int) -> bool:
        poll = select.poll()
        poll.register(self.fd, event)
        return bool(poll.poll(0))

    def unread(self) -> int:
        """Bytes in a FIFO whose reader has not come yet: closing it would throw them away. To be written no more."""
        if not self._alone or self.fd < 0:
            return 0
        try:
            if fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_RDWR:
                self._read_no_more()
            if not self._polled(0):
                return 0
            return int.from_bytes(fcntl.ioctl(self.fd, termios.FIONREAD, bytes(4)), sys.byteorder)
        except OSError:  # no /proc
            return 0

    def _read_no_more(self) -> None:
        """Keep the writing end alone: the kernel tells then whether there is a reader."""
        writing = os.open(f"/proc/self/fd/{self.fd}", _FLAGS | os.O_WRONLY)
        os.close(self.fd)
        self.fd = writing

    async def readable(self) -> None:
        """Wait until there is something to read, or the end."""
        if self._always_ready:
            return
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self.fd, _resolve, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self.fd)

    async def writable(self) -> None:
        """Wait until something can be written, or nobody reads any more."""
        if self._always_ready:
            return
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self.fd, _resolve, ready)
        try:
            await ready
        finally:
            loop.remove_writer(self.fd)

    def close(self) -> None:
        """Close it; twice without error."""
        fd, self.fd = self.fd, -1
        if self._socket is not None:
            self._socket.close()
        elif fd >= 0:
            os.close(fd)


def open_target(name: str, stream: Stdio) -> Descriptor | None:
    """Open where ``stdout`` or ``stderr`` goes; None: it is discarded.

    :raises StartError: it cannot be opened.
    :raises ConfigError: the descriptor is none.
    """
    if stream.kind == "discard":
        return None
    if stream.path is None:
        return _taken(name, stream, os.O_WRONLY)
    # no link: else who may write to the folder chooses a file of the host's
    flags = _FLAGS | os.O_NOFOLLOW | (0 if stream.kind == "fifo" else os.O_APPEND | os.O_CREAT)
    try:
        _check_fifo(name, stream)
        try:
            return Descriptor(os.open(stream.path, flags | os.O_WRONLY, 0o600))
        except OSError as exc:
            if exc.errno != errno.ENXIO:  # a FIFO that nobody reads yet
                raise
            return Descriptor(os.open(stream.path, flags | os.O_RDWR, 0o600), alone=True)
    except OSError as exc:
        reason = "it is a symbolic link" if exc.errno == errno.ELOOP else exc.strerror
        raise StartError(f"cannot open {stream.path} as {name}: {reason}") from exc


def open_source(stream: Stdio) -> Descriptor | None:
    """Open where ``stdin`` comes from; None: it is discarded.

    :raises StartError: it cannot be opened.
    :raises ConfigError: the descriptor is none.
    """
    if stream.kind == "discard":
        return None
    if stream.path is None:
        return _taken("stdin", stream, os.O_RDONLY)
    try:
        _check_fifo("stdin", stream)
        flags = _FLAGS | os.O_RDONLY | (os.O_NOFOLLOW if stream.kind == "fifo" else 0)
        return Descriptor(os.open(stream.path, flags))
    except OSError as exc:
        raise StartError(f"cannot open {stream.path} as stdin: {exc.strerror}") from exc


def _check_fifo(name: str, stream: Stdio) -> None:
    assert stream.path is not None
    if stream.kind == "fifo" and not stat.S_ISFIFO(os.lstat(stream.path).st_mode):
        raise StartError(f"cannot open {stream.path} as {name}: it is no FIFO")


def _taken(name: str, stream: Stdio, access: int) -> Descriptor | None:
    """A caller's descriptor, or the one of this process, as one of our own."""
    inherited = stream.kind == "inherit"
    given = _STANDARD[name] if inherited else stream.descriptor
    assert given is not None
    try:
        if _can_be_opened_again(given):
            try:
                return Descriptor(os.open(f"/proc/self/fd/{given}", _FLAGS | access))
            except OSError:  # another user's, or no /proc: it is polled
                pass
        return Descriptor(os.dup(given))
    except OSError as exc:
        if inherited:  # closed in this process, as it is then in the task: nearly
            return None
        raise ConfigError(f"TaskConfig.{name} is descriptor {given}: {exc.strerror}") from exc


def _can_be_opened_again(fd: int) -> bool:
    """Whether opening it through /proc gives the same pipe or terminal; a pseudo-terminal's master gives a new one."""
    status = os.fstat(fd)
    if stat.S_ISFIFO(status.st_mode):
        return True
    return stat.S_ISCHR(status.st_mode) and status.st_rdev != _MASTER and os.isatty(fd)


def _can_be_watched(fd: int) -> bool:
    """Whether the kernel tells when it is ready; a device such as ``/dev/null`` always is."""
    with select.epoll() as watched:
        try:
            watched.register(fd, 0)
        except OSError:
            return False
    return True


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
