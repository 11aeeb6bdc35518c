"""A container's log, made into the bytes that the container wrote, from where their delivery stopped.

The engine keeps lines. It hands back one of more than 16 KiB in parts of that size, and an unfinished last one as it
is. What it does not hand back: bytes that are not UTF-8, with the log driver ``json-file`` (each becomes U+FFFD), and,
with ``local`` of engine 20.10, the end of a line of more than 16 KiB, which is put back here when another line follows.
"""

from __future__ import annotations

from cameleer.drivers.docker.client.frames import Frames
from cameleer.drivers.docker.stats.clock import unix_ns
from cameleer.drivers.docker.streams.jsontext import PART, JsonText
from cameleer.drivers.docker.streams.position import Position
from cameleer.errors import RecoverableError
from cameleer.log import fields, log


class LogReader:
    """What is new in a log.

    :param json: the log driver is ``json-file``.
    :param tty: the container has a terminal, so its log comes without frames and without times.
    :param tolerance_ns: how far the engine's clock and ours may be apart.
    :param ended_ns: no line that ended later was delivered; 0: nobody knows.
    """

    def __init__(
        self, position: Position, *, json: bool, tty: bool, tolerance_ns: int, ended_ns: int, task_id: str
    ) -> None:
        self._position = position
        self._delivered = position.json if json else position.exact
        self._tty = tty
        self._tolerance_ns = tolerance_ns
        self._task_id = task_id
        self._frames = Frames(whole=True)
        self._left = list(self._delivered.counts)
        self._open = list(self._delivered.lines)
        self._last_ns = position.last_ns
        self._late_ns = ended_ns or position.last_ns + tolerance_ns
        self._by_time = False
        self._begun = False
        self._lines = _Lines()

    def feed(self, chunk: bytes) -> list[tuple[int, bytes]]:
        """Take the next bytes of the engine's answer; what is new in them.

        :raises RecoverableError: they make no sense.
        """
        if self._tty:
            return [(1, new)] if (new := self._without_delivered(1, chunk)) else []
        found = []
        for stream, frame in self._frames.feed(chunk):
            stamp, space, text = frame.partition(b" ")
            if not space:
                raise RecoverableError(f"the engine's log makes no sense: {frame[:40]!r} has no time")
            data = self._lines.mended(stream, text)
            if self._left[stream - 1] or self._by_time or not self._begun:
                data = self._new(stream, stamp, data)
            if data:
                found.append((stream, data))
        return found

    def _new(self, stream: int, stamp: bytes, data: bytes) -> bytes:
        """What was not delivered yet. The count of bytes tells, and the time where that must be wrong."""
        at_ns = unix_ns(stamp.decode("ascii", "replace"))
        position = self._position
        if not self._begun:
            self._begun = True
            had_any = position.first_ns and not position.since_ns
            if had_any and at_ns > position.first_ns + self._tolerance_ns:
                self._by_time = True
                self._left = [0, 0]
                self._warn("the engine has thrown the beginning of the log away: output may be missing or come twice")
        if self._by_time:
            if at_ns <= self._last_ns:
                return b""
            self._by_time = False
            self._left = [line.awaited for line in self._open]
        self._check(stream, at_ns, data)
        return self._without_delivered(stream, data)

    def _check(self, stream: int, at_ns: int, line: bytes) -> None:
        """Deliver rather twice than never, where the log cannot hold all that was delivered.

        A line's time is that of its end, so one that was open is among the later ones.
        """
        left, known = self._left[stream - 1], self._open[stream - 1]
        if left > known.awaited and at_ns > self._late_ns:
            left = known.awaited
        if left and left == known.awaited and not known.begins(line):
            left = 0
        if lacking := self._left[stream - 1] - left:
            self._left[stream - 1] = left
            self._delivered.not_logged(stream, lacking)
            self._warn("the engine's log lacks some of what was delivered: output may be missing or come twice")

    def _without_delivered(self, stream: int, data: bytes) -> bytes:
        left = min(self._left[stream - 1], len(data))
        self._left[stream - 1] -= left
        return data[left:]

    def _warn(self, text: str) -> None:
        log.warning("task %s: %s", self._task_id, text, extra=fields(task_id=self._task_id, driver="docker"))


class _Lines:
    """Puts the ends of long lines back."""

    def __init__(self) -> None:
        self._in_line = [False, False]
        self._lacks_end = [False, False]

    def mended(self, stream: int, text: bytes) -> bytes:
        """The next part of a stream, after the end that the one before it lacked."""
        at = stream - 1
        before = b"\n" if self._lacks_end[at] else b""
        ended = text.endswith(b"\n")
        self._lacks_end[at] = self._in_line[at] and not ended and len(text) < PART
        self._in_line[at] = not ended and len(text) == PART
        return before + text if before else text


class Unnoted:
    """Bytes that may have been written to a file by a host that was killed before it could note them.

    :param tail: what the file holds where the last write was to go.
    :param json: the log driver is ``json-file``.
    """

    def __init__(self, stream: int, tail: bytes, *, json: bool) -> None:
        self._stream = stream
        self._tail = tail
        self._logged = JsonText().feed(tail) if json else tail
        self._held = b""

    def begin(self) -> None:
        """The log is read anew."""
        self._held = b""

    def rest(self) -> list[tuple[int, bytes]]:
        """What was held back until there was enough to compare; there will be no more."""
        held, self._held, self._tail = self._held, b"", b""
        return [(self._stream, held)] if held else []

    def without(self, pieces: list[tuple[int, bytes]]) -> tuple[list[tuple[int, bytes]], bytes]:
        """Leave out what the file has; the second value is what it has of its stream."""
        if not self._tail:
            return pieces, b""
        kept, had = [], b""
        for stream, data in pieces:
            if stream != self._stream or not self._tail:
                kept.append((stream, data))
                continue
            self._held += data
            if len(self._held) < len(self._logged):
                continue
            if self._held.startswith(self._logged):
                had = self._tail
                self._held = self._held[len(self._logged) :]
            self._tail = b""
            if self._held:
                kept.append((stream, self._held))
                self._held = b""
        return kept, had
