"""Where readings and summaries go as JSON. An output that fails is told once and never hurts the task."""

from __future__ import annotations

import os
import select
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from cameleer.cli.console import say
from cameleer.cli.units import several
from cameleer.errors import ConfigError

if TYPE_CHECKING:
    from cameleer.usage import TaskResourceUsage

_PIPE_BUF = 4096  # what a pipe that polls as writable takes without blocking
_WAITING_MOST = 1 << 20
_FLUSH_S = 2.0


def _plain(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise NotImplementedError


_in_order = msgspec.json.Encoder(enc_hook=_plain)
_deterministic = msgspec.json.Encoder(enc_hook=_plain, order="deterministic")  # ``measured`` is a set


def as_json(value: Any) -> bytes:
    """JSON on one line, without the newline; keys in the order in which they were written."""
    return _in_order.encode(value)


def open_output(target: str, option: str) -> int:
    """Open ``FILE``, ``-`` or ``fd:N`` for writing; the descriptor is the caller's to close unless it was given.

    :raises ConfigError: no such descriptor, or the file cannot be written.
    """
    if target == "-":
        return 1
    try:
        if target.startswith("fd:"):
            descriptor = int(target[3:])
            os.fstat(descriptor)
            os.set_inheritable(descriptor, False)
            return descriptor
        return os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except ValueError as exc:
        raise ConfigError(f"{option} {target}: write fd: and the number of an open descriptor") from exc
    except OSError as exc:
        raise ConfigError(f"{option} {target}: {exc.strerror}") from exc


class Lines:
    """Writes lines to a descriptor without ever waiting for its reader while the task runs.

    What a slow reader does not take is kept, up to 1 MiB; then lines are dropped whole and counted.
    """

    def __init__(self, target: str, option: str) -> None:
        self._name = f"{option} {target}"
        self._fd = open_output(target, option)
        self._ours = target != "-" and not target.startswith("fd:")
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._waiting = bytearray()
        self._failed = False
        self.dropped = 0

    def write(self, line: bytes) -> None:
        """Write a line, or keep it until there is room."""
        if self._failed:
            return
        if len(self._waiting) + len(line) > _WAITING_MOST:
            self.dropped += 1
            return
        self._waiting += line
        self._waiting += b"\n"
        self._push(0)

    def close(self) -> None:
        """Write what is left, for at most two seconds, and say what was lost."""
        deadline = time.monotonic() + _FLUSH_S
        while self._waiting and not self._failed and (left := deadline - time.monotonic()) > 0:
            self._push(left)
        if self._waiting and not self._failed:
            self.dropped += self._waiting.count(b"\n")
        if self.dropped:
            say(f"{self._name}: {several(self.dropped, 'line was', 'lines were')} dropped: its reader is too slow")
        if self._ours:
            try:
                os.close(self._fd)
            except OSError as exc:  # a remote file system tells a full disk here
                self._fail(exc)

    def _push(self, wait_s: float) -> None:
        while self._waiting and self._poll.poll(wait_s * 1000):
            try:
                written = os.write(self._fd, self._waiting[:_PIPE_BUF])
            except BlockingIOError:
                return
            except OSError as exc:
                self._fail(exc)
                return
            del self._waiting[:written]

    def _fail(self, exc: OSError) -> None:
        if not self._failed:
            self._failed = True
            say(f"{self._name}: {exc.strerror}; the task goes on without it")
        self._waiting.clear()


class Readings:
    """``--stats-out``: one JSON object per reading, named as the model is, with the task's id before it."""

    def __init__(self, target: str) -> None:
        self._lines = Lines(target, "--stats-out")
        self._heads: dict[str, bytes] = {}

    def add(self, task_id: str, reading: TaskResourceUsage) -> None:
        """Write one reading."""
        head = self._heads.get(task_id)
        if head is None:
            head = self._heads[task_id] = b'{"task_id":' + as_json(task_id) + b","
        self._lines.write(head + _deterministic.encode(reading)[1:])

    def close(self) -> None:
        """Write what is left."""
        self._lines.close()
