"""The host's end of a control connection: frames and descriptors over a Unix socket, in the event loop."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from cameleer.drivers.supervisor.protocol import Frames, Message

_CHUNK = 65536


class Connection:
    """A control connection.

    :param deliver: called with each message.
    :param closed: called once, when the other end is gone; not when :meth:`close` was called.
    """

    def __init__(self, sock: socket.socket, deliver: Callable[[Message], None], closed: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._deliver = deliver
        self._closed = closed
        self._frames = Frames()
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[memoryview, list[int]]] = deque()
        self.is_open = True
        self._loop.add_reader(sock.fileno(), self._read)

    def send(self, data: bytes, descriptors: list[int] | None = None) -> None:
        """Send a frame, and descriptors with its first byte; they must stay open until the answer."""
        if not self.is_open:
            return
        self._waiting.append((memoryview(data), descriptors or []))
        if len(self._waiting) == 1:
            self._write()

    def _write(self) -> None:
        while self._waiting:
            data, descriptors = self._waiting[0]
            try:
                sent = socket.send_fds(self._sock, [data], descriptors) if descriptors else self._sock.send(data)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._write)
                return
            except OSError:  # the other end is gone: the reader notices
                self._waiting.clear()
                break
            if sent == len(data):
                self._waiting.popleft()
            else:
                self._waiting[0] = data[sent:], []
        self._loop.remove_writer(self._sock.fileno())

    def _read(self) -> None:
        while self.is_open:
            try:
                data = self._sock.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                self._closed()
                return
            for message in self._frames.feed(data):
                if self.is_open:
                    self._deliver(message)

    def close(self) -> None:
        """Close our end; twice without error."""
        if not self.is_open:
            return
        self.is_open = False
        self._waiting.clear()
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
