"""How much of a container's output was delivered, noted so that it survives a kill at any moment.

One record of 112 bytes, written by one call, which the kernel does whole or not at all.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Final
from zlib import crc32

from cameleer.drivers.docker.streams.jsontext import PART, JsonText

_RECORD: Final = Struct("<8s3QQIB3x2Q2H2I2Q2H2I")
_MAGIC: Final = b"camelog2"


@dataclass(frozen=True)
class OpenLine:
    """What was delivered of a line that had not ended; the log will have it later, as the beginning of a whole line.

    :ivar size: bytes; :data:`PART` for any that is longer: the log has its first part already.
    """

    size: int = 0
    checksum: int = 0

    def after(self, data: bytes) -> OpenLine:
        """What is open after more was delivered."""
        begin = data.rfind(b"\n") + 1
        size = len(data) - begin if begin else self.size + len(data)
        if size >= PART:
            return OpenLine(PART)
        return OpenLine(size, crc32(data[begin:], 0 if begin else self.checksum))

    @property
    def awaited(self) -> int:
        """Bytes of it that the log has yet to have."""
        return self.size if self.size < PART else 0

    def begins(self, line: bytes) -> bool:
        """Whether a line of the log goes on with it."""
        return len(line) >= self.size and crc32(line[: self.size]) == self.checksum


@dataclass
class Delivered:
    """What was delivered of stdout and of stderr.

    :ivar counts: bytes of each since ``Position.since_ns``, as far as the log has them.
    :ivar lines: what of that is of a line that has not ended.
    """

    counts: list[int] = field(default_factory=lambda: [0, 0])
    lines: list[OpenLine] = field(default_factory=lambda: [OpenLine(), OpenLine()])

    def add(self, stream: int, data: bytes) -> None:
        """Note more of it."""
        self.counts[stream - 1] += len(data)
        self.lines[stream - 1] = self.lines[stream - 1].after(data[-PART:])

    def not_logged(self, stream: int, count: int) -> None:
        """Note that the log lacks so many of its bytes."""
        self.counts[stream - 1] -= count

    def begin_again(self) -> None:
        """Count from another time on; lines that are open then are logged later, whole."""
        self.counts = [line.awaited for line in self.lines]

    @property
    def has_lines(self) -> bool:
        """Whether any line, or part of one, is whole."""
        return any(count > line.awaited for count, line in zip(self.counts, self.lines, strict=True))


@dataclass
class Position:
    """Where the delivery of a container's output is.

    :ivar since_ns: what was written before this time is delivered, or lost; 0: the container's start. Unix time, as the
        next two, nanoseconds.
    :ivar first_ns: when the first line, or part of one, was whole; 0: none is yet.
    :ivar last_ns: when the last byte came; 0: none came yet.
    :ivar size: of the target file before ``length`` bytes are written to it.
    :ivar length: bytes of the write that is being made to a regular file; 0: none is.
    :ivar stream: 1 or 2, the stream of that write.
    :ivar exact: as it was delivered, and most log drivers have it.
    :ivar json: as the log driver ``json-file`` has it.
    """

    since_ns: int = 0
    first_ns: int = 0
    last_ns: int = 0
    size: int = 0
    length: int = 0
    stream: int = 0
    exact: Delivered = field(default_factory=Delivered)
    json: Delivered = field(default_factory=Delivered)
    _fd: int = -1

    def __post_init__(self) -> None:
        self._texts = [JsonText(line.size) for line in self.exact.lines]

    @classmethod
    def open(cls, path: Path | None) -> Position:
        """Read a record, or begin one; without a path nothing is kept.

        :raises OSError: it cannot be opened.
        """
        if path is None:
            return cls()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        kept = os.pread(fd, _RECORD.size, 0)
        if len(kept) < _RECORD.size or not kept.startswith(_MAGIC):
            made = cls(_fd=fd)
            made._write()
            return made
        _, since, first, last, size, length, stream, *both = _RECORD.unpack(kept)
        return cls(since, first, last, size, length, stream, _unpacked(both[:6]), _unpacked(both[6:]), fd)

    @property
    def kept(self) -> bool:
        """Whether it is noted on disk."""
        return self._fd >= 0

    def about_to_write(self, stream: int, size: int, length: int) -> None:
        """Note that ``length`` bytes are going to be appended to a file of ``size`` bytes."""
        if self._fd >= 0:
            self.stream, self.size, self.length = stream, size, length
            self._write()

    def delivered(self, stream: int, data: bytes, *, logged: bool = False) -> None:
        """Note that these bytes reached their target.

        :param logged: they are from the log, and so as it has them.
        """
        self.last_ns = time.time_ns()
        self.exact.add(stream, data)
        self.json.add(stream, data if logged else self._texts[stream - 1].feed(data))
        if not self.first_ns and self.exact.has_lines:
            self.first_ns = self.last_ns
        self.length = 0
        if self._fd >= 0:
            self._write()

    def begin_again(self, since_ns: int) -> None:
        """Count from another time on."""
        self.since_ns, self.first_ns, self.length = since_ns, 0, 0
        self.exact.begin_again()
        self.json.begin_again()
        if self._fd >= 0:
            self._write()

    def _write(self) -> None:
        record = _RECORD.pack(
            _MAGIC,
            self.since_ns,
            self.first_ns,
            self.last_ns,
            self.size,
            self.length,
            self.stream,
            *_packed(self.exact),
            *_packed(self.json),
        )
        with suppress(OSError):  # no space for its first block: then nothing is noted
            os.pwrite(self._fd, record, 0)

    def close(self) -> None:
        """Close the record, which stays; twice without error."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _packed(delivered: Delivered) -> list[int]:
    lines = delivered.lines
    return [*delivered.counts, *(line.size for line in lines), *(line.checksum for line in lines)]


def _unpacked(packed: list[int]) -> Delivered:
    out, err, out_size, err_size, out_sum, err_sum = packed
    return Delivered([out, err], [OpenLine(out_size, out_sum), OpenLine(err_size, err_sum)])
